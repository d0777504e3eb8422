"""Forecasts as the server answers them, without HTTP; `test_server.py` asks over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raymeta
from raymeta.inference.files import open_network
from raymeta.inference.forecaster import Forecaster
from raymeta.run_folder import Run
from raymeta.serving.arrow import stream_of
from raymeta.serving.bodies import ARROW, JSON
from raymeta.serving.forecasts import ForecastService
from raymeta.serving.settings import Limits
from tests.inference.test_forecaster import forecast_run, history

SHOPS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return forecast_run(tmp_path_factory.mktemp("served"), "learner=ridge")


@pytest.fixture(scope="module")
def forecaster(run: Run) -> Forecaster:
    opened = open_network(str(run.path))
    assert isinstance(opened, Forecaster)
    return opened


@pytest.fixture
def service(forecaster: Forecaster) -> ForecastService:
    return ForecastService(forecaster=forecaster, limits=Limits())


def columns(**changes: Any) -> dict[str, Any]:
    frame = history(shops=SHOPS).assign(day=lambda rows: rows["day"].astype(str))
    return {**{str(name): rows.tolist() for name, rows in frame.items()}, **changes}


def body(**changes: Any) -> bytes:
    return json.dumps({"history": columns(**changes)}).encode()


def test_json_and_arrow_have_the_forecasts_of_python(service: ForecastService) -> None:
    frame = history(shops=SHOPS)
    expected = service.forecaster.forecast(frame)
    answer = service.forecast(body(), JSON, None)
    assert (answer.status, answer.kind) == (200, JSON)
    found = json.loads(answer.body)
    assert found["warnings"] == []
    assert found["forecasts"]["forecast"] == pytest.approx(expected.point.ravel(), rel=1e-9)
    names = np.repeat(np.array(expected.series), expected.point.shape[1])
    assert found["forecasts"]["shop"] == names.tolist()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    answer = service.forecast(stream_of(table), ARROW, ARROW)
    assert (answer.status, answer.kind) == (200, ARROW)
    assert pa.ipc.open_stream(answer.body).read_all().equals(expected.to_table())


def test_the_model_says_what_a_history_must_have(service: ForecastService) -> None:
    found = json.loads(service.describe().body)
    assert set(found["columns"]) == {"shop", "day", "sales", "price"}
    assert (found["horizon"], found["target"]) == (4, "sales")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"{", "is no JSON"),
        (b"{}", "history is required"),
        (b'{"history": {}, "x": 1}', "'x' is not a known key"),
        (b'{"history": []}', "history must be an object with a list for each column"),
        (body(price=3), "column 'price': must be a list"),
        (body(price=[[1.0]]), "a value must be a number or a text"),
        (body(price=[1, "a"]), "all values must be numbers, or all texts"),
        (body(price=[10**400] * 90), "column 'price'"),
        (body(price=[1.0]), "its columns must be of one length"),
        (body(price=["a"] * 90), "column price"),
        (json.dumps({"history": {"shop": ["a"]}}).encode(), "has no column 'day'"),
        (json.dumps({"history": columns(), "known": columns()}).encode(), "leave `known`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_body_that_breaks_a_rule_gets_one_message(
    service: ForecastService, sent: bytes, message: str
) -> None:
    answer = service.forecast(sent, JSON, None)
    assert answer.status == 400
    error = json.loads(answer.body)["error"]
    assert message in error
    assert len(error) < 1500


def test_a_body_above_the_limits_is_refused(forecaster: Forecaster) -> None:
    small = ForecastService(forecaster=forecaster, limits=Limits(body_bytes=100))
    assert small.forecast(body(), JSON, None).status == 413
    few = ForecastService(forecaster=forecaster, limits=Limits(examples=2, time_steps=10))
    answer = few.forecast(body(), JSON, None)
    assert (answer.status, "at most 20 values" in str(answer.body)) == (400, True)


def test_a_network_of_forecasts_answers_nothing_else(service: ForecastService) -> None:
    answer = service.refusal()
    assert (answer.status, "POST /forecast" in str(answer.body)) == (404, True)


def test_a_shared_folder_of_forecasts_opens_too(
    run: Run, forecaster: Forecaster, tmp_path: Path
) -> None:
    raymeta.write_hub_folder(run.path, tmp_path / "shared")
    opened = open_network(tmp_path / "shared")
    assert isinstance(opened, Forecaster)
    frame = history(shops=1)
    assert opened.forecast(frame).point.tolist() == forecaster.forecast(frame).point.tolist()
