"""MLflow's stores: where runs and their files go, without a word to anybody else."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

# A server that is gone must not hold up a search for the minutes that MLflow would wait.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "GIT_PYTHON_REFRESH": "quiet",
}
DATABASE = "mlflow.db"  # in a folder


def mlflow_uri(place: str) -> str:
    """MLflow's URI of a server, a database or a folder; a folder gets a database."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    parts = urlsplit(place)
    if parts.scheme in ("http", "https"):
        return place
    if parts.scheme == "sqlite":
        file = Path(place.removeprefix("sqlite:///"))
    else:
        file = Path(parts.path if parts.scheme == "file" else place) / DATABASE
    file = file.expanduser().absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file}"


def mlflow_experiment(uri: str, name: str) -> str:
    """The id of MLflow's experiment of this name; a new one keeps its files beside the database."""
    from mlflow import MlflowClient  # noqa: PLC0415  (an extra)

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    beside = None
    if uri.startswith("sqlite:///"):
        beside = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=beside))
