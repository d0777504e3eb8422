"""Tells MLflow the meta-test of a run, its page, and its network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from raymeta.errors import RunError
from raymeta.evaluation.calibration import CALIBRATION_FILE
from raymeta.evaluation.familiarity import FAMILIARITY_FILE
from raymeta.evaluation.networks import REFIT_FILE
from raymeta.evaluation.scores import MetaTest
from raymeta.experiment.schema import Experiment
from raymeta.inference.files import load
from raymeta.run_folder import Run
from raymeta.run_format import FORMAT_FILE
from raymeta.search.trackers import left_out
from raymeta.storage.mlflow import mlflow_experiment, mlflow_uri
from raymeta.storage.paths import AnyPath, list_matching

_FILES = (
    *("experiment.yaml", "best.yaml", FORMAT_FILE, REFIT_FILE),
    *(CALIBRATION_FILE, FAMILIARITY_FILE),
)


def track_meta_test(
    run: Run, experiment: Experiment, result: MetaTest, page: AnyPath, say: Callable[[str], object]
) -> None:
    """Tells MLflow, if the experiment names one; `say` receives why it could not be told.

    The run of MLflow's has the score of each row as a metric, the report as a file, and the network
    as the model `model`, which `mlflow.pyfunc.load_model` loads; see `raymeta.tracking.pyfunc`.
    """
    if experiment.trackers.mlflow is None:
        return
    try:
        _track(run, experiment, result, page, say)
    except Exception as error:  # noqa: BLE001  (a tracker must not end a run, however it fails; it is said)
        say(left_out("trackers.mlflow", error))


def _track(
    run: Run, experiment: Experiment, result: MetaTest, page: AnyPath, say: Callable[[str], object]
) -> None:
    import mlflow  # noqa: PLC0415  (an extra)

    assert experiment.trackers.mlflow is not None
    uri = mlflow_uri(experiment.trackers.mlflow)
    mlflow.set_tracking_uri(uri)
    number = mlflow_experiment(uri, experiment.name)
    tags = {"run": run.path.name, "part": "meta-test"}
    with mlflow.start_run(experiment_id=number, run_name=run.path.name, tags=tags):
        mlflow.log_metrics(_metrics(result))
        mlflow.log_param("meta_test", result.metric)
        with TemporaryDirectory() as folder:
            copy = Path(folder) / page.name
            copy.write_bytes(page.read_bytes())
            mlflow.log_artifact(str(copy))
            try:
                load(run.path)
            except RunError as error:
                say(f"trackers.mlflow: no model is logged: {error}")
                return
            mlflow.pyfunc.log_model(
                name="model",
                loader_module="raymeta.tracking.pyfunc",
                data_path=str(_model_folder(run, Path(folder) / run.path.name)),
                pip_requirements=[f"raymeta=={version('raymeta')}"],
            )


def _metrics(result: MetaTest) -> dict[str, float]:
    found: dict[str, float | None] = {}
    for row in result.rows:
        name = re.sub(r"[^\w./ -]", "_", row.name)
        found[f"{name}/{result.metric}"] = row.score.mean
        found[f"{name}/half_width"] = row.score.half_width
        if row.ahead is not None:
            found[f"{name}/ahead_by"] = row.ahead.mean
            found[f"{name}/ahead_by_half_width"] = row.ahead.half_width
    return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}


def _model_folder(run: Run, folder: Path) -> Path:
    """Copies the files that a run's network needs into a folder, and returns it."""
    (folder / "models").mkdir(parents=True)
    files = [run.path / name for name in _FILES if (run.path / name).is_file()]
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    for file in list_matching(run.path / "models", "tuned*.safetensors"):
        (folder / "models" / file.name).write_bytes(file.read_bytes())
    return folder
