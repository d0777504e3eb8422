"""RUN/report.html: its content, and its looks in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raymeta import api
from raymeta.errors import RunError
from raymeta.evaluation.scores import Coverage, Score, UnlikeTraining
from raymeta.experiment.file import load_experiment
from raymeta.report.drawing_plots import forecast_figure
from raymeta.report.facts import read_facts, read_results
from raymeta.report.plots import BLUE
from raymeta.report.write import report_page, write_page
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord
from raymeta.search.trial_log import TrialLog
from tests.browser import Tab, assert_drawn, chromium
from tests.report.runs import drawings, explained, finished_run

HOSTILE = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'>"
SECTIONS = (
    *("The answer", "What was asked", "The meta-test", "What it does", "The winner", "The trials"),
    *("What the search&#x27;s model says", "What was skipped or failed", "Time and cost"),
    *("To repeat it", "What is not on this page"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = finished_run(tmp_path_factory.mktemp("runs"))
    explained(run)
    return run


@pytest.fixture(scope="module")
def page(run: Run) -> str:
    return Path(str(write_page(run))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def front_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose search had two objectives, with its page."""
    folder = tmp_path_factory.mktemp("runs")
    run = finished_run(folder, overrides=["search.against=num_parameters"])
    explained(run)
    write_page(run)
    return run


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium() as tab:
        yield tab


def text_of(page: str) -> str:
    """Returns the readable text of the page, without its scripts."""
    return re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)


@pytest.mark.slow
def test_all_sections_are_there_and_the_answer_comes_first(page: str) -> None:
    text = text_of(page)
    places = [text.index(f">{title}</h2>") for title in SECTIONS]
    assert places == sorted(places)
    assert "On new tasks the tuned network has an accuracy of" in text
    assert "5 trials: 3 completed, 1 stopped early, 1 failed" in text
    assert "trial 4: RuntimeError: plain" in text
    assert "1:15 in all" in text
    assert "fingerprint the data" in text
    assert "front: one" in text
    assert "✗ b (70&nbsp;%)" in text
    assert "is plain" in text
    assert "Without the 2 classes that have the fewest errors." in text


def test_the_band_of_a_forecast_is_drawn_and_named(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert "80 % interval of the network" in text_of(report_page(read_facts(run)))
    (forecast,) = drawings("plain").forecasts
    band = forecast_figure(forecast, {"plain": BLUE}).data[1]
    assert (tuple(band.x), tuple(band.y)) == ((1, 2, 2, 1), (3.0, 4.5, 3.0, 2.0))
    bare = forecast_figure(replace(forecast, band=None), {"plain": BLUE})
    assert len(bare.data) == 2


def test_a_run_without_drawings_says_how_to_get_them(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (Path(str(run.path)) / "drawings.json").unlink()
    text = text_of(report_page(read_facts(run)))
    assert "What it does</h2>" not in text
    assert "kept none; `raymeta evaluate one` records them" in text


@pytest.mark.slow
def test_the_page_says_how_far_answers_can_be_trusted(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert "How sure it is" not in text_of(report_page(read_facts(run)))
    result = read_results(run)
    assert result is not None
    coverage = Coverage(0.9, Score(0.91, 0.02), 100, 2.5, 1.5, 4.0, "the unit of dose")
    unlike = UnlikeTraining(1.75, 0.005, 200, 0.015, 600)
    told = replace(result, coverage=coverage, unlike=unlike)
    run.write_json("results.json", {"meta_test": told.to_json()})
    text = text_of(report_page(read_facts(run)))
    assert "How sure it is</h3>" in text
    assert "hold 0.910 ± 0.020 of the values, and are ± 2.5 on average (1.5 to 4) wide" in text
    assert "1.5 % of 600 meta-test tasks are called unlike meta-training" in text
    assert "(distance 1.75)" in text


def test_it_asks_the_network_for_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)


def test_the_page_of_an_unfinished_run_shows_only_what_it_has(tmp_path: Path) -> None:
    run = Run.create(tmp_path, load_experiment("pen-maml"), "half")
    TrialLog(run).set("a", TrialRecord({}, "given", "running", [(100, 0.5, None)]))
    text = text_of(report_page(read_facts(run)))
    assert "There is no answer yet: the run is unfinished." in text
    assert "results: the run is unfinished, so that it has no meta-test yet" in text
    assert "it is not recorded in a form that can be drawn" in text
    assert "The meta-test</h2>" not in text


def test_a_run_of_0_1_names_what_it_lacks() -> None:
    old = Path(__file__).parents[1] / "run_of_0_1" / "old"
    text = text_of(report_page(read_facts(Run(old))))
    assert "raymeta 0.1 did not record them" in text
    assert "the meta-test of this run kept none" in text


def test_a_notebook_shows_the_answer_without_scripts(run: Run) -> None:
    report = api.load_report(run)
    assert report is not None
    shown = report._repr_html_()
    assert "On new tasks the tuned network has an accuracy of" in shown
    assert "report.html" in shown
    assert "<script" not in shown


def test_links_out_of_the_folder_and_endless_files_are_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    folder, outside = Path(str(run.path)), tmp_path / "secret"
    outside.write_text('{"meta_test": 1}')
    (folder / "results.json").rename(tmp_path / "kept")
    (folder / "results.json").symlink_to(outside)
    with pytest.raises(RunError, match="a link that leads out of the run folder"):
        read_facts(run)
    (folder / "results.json").unlink()
    (tmp_path / "kept").rename(folder / "results.json")
    with (folder / "trials.jsonl").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match="a run writes at most"):
        read_facts(run)


def test_an_experiment_cannot_take_values_from_a_file_elsewhere(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (tmp_path / "secret.yaml").write_text("name: secret\ntasks: {source: pen}\n")
    file = Path(str(run.experiment_file))
    file.write_text(f'"base": {tmp_path / "secret.yaml"}\n{file.read_text()}')
    with pytest.raises(RunError, match="names a base, which may be any file"):
        read_facts(run)


def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    explained(run)
    entry = {"file": "../../../etc/passwd", "shows": "slice a b"}
    run.write_json("search/analyses.json", {"analyses": [entry], "missing": {}})
    facts = read_facts(run)
    assert not facts.analyses
    assert any("is no file of its own" in line for line in facts.missing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)]
)
def test_chromium_draws_it_at_any_width_without_an_error(
    run: Run, page: str, tab: Tab, width: int, dark: bool
) -> None:
    assert page
    assert_drawn(tab, Path(str(run.path)) / "report.html", width, dark, least=16)
    assert tab.value("document.querySelectorAll('figure svg polyline').length") == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)]
)
def test_chromium_draws_the_front_of_two_objectives(
    front_run: Run, tab: Tab, width: int, dark: bool
) -> None:
    file = Path(str(front_run.path)) / "report.html"
    assert_drawn(tab, file, width, dark, least=16)
    plot = "document.querySelector('.plot[aria-label=\"Pareto front\"]')"
    lines = tab.value(f"{plot}.data.filter(t => t.mode === 'lines').map(t => [t.x, t.y])")
    assert len(lines) == 1
    xs, ys = lines[0]
    assert xs == [3000, 6000]  # the third trial costs more and scores less than the last
    assert ys == pytest.approx([0.65, 0.69])
    # The two objectives name the axes, and a trial that failed has no point.
    texts = tab.value(f"[...{plot}.querySelectorAll('.infolayer text')].map(t => t.textContent)")
    assert {"num_parameters", "val_accuracy"} <= set(texts)
    assert tab.value(f"{plot}.querySelectorAll('.points path').length") == 4
    # All of its text is inside the page, in the colour of the theme.
    outside = tab.value(
        f"[...{plot}.querySelectorAll('text')].filter(t => t.textContent).filter(t => {{"
        "const box = t.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth"
        "}).map(t => t.textContent)"
    )
    assert outside == []
    inks = tab.value(
        f"[...new Set([...{plot}.querySelectorAll('.xtick text, .ytick text')].map("
        "t => getComputedStyle(t).fill))]"
    )
    assert inks == ["rgb(228, 232, 238)" if dark else "rgb(28, 36, 48)"]


@pytest.mark.slow
def test_trials_are_filtered_by_state_and_picked_out_in_all_plots(
    run: Run, page: str, tab: Tab
) -> None:
    assert page
    tab.open(Path(str(run.path)) / "report.html", width=1200)
    shown = (
        "[...document.querySelectorAll('.plot')].flatMap(p => p.data.filter("
        "t => t.meta && t.meta.state === 'early_stopped' && t.visible !== false)).length"
    )
    assert tab.value(shown) >= 3
    tab.value("document.querySelector('input[data-state=early_stopped]').click()")
    assert tab.value(shown) == 0
    assert tab.value("document.querySelector('tr[data-state=early_stopped]').hidden")
    tab.value("document.querySelector('tr[data-trial=\"1\"]').click()")
    faint = "p => p.data.filter(t => t.meta && t.opacity === 0.15).length"
    assert tab.value(f"[...document.querySelectorAll('.plot')].filter({faint}).length") >= 3
    command = tab.value("document.querySelector('.picked pre').textContent")
    assert command.startswith("raymeta train ")
    assert "--set maml.inner_lr=" in command
    assert tab.messages == []


@pytest.mark.slow
def test_text_from_a_strangers_files_does_not_run(tmp_path: Path, tab: Tab) -> None:
    run = finished_run(tmp_path, text=HOSTILE)
    explained(run, HOSTILE)
    content = Path(str(run.experiment_file)).read_text()
    origin = run.read_json("run.json")
    origin["versions"][HOSTILE] = HOSTILE
    run.write_json("run.json", origin)
    Path(str(run.experiment_file)).write_text(content)
    file = Path(str(write_page(run)))
    assert HOSTILE not in file.read_text(encoding="utf-8")
    tab.messages.clear()
    tab.open(file, width=1200)
    assert tab.value("window.hurt") is None
    assert tab.messages == []
    assert "window.hurt = 1" in tab.value("document.body.innerText")  # it is shown, as text
    # Even what got past the escaping would not be one of the page's scripts.
    file.write_text(file.read_text().replace("</main>", f"{HOSTILE}</main>"))
    tab.open(file, width=1200)
    assert tab.value("window.hurt") is None
    assert any("Content Security Policy" in message for message in tab.messages)
