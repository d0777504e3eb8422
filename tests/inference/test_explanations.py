"""Explanations as tables, as pages, and by commands on files and streams."""

# ruff: noqa: PD011  (attributions have values too)

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import raymeta
from raymeta.errors import DataError
from raymeta.inference.adapted import Adapted
from raymeta.inference.examples import read_examples
from raymeta.inference.explanation_tables import attribution_table, influence_table
from raymeta.report import attribution_page
from raymeta.report.attribution_page import attribution_page as page
from raymeta.report.attribution_page import figure
from tests.inference.conftest import Cli, RunOf
from tests.inference.test_attribution import adapted_of, task_of
from tests.inference.test_tables import content_of, signals, support  # noqa: F401


@pytest.fixture
def adapted(run_of: RunOf) -> Adapted:
    run = run_of("table", "learner=prototypes", "model.pooling=attention")
    return adapted_of(raymeta.load(str(run.path)), "table")


def test_a_table_has_a_row_a_time_step_and_a_column_a_channel(
    adapted: Adapted,
    signals: pd.DataFrame,  # noqa: F811
) -> None:
    inputs = adapted.trained.inputs
    chosen = signals[signals["kind"] == "kind 4"]
    raw = read_examples(chosen, inputs)
    found = adapted.attribute(raw)
    table = attribution_table(found, raw, inputs).to_pandas()
    assert list(table.columns) == [
        "recording", "step", "target", "attribution_volt", "attribution_ampere", "attention",
    ]  # fmt: skip
    assert len(table) == len(chosen)
    order = list(dict.fromkeys(chosen["recording"]))
    assert table["recording"].drop_duplicates().tolist() == order
    for row, (_, own) in enumerate(table.groupby("recording", sort=False)):
        length = found.lengths[row]
        assert own["step"].tolist() == list(range(1, length + 1))
        values = own[["attribution_volt", "attribution_ampere"]].to_numpy()
        np.testing.assert_array_equal(values, found.values[row, :length])
        assert set(own["target"]) == {found.targets[row]}
        assert own["attention"].sum() == pytest.approx(1)
    with pytest.raises(DataError, match="column 'step' of sequences"):
        attribution_table(found, raw, replace(inputs, sequence="step"))


def test_a_table_of_texts_has_their_words(run_of: RunOf) -> None:
    adapted = adapted_of(raymeta.load(str(run_of("sentiment", "learner=maml").path)), "sentiment")
    inputs = adapted.trained.inputs
    raw = read_examples(["Really good, this film!", "bad <b>film</b>"], inputs)
    found = adapted.attribute(raw)
    table = attribution_table(found, raw, inputs).to_pandas()
    words = ["really", "good", "this", "film", "!", "bad", "b", "film", "b"]
    assert table["token"].tolist() == words
    assert table["example"].tolist() == [1] * 5 + [2] * 4
    sums = table.groupby("example")["attribution"].sum()
    np.testing.assert_allclose(sums, found.values.sum(axis=(1, 2)))


def test_a_table_of_influence_has_a_row_an_example_and_support_example(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("sinusoid", "learner=ridge").path))
    inputs = model.trained.inputs
    frame = pd.DataFrame({"x": np.linspace(-3, 3, 10), "y": np.linspace(1, 2, 10)})
    support = read_examples(frame, inputs, with_targets=True)  # noqa: F811
    raw = read_examples(frame[:2], inputs)
    found = model.influence(support, x=raw)
    table = influence_table(found, support, raw, inputs).to_pandas()
    assert table["example"].tolist() == [1] * 10 + [2] * 10
    assert table["support"].tolist() == [*range(1, 11)] * 2
    np.testing.assert_array_equal(table["support_target"][:10], frame["y"])
    np.testing.assert_array_equal(table["influence"], found.changes.ravel())
    assert set(table["target"]) == {1}  # of the outputs, as tables count


def test_outputs_of_a_regression_are_counted_from_1_on_the_command_line(
    run_cli: Cli,
    run_of: RunOf,
    tmp_path: Path,
) -> None:
    adapted = adapted_of(raymeta.load(str(run_of("sinusoid", "learner=ridge").path)), "sinusoid")
    adapted.save(tmp_path / "mine.raymeta")
    arguments = ("attribute", "mine.raymeta", "-o", "a.csv", "--plot", "a.html")
    code, out, _ = run_cli(*arguments, "--target", "1", stdin=b"x\n0.5\n-2\n")
    assert code == 0
    assert out.split() == ["a.html:", "2", "examples"]
    assert pd.read_csv(tmp_path / "a.csv")["target"].tolist() == [1, 1]
    assert "the value is" in (tmp_path / "a.html").read_text()
    for wrong in ("0", "2", "y"):
        code, _, errors = run_cli(*arguments, "--target", wrong, stdin=b"x\n0.5\n")
        assert code == 1
        assert f"must be the number of an output, from 1 to 1, but got '{wrong}'" in errors


def test_the_command_line_explains_in_files_and_streams(
    run_cli: Cli,
    run_of: RunOf,
    support: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = str(run_of("table", "learner=prototypes").path)
    (tmp_path / "five.csv").write_bytes(content_of(support, "csv"))
    new = content_of(support.drop(columns="kind"), "jsonl")
    (tmp_path / "new.jsonl").write_bytes(new)
    assert run_cli("adapt", run, "--support", "five.csv", "-o", "mine.raymeta")[0] == 0
    code, shown, _ = run_cli("attribute", "mine.raymeta", "new.jsonl", "--plot", "why.html")
    assert code == 0
    found = pd.read_csv(io.StringIO(shown))
    model = raymeta.load(run)
    wanted = model.adapt(support).attribute(support)
    np.testing.assert_allclose(
        found[["attribution_volt", "attribution_ampere"]].to_numpy().sum(),
        (wanted.outputs - wanted.baseline_outputs).sum(),
        atol=1e-5,
    )
    html = (tmp_path / "why.html").read_text()
    assert "recording r1-0" in html
    code, lines, _ = run_cli(
        "attribute", "mine.raymeta", "--format", "jsonl", "--target", "kind 7", "--method",
        "occlusion", "--window", "2", "--baseline", "zeros", stdin=new,
    )  # fmt: skip
    assert code == 0
    rows = [json.loads(line) for line in lines.splitlines()]
    assert {row["target"] for row in rows} == {"kind 7"}
    lost = model.adapt(support).attribute(
        support, "kind 7", method="occlusion", window=2, baseline="zeros"
    )
    assert rows[0]["attribution_volt"] == pytest.approx(lost.values[0, 0, 0])
    code, _, _ = run_cli(
        "influence", run, "--support", "five.csv", "new.jsonl", "-o", "who.parquet"
    )
    assert code == 0
    table = pd.read_parquet(tmp_path / "who.parquet")
    owed = model.influence(support, x=support)
    np.testing.assert_allclose(table["influence"], owed.changes.ravel(), atol=1e-12)
    assert table["support"][:6].tolist() == list(dict.fromkeys(support["recording"]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("attribute", "mine.raymeta", "new.csv", "--plot", "a.png"), "must end in .html"),
        (("attribute", "mine.raymeta", "new.csv", "--target", "kind 9"), "must be a class"),
        (("attribute", "mine.raymeta", "new.csv", "--window", "3"), "for the method occlusion"),
        (("attribute", "mine.raymeta", "new.csv", "-o", "a.xlsx"), "must end in .csv"),
        (("influence", "RUN", "--support", "-", "-"), "cannot both be the stream"),
        (("influence", "RUN", "--support", "new.csv", "new.csv"), "has no column 'kind'"),
    ],
)
def test_mistakes_on_the_command_line_get_one_message(
    run_cli: Cli,
    run_of: RunOf,
    support: pd.DataFrame,  # noqa: F811
    tmp_path: Path,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    run = str(run_of("table", "learner=prototypes").path)
    raymeta.load(run).adapt(support).save(tmp_path / "mine.raymeta")
    (tmp_path / "new.csv").write_bytes(content_of(support.drop(columns="kind"), "csv"))
    code, _, errors = run_cli(*(run if a == "RUN" else a for a in arguments))
    assert code == 1
    assert said in errors.replace("\n", " ")
    assert "Traceback" not in errors
    assert not (tmp_path / "a.png").exists()


def test_a_page_needs_nothing_else_and_escapes_what_others_wrote(adapted: Adapted) -> None:
    x, _ = task_of("table", 3, seed=1)
    found = adapted.attribute(x, num_nodes=2)
    odd = replace(found, names=("<script>alert(1)</script>", "b & c", "c"), channels=("<i>", "b"))
    html = page(odd)
    assert "<script>alert(1)</script>" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert len(html) > 1e6  # plotly is in it
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", html)
    assert html.count("class='plot ") == 3
    assert "The nearest support example is number" in html
    one = figure(odd, 0)
    assert [axis.title.text for axis in one.select_yaxes()] == ["&lt;i&gt;", "b", "attention"]
    length = found.lengths[0]
    assert found.x is not None
    np.testing.assert_array_equal(one.data[1].y, found.x[0, :length, 1])
    np.testing.assert_array_equal(one.data[1].marker.color, found.values[0, :length, 1])
    bound = np.abs(found.values[0, :length]).max()
    assert (one.layout.coloraxis.cmin, one.layout.coloraxis.cmax) == (-bound, bound)


def test_many_examples_and_channels_are_cut_with_a_word_about_it(
    adapted: Adapted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution_page, "MOST_EXAMPLES", 2)
    monkeypatch.setattr(attribution_page, "MOST_CHANNELS", 1)
    found = adapted.attribute(task_of("table", 5, seed=1)[0], num_nodes=2)
    html = page(found)
    assert "The first 2 of 5 examples" in html
    assert "The 1 of 2 channels that count most" in html
    values = np.abs(found.values[0, : found.lengths[0]]).sum(axis=0)
    (title,) = (
        a.title.text for a in figure(found, 0).select_yaxes() if a.title.text != "attention"
    )
    assert title == found.channels[int(values.argmax())]


def test_strokes_are_drawn_as_written(run_of: RunOf) -> None:
    run = run_of("pen", "learner=prototypes", "model.pooling=attention")
    adapted = adapted_of(raymeta.load(str(run.path)), "pen")
    found = adapted.attribute(task_of("pen", 2, seed=1)[0], num_nodes=2)
    assert found.are_strokes
    assert found.x is not None
    one = figure(found, 0)
    (heat,) = one.select_traces(selector={"type": "heatmap"})
    np.testing.assert_array_equal(heat.z, found.values[0].T)
    lines = list(one.select_traces(selector={"type": "scatter"}))
    paper = [line for line in lines if line.line.width == 7]
    air = [line for line in lines if line.line.dash == "dot"]
    pen = found.x[0, 1:, 2] > 0.5
    for drawn, is_so in ((paper, pen), (air, ~pen)):
        ends = found.x[0, 1:, :2][is_so]
        assert len(ends)
        np.testing.assert_array_equal([(line.x[1], line.y[1]) for line in drawn], ends)


def test_words_are_shaded_by_their_attribution(run_of: RunOf) -> None:
    adapted = adapted_of(raymeta.load(str(run_of("sentiment", "learner=maml").path)), "sentiment")
    found = adapted.attribute(["really good film!"])
    html = page(replace(found, words=(("really", "<b>", "film", "!"),)))
    assert len(html) < 1e5  # there is no plot, so plotly is not in it
    assert "&lt;b&gt;</span>" in html
    alphas = [float(a) for a in re.findall(r"rgba\(\d+, \d+, \d+, ([\d.]+)\)", html)]
    values = np.abs(found.values[0, :, 0])
    np.testing.assert_allclose(alphas, values / values.max(), atol=1e-3)
    red = [value > 0 for value in found.values[0, :, 0]]
    assert [colour == "178" for colour in re.findall(r"rgba\((\d+), ", html)] == red
    with pytest.raises(ValueError, match="texts have no plot"):
        figure(found, 0)
