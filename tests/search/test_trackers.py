"""One tiny search reports to TensorBoard, an MLflow server and Weights & Biases at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import ray
from ray.tune.logger import TBXLoggerCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from wandb.proto import wandb_internal_pb2

import raymeta
from raymeta import api
from raymeta.errors import DataError, ExperimentError, RunError
from raymeta.experiment.file import load_experiment, to_yaml, with_values
from raymeta.experiment.schema import Experiment
from raymeta.experiment.trackers import Trackers
from raymeta.report.facts import read_results
from raymeta.report.write import REPORT_FILE
from raymeta.run_folder import Run
from raymeta.search import trackers
from raymeta.search.trackers import Tracker, check_trackers
from raymeta.search.trial_log import logged_trials
from raymeta.tracking.meta_test import track_meta_test
from raymeta.tracking.pyfunc import AdaptingModel
from tests.search.helpers import TINY, local_ray, tiny_experiment

CANARIES = {
    "WANDB_API_KEY": "canary0" + "a1b2c3d4" * 5,
    "MLFLOW_TRACKING_TOKEN": "canary1-mlflow-token",
}
NUM_TRIALS = 3
SEARCH = [
    *TINY,
    "search.space={learner: {choices: [maml, prototypes]}}",
    "search.space.maml.inner_lr={low: 0.01, high: 1, log: true, when: {learner: maml}}",
    f"search.num_trials={NUM_TRIALS}",
    "search.num_sobol=3",
]


@dataclass
class Server:
    """An MLflow server on loopback."""

    uri: str
    process: subprocess.Popen[bytes]

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder}/server.db"),
        *("--artifacts-destination", f"{folder}/artifacts"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
        )
    found = Server(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                with urllib.request.urlopen(f"{found.uri}/health", timeout=5) as answer:  # noqa: S310
                    assert answer.read() == b"OK"
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield found
    finally:
        found.end()


@dataclass
class Searched:
    """A run, the messages said, and the folder of Ray's own logs."""

    run: Run
    said: list[str]
    session: Path
    uri: str


class Watcher:
    def __init__(self) -> None:
        self.said: list[str] = []

    def started(self, run: Run, experiment: Experiment) -> None: ...
    def trial(self, event: Any) -> None: ...
    def phase(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def searched(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    chosen = "trackers={tensorboard: true, mlflow: '%s', wandb: {project: few, mode: offline}}"
    experiment = load_experiment("pen-maml", [*SEARCH, chosen % server.uri])
    root, watcher = tmp_path_factory.mktemp("runs"), Watcher()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CANARIES.items():
            patch.setenv(name, value)
        with local_ray(2):
            session = Path(ray._private.worker._global_node.get_session_dir_path())
            report = api.tune(experiment, runs_dir=root, name="tracked", watcher=watcher)
        yield Searched(report.run, watcher.said, session, server.uri)


def values_of(run: Run) -> list[dict[str, Any]]:
    """Returns each searched key with its value; every trial shows them, whatever its learner."""
    own = [record.point for record in logged_trials(run).records.values()]
    given = run.experiment().maml.inner_lr
    return [{"maml.inner_lr": given, **point} for point in own]


@pytest.mark.slow
@pytest.mark.ray
class TestOneSearch:
    def test_no_tracker_failed(self, searched: Searched) -> None:
        assert not [text for text in searched.said if "left out" in text or "no model" in text]

    def test_tensorboard_has_curves_and_all_hyperparameters_of_every_trial(
        self, searched: Searched
    ) -> None:
        files = Path(str(searched.run.tune_dir)).glob("*/events.out.tfevents.*")
        folders = {file.parent for file in files}
        assert len(folders) == NUM_TRIALS
        found = []
        for folder in folders:  # a trial that was restarted has several files
            events = EventAccumulator(str(folder)).Reload()
            scalars = events.Scalars("ray/tune/val_accuracy")
            assert [point.step for point in scalars] == [3, 6]
            content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
            data = plugin_data_pb2.HParamsPluginData.FromString(content)
            hparams = data.session_start_info.hparams
            found.append({name: value.WhichOneof("kind") for name, value in hparams.items()})
        kinds = {"learner": "string_value", "maml.inner_lr": "number_value"}
        assert found == [kinds] * NUM_TRIALS

    def test_the_mlflow_server_has_every_trial_and_the_meta_test(self, searched: Searched) -> None:
        client = mlflow.MlflowClient(searched.uri)
        experiment = client.get_experiment_by_name(searched.run.experiment().name)
        runs = client.search_runs([experiment.experiment_id])
        trials = [run for run in runs if run.data.tags["part"] == "search"]
        expected = [{k: str(v) for k, v in point.items()} for point in values_of(searched.run)]
        params = [run.data.params for run in trials]
        assert sorted(map(str, map(sorted, map(dict.items, params)))) == sorted(
            map(str, map(sorted, map(dict.items, expected)))
        )
        assert {run.info.run_name for run in trials} == set(logged_trials(searched.run).records)
        assert {run.info.status for run in trials} == {"FINISHED"}
        curve = client.get_metric_history(trials[0].info.run_id, "val_accuracy")
        assert [point.step for point in curve] == [3, 6]
        (tested,) = [run for run in runs if run.data.tags["part"] == "meta-test"]
        result = read_results(searched.run)
        assert result is not None
        assert tested.data.metrics["tuned/accuracy"] == pytest.approx(result.rows[0].score.mean)
        files = [file.path for file in client.list_artifacts(tested.info.run_id)]
        assert "report.html" in files

    def test_the_model_on_the_server_answers_as_the_run_does(self, searched: Searched) -> None:
        mlflow.set_tracking_uri(searched.uri)
        client = mlflow.MlflowClient(searched.uri)
        experiment = client.get_experiment_by_name(searched.run.experiment().name)
        (model,) = client.search_logged_models([experiment.experiment_id])
        assert_same_answers(mlflow.pyfunc.load_model(model.model_uri), searched.run)

    def test_a_database_in_a_folder_serves_as_well(
        self, searched: Searched, tmp_path: Path
    ) -> None:
        run, said = searched.run, list[str]()
        result, page = read_results(run), run.path / REPORT_FILE
        assert result is not None
        experiment = with_values(run.experiment(), {"trackers.mlflow": str(tmp_path / "kept")})
        track_meta_test(run, experiment, result, page, said.append)
        assert said == []
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/kept/mlflow.db")
        (model,) = client.search_logged_models(
            [client.get_experiment_by_name(experiment.name).experiment_id]
        )
        assert_same_answers(mlflow.pyfunc.load_model(model.model_uri), run)
        assert list((tmp_path / "kept" / "artifacts").iterdir())

    def test_wandb_has_every_trial_offline(self, searched: Searched) -> None:
        files = sorted(Path(str(searched.run.path)).glob("wandb/offline-run-*/*.wandb"))
        assert len(files) == NUM_TRIALS
        points = []
        for file in files:
            records = list(wandb_records(file))
            (begun,) = [r.run for r in records if r.HasField("run")]
            assert begun.project == "few"
            assert begun.run_group == "tracked"
            config = {item.key: item.value_json for item in begun.config.update}
            points.append({"maml.inner_lr", "learner"} <= config.keys())
            history = [r.history for r in records if r.HasField("history")]
            assert len(history) == 2
        assert all(points)

    def test_no_secret_is_in_any_file_or_log(self, searched: Searched) -> None:
        folders = [Path(str(searched.run.path)), searched.session]
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        assert len(files) > 50
        for file in files:
            content = file.read_bytes()
            assert not [name for name, key in CANARIES.items() if key.encode() in content], file
        assert not [text for text in searched.said if "canary" in text]

    def test_a_server_that_is_gone_is_said_once(self, searched: Searched, server: Server) -> None:
        server.end()
        said: list[str] = []
        tracker = Tracker(
            "mlflow",
            lambda: trackers._mlflow_callback(searched.run.experiment(), searched.run),
            searched.run.experiment(),
            said.append,
        )
        tracker.setup()
        trial: Any = SimpleNamespace(trial_id="one", config={"maml.inner_lr": 0.1})
        tracker.on_trial_start(trial=trial, iteration=0, trials=[trial])
        tracker.on_trial_complete(trial=trial, iteration=0, trials=[trial])
        (text,) = said
        assert text.startswith("trackers.mlflow failed and is left out: ")
        assert text.endswith("; the run goes on without it")


def wandb_records(file: Path) -> Iterator[Any]:
    """Reads the records of a file in LevelDB's log format: blocks of 32 KiB, in chunks."""
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last chunk
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def assert_same_answers(loaded: Any, run: Run) -> None:
    table = characters()
    asked = table["class"].isna()
    adapted = raymeta.load(run.path).adapt(table[~asked])
    expected = adapted.predict_proba(table[asked].drop(columns="class"))
    found = loaded.predict(table)
    labels = adapted.labels
    assert labels is not None
    probabilities = found[[f"probability_{name}" for name in labels]].to_numpy()
    np.testing.assert_array_equal(probabilities, expected)
    assert found["prediction"].tolist() == labels[expected.argmax(axis=1)].tolist()


def characters() -> pd.DataFrame:
    """Makes lines of a pen: five of known classes, four that are asked for."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(9):
        points = rng.normal(size=(6, 2)).cumsum(axis=0)
        label = f"c{number}" if number < 5 else None
        rows += [
            {"sequence": f"s{number}", "x": x, "y": y, "stroke": 0, "class": label}
            for x, y in points.tolist()
        ]
    return pd.DataFrame(rows)


def test_a_pyfunc_model_needs_a_support_set_and_something_to_answer() -> None:
    trained: Any = SimpleNamespace(inputs=SimpleNamespace(target="class"))
    model = AdaptingModel(SimpleNamespace(trained=trained))  # type: ignore[arg-type]
    table = characters()
    with pytest.raises(DataError, match="must have the column class"):
        model.predict(table.drop(columns="class"))
    with pytest.raises(DataError, match="is filled in 30 of 30 rows"):
        model.predict(table[table["class"].notna()])


def test_a_tracker_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    check_trackers(tiny_experiment())
    with pytest.raises(ExperimentError, match=r"trackers.wandb needs the package wandb.*pip"):
        check_trackers(tiny_experiment("trackers.wandb={project: one}"))


@pytest.mark.parametrize(
    ("value", "fragment"),
    [
        ("https://me:canary@host/", "must hold no user, password or query"),
        ("https://host/?token=canary", "must hold no user, password or query"),
        ("ftp://host/", "must be a folder, or begin with http"),
    ],
)
def test_a_place_of_mlflow_with_a_secret_is_refused_without_showing_it(
    value: str, fragment: str
) -> None:
    with pytest.raises(ExperimentError) as error:
        tiny_experiment(f"trackers.mlflow='{value}'")
    assert fragment in str(error.value)
    assert "canary" not in str(error.value)


@dataclass(eq=False)
class LocalTrial:
    """The attributes of a trial that TensorBoard's callback reads."""

    trial_id: str
    config: dict[str, Any]
    local_path: str

    def init_local_path(self) -> None: ...


def test_keys_of_other_learners_are_shown_and_a_restart_loses_nothing(tmp_path: Path) -> None:
    tracker = Tracker("tensorboard", TBXLoggerCallback, load_experiment("pen-maml", SEARCH), print)
    config = {"experiment": {}, "learner": "prototypes"}
    trial: Any = LocalTrial(trial_id="one", config=config, local_path=str(tmp_path))
    about: dict[str, Any] = {"trial": trial, "iteration": 0, "trials": [trial]}
    tracker.setup()
    for step in (3, 6):
        tracker.on_trial_start(**about)
        result = {"meta_steps": step, "val_accuracy": step / 10, "pid": 7, "val_loss": float("nan")}
        tracker.on_trial_result(result=result, **about)
    tracker.on_trial_complete(**about)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Scalars("ray/tune/val_accuracy")[-1].step == 6
    assert not [tag for tag in events.Tags()["scalars"] if "pid" in tag or "loss" in tag]
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["learner"].string_value == "prototypes"
    given = load_experiment("pen-maml", SEARCH).maml.inner_lr
    assert hparams["maml.inner_lr"].number_value == pytest.approx(given)


class Failing:
    """A callback whose library fails at the first result, with a key in its message."""

    def setup(self, **_: Any) -> None: ...
    def on_trial_start(self, **_: Any) -> None: ...
    def on_trial_result(self, **_: Any) -> None:
        raise ConnectionError(f"refused for {os.environ['WANDB_API_KEY']}\nmore")


def test_a_tracker_that_fails_is_left_out_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-key")
    said: list[str] = []
    make: Any = Failing
    tracker = Tracker("wandb", make, tiny_experiment(), said.append)
    trial: Any = SimpleNamespace(trial_id="one", config={})
    tracker.setup()
    tracker.on_trial_start(trial=trial, iteration=0, trials=[])
    for _ in range(3):
        tracker.on_trial_result(trial=trial, result={"meta_steps": 3}, iteration=0, trials=[])
    (text,) = said
    assert text == (
        "trackers.wandb failed and is left out: ConnectionError: refused for $WANDB_API_KEY; "
        "the run goes on without it"
    )


def test_trackers_may_be_left_out_but_not_added_before_a_run_goes_on(tmp_path: Path) -> None:
    begun = with_values(tiny_experiment(), {"trackers.mlflow": "http://127.0.0.1:1"})
    run = Run.create(tmp_path, begun, "one", fingerprint="data")
    assert run.origin is not None
    run.origin.check_trackers(begun.trackers, run.path)
    run.origin.check_trackers(Trackers(), run.path)
    for values in (
        {"trackers.mlflow": "http://127.0.0.1:2"},
        {"trackers.wandb": {"project": "theirs"}},
    ):
        edited = with_values(begun, values)
        Path(str(run.experiment_file)).write_text(to_yaml(edited))
        run.origin.check_experiment(run.unresolved_experiment(), run.path)
        (key,) = values
        with pytest.raises(RunError, match=f"{key} is .*, at the beginning .*add --trust"):
            api.tune(resume=str(run.path))
        with pytest.raises(RunError, match="its data are not those"):  # the next check
            api.tune(resume=str(run.path), trust=True)
