"""A folder for others answers as the run does, and is written whole or not at all."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem

import raymeta
from raymeta.errors import RaymetaError, RunError
from raymeta.evaluation.calibration import CALIBRATION_FILE, keep_calibrations
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.familiarity import keep_reference
from raymeta.evaluation.forecast_errors import keep_errors
from raymeta.evaluation.networks import open_further, open_networks
from raymeta.experiment.file import to_yaml, with_values
from raymeta.inference.hub import CARD_FILE, CONFIG_FILE, MODEL_FILE, HubFolder
from raymeta.run_folder import Run
from raymeta.storage.atomic import write_file
from raymeta.storage.checksum import from_json, to_json
from raymeta.storage.paths import RemotePath
from tests.inference.conftest import Cli, RunOf
from tests.inference.test_contract import CPU
from tests.inference.test_forecaster import forecast_run, history

RNG = np.random.default_rng(3)
GROUPS = (
    *("tasks.kind=groups", "tasks.groups=[batch]", "tasks.num_ways=12", "tasks.num_shots=1"),
    *("tasks.num_queries=1", "learner=ridge", "ridge.learned_prior=true"),
)
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "classes": ("table", ("learner=prototypes",)),
    "classes, gradient steps": ("table", ("learner=maml",)),
    "groups": ("table", GROUPS),
    "numbers": ("sinusoid", ("learner=alpaca",)),
    "strokes": ("pen", ("learner=alignment", "tasks.context_grid=3", "model.stacked_steps=3")),
    "texts": ("text", ("learner=prototypes",)),
    "a function's table": ("python", ("learner=prototypes",)),
}


def measure(run: Run) -> None:
    """Measures what the meta-test measures of answers, on few episodes."""
    own, _ = open_networks(run, CPU, lambda _: None)
    networks: list[Network] = [own, *open_further(run, CPU)]
    if own.tasks.season is not None:
        keep_errors(run, networks)
    else:
        keep_calibrations(run, networks)
        keep_reference(run, own)


@pytest.fixture(autouse=True)
def _few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("calibration", "familiarity", "forecast_errors"):
        monkeypatch.setattr(f"raymeta.evaluation.{module}.NUM_EPISODES", 12)


def examples(kind: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Support examples, their targets, and queries."""
    if kind == "texts":
        words = ["word3 word7 fine", "word1 poor", "word2 word5 fine", "word9 word8 poor"]
        return words, ["fine", "poor", "fine", "poor"], ["word3 fine", "word4 word9 poor", "odd"]
    if kind == "numbers":
        return list(RNG.uniform(-5, 5, (10, 1, 1))), list(RNG.normal(size=10)), [[[1.0]], [[-2.0]]]
    width = 3 if kind == "strokes" else 2

    def drawn(count: int) -> list[np.ndarray]:
        found = [50 * RNG.normal(size=(size, width)) for size in RNG.integers(4, 9, count)]
        if kind == "strokes":
            for one in found:
                one[:, 2] = 0
        return found

    if kind == "groups":
        return drawn(12), [f"kind {number}" for number in range(12)], drawn(5)
    return drawn(6), ["c", "a", "b", "a", "c", "b"], drawn(5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::raymeta.errors.DataWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_folder_answers_as_its_run_to_the_last_bit(
    run_of: RunOf, tmp_path: Path, kind: str, seeds: int
) -> None:
    source, overrides = KINDS[kind]
    run = run_of(source, *overrides, seeds=seeds)
    if not (run.path / CALIBRATION_FILE).is_file():
        measure(run)
    raymeta.write_hub_folder(run.path, tmp_path / "shared")
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == sorted(
        (CARD_FILE, CONFIG_FILE, MODEL_FILE)
    )
    support_x, support_y, x = examples(kind)
    for ensemble in (True, False):
        both = [
            raymeta.load(path, ensemble=ensemble).adapt(support_x, support_y)
            for path in (run.path, tmp_path / "shared")
        ]
        own, shared = both
        np.testing.assert_array_equal(shared.predict(x), own.predict(x))
        assert len(shared.params) == (seeds if ensemble else 1)
        assert own.familiarity is not None
        assert shared.familiarity == own.familiarity
        assert shared.calibration == own.calibration
        if own.labels is None:
            found, wanted = (adapted.predict_interval(x, coverage=0.5) for adapted in both[::-1])
            np.testing.assert_array_equal(found, wanted)
        else:
            np.testing.assert_array_equal(shared.predict_proba(x), own.predict_proba(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["learner=ridge"],
        ["learner=maml", "tasks.quantiles=[0.1, 0.5, 0.9]", "tasks.calendar=[weekday]"],
    ],
    ids=["points", "quantiles"],
)
def test_forecasts_of_a_folder_are_those_of_its_run(tmp_path: Path, overrides: list[str]) -> None:
    run = forecast_run(tmp_path / "run", *overrides, seeds=2)
    measure(run)
    raymeta.write_hub_folder(run.path, tmp_path / "shared")
    for ensemble in (True, False):
        own, shared = (
            raymeta.load_forecaster(path, ensemble=ensemble).forecast(history(), coverage=0.5)
            for path in (run.path, tmp_path / "shared")
        )
        assert shared.to_table().equals(own.to_table())
    with pytest.raises(RaymetaError, match="load_forecaster"):
        raymeta.load(tmp_path / "shared")
    card = (tmp_path / "shared" / CARD_FILE).read_text()
    assert "load_forecaster" in card
    assert "time-series-forecasting" in card


def test_the_card_of_a_forecast_names_all_that_it_reads(tmp_path: Path) -> None:
    overrides = ["tasks.features=[]", "tasks.known=[price]", "tasks.categories=[town]"]
    overrides += ["tasks.groups=[]"]
    run = forecast_run(tmp_path / "run", "learner=maml", *overrides)
    raymeta.write_hub_folder(run.path, tmp_path / "shared")
    assert "The inputs are sales, price, town, in" in (tmp_path / "shared" / CARD_FILE).read_text()


@pytest.fixture
def shared(run_of: RunOf, tmp_path: Path) -> Path:
    run = run_of("table", "learner=prototypes")
    raymeta.write_hub_folder(run.path, tmp_path / "shared")
    return tmp_path / "shared"


@pytest.mark.filterwarnings("ignore::raymeta.errors.DataWarning")
def test_commands_take_a_folder_for_a_run(run_of: RunOf, tmp_path: Path, run_cli: Cli) -> None:
    run = run_of("table", "learner=prototypes")
    code, told, _ = run_cli("export", str(run.path), "--hub", "-o", "shared")
    assert code == 0
    assert "license" in told
    rows = ["recording,kind,second,volt,ampere"]
    rows += [f"r{n},{'ab'[n % 2]},{t},{n * t % 7},{n + t % 3}" for n in range(6) for t in range(5)]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    answers = []
    for place in (str(run.path), "shared"):
        assert run_cli("adapt", place, "--support", "rows.csv", "-o", "a.raymeta")[0] == 0
        answers.append(run_cli("predict", "a.raymeta", "rows.csv")[1])
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == 7
    for more in (["--adapts"], ["--stream"], ["--first"]):
        code, _, error = run_cli("export", str(run.path), "--hub", *more, "-o", "other")
        assert code != 0
        assert more[0] in error
    assert not (tmp_path / "other").exists()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def _edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = from_json((folder / CONFIG_FILE).read_bytes())
        change(content)
        (folder / CONFIG_FILE).write_bytes(to_json(content))

    return edit


def _digit(folder: Path) -> None:
    text = (folder / CONFIG_FILE).read_text()
    (folder / CONFIG_FILE).write_text(text.replace('"hidden_size": 6', '"hidden_size": 7'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: _cut(folder / CONFIG_FILE), "config.json: is damaged"),
        (lambda folder: _cut(folder / MODEL_FILE), "model.safetensors.*damaged"),
        (_digit, "checksum is wrong"),
        (_edited(lambda content: content.update(library_name="transformers")), "another library"),
        (_edited(lambda content: content.update(format=2)), "reads format 1"),
        (_edited(lambda content: content.update(run="other-1")), "does not belong"),
        (_edited(lambda content: content.pop("calibrations")), "is damaged.*calibrations"),
        (_edited(lambda content: content["experiment"].pop("tasks")), "is damaged"),
        (_edited(lambda content: content["experiment"]["model"].update(hidden_size=7)), "hidden"),
        (_edited(lambda content: content.update(calibrations={"1": {}})), "is damaged"),
        (lambda folder: (folder / CONFIG_FILE).write_text("[]"), "another library"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(
    shared: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(shared)
    with pytest.raises(RunError, match=message) as caught:
        raymeta.load(shared)
    assert "\n" not in str(caught.value)


def test_the_network_of_another_run_is_refused(shared: Path, run_of: RunOf, tmp_path: Path) -> None:
    other = run_of("table", "learner=maml")
    raymeta.write_hub_folder(other.path, tmp_path / "other")
    shutil.copy(tmp_path / "other" / MODEL_FILE, shared / MODEL_FILE)
    with pytest.raises(RunError, match=r"does not belong to its config\.json"):
        raymeta.load(shared)


def test_nothing_is_written_over(shared: Path, run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("table", "learner=prototypes")
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (shared, file, tmp_path):
        with pytest.raises(RunError, match="must be a new or an empty folder"):
            raymeta.write_hub_folder(run.path, place)
    assert file.read_text() == "mine"
    (tmp_path / "empty").mkdir()
    raymeta.write_hub_folder(run.path, tmp_path / "empty")
    assert raymeta.load(tmp_path / "empty").networks


def test_a_folder_may_be_in_another_storage(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("table", "learner=prototypes")
    place = RemotePath(LocalFileSystem(), f"{tmp_path}/bucket/shared", "local:")
    raymeta.write_hub_folder(run.path, place)
    own, found = (raymeta.load(one).networks[0] for one in (run.path, place))
    assert all(found[name].equal(value) for name, value in own.items())
    with pytest.raises(RunError, match="must be a new or an empty folder"):
        raymeta.write_hub_folder(run.path, place)


def test_a_folder_is_written_whole_or_not_at_all(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of("table", "learner=prototypes")

    def full(path: Path, content: bytes) -> None:
        if path.name == CONFIG_FILE:
            raise RunError(f"{path}: cannot be written: No space left on device")
        write_file(path, content)

    monkeypatch.setattr("raymeta.inference.hub.write_file", full)
    with pytest.raises(RunError, match="No space left"):
        raymeta.write_hub_folder(run.path, tmp_path / "shared")
    assert not list(tmp_path.iterdir())


def test_a_folder_does_not_tell_where_it_was_made(run_of: RunOf, tmp_path: Path) -> None:
    run = run_of("table", "learner=prototypes", "trackers.mlflow=/secret/place")
    data = str(run.best_experiment().tasks.data_dir)
    raymeta.write_hub_folder(run.path, tmp_path / "shared")
    for file in (tmp_path / "shared").iterdir():
        content = file.read_bytes()
        strange = (data, str(run.path), str(Path.home()), "/secret/place", socket.gethostname())
        for text in (*strange, f"/{getpass.getuser()}"):
            assert text.encode() not in content, (file.name, text)
    config = json.loads((tmp_path / "shared" / CONFIG_FILE).read_bytes())
    assert config["experiment"]["tasks"]["data_dir"] == "data"


def test_an_encoder_of_this_machine_is_refused(run_of: RunOf, tmp_path: Path) -> None:
    own = run_of("text", "learner=prototypes")
    run = Run(tmp_path / "run")
    shutil.copytree(str(own.path), str(run.path))
    (tmp_path / "encoder").mkdir()
    values = {"tasks.encoder": str(tmp_path / "encoder"), "tasks.max_tokens": 8}
    best = with_values(run.best_experiment(), values)
    (tmp_path / "run" / "best.yaml").write_text(to_yaml(best))
    with pytest.raises(RunError, match=r"a folder of this machine.*Hub"):
        raymeta.write_hub_folder(run.path, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_the_content_of_a_folder_is_read_back(shared: Path) -> None:
    found = HubFolder.read(shared)
    assert found.identity.facts["mean"]
    assert found.settings["name"] == "signals"
