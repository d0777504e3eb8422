"""The server's answers to requests, without HTTP and without Ray."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from fastapi.openapi.utils import get_openapi
from jsonschema import Draft202012Validator  # type: ignore[import-untyped, unused-ignore]
from typer.testing import CliRunner

import raymeta
from raymeta.cli import app
from raymeta.errors import MAX_MESSAGE, ResourceError, RunError
from raymeta.evaluation.calibration import Calibration
from raymeta.serving import openapi, server
from raymeta.serving.app import TOKEN_VARIABLE, api, build
from raymeta.serving.bodies import ARROW, JSON
from raymeta.serving.server import _check_address, _token
from raymeta.serving.service import Answer, Service
from raymeta.serving.settings import Limits, ServeSettings
from raymeta.serving.tasks import KeptTasks, end_of, new_id
from tests.inference.conftest import make_run
from tests.inference.test_attribution import task_of

KEEP_S = 100
ROWS = pa.table(
    {"recording": ["a", "a"], "second": [0, 1], "volt": [1.0, 2.0], "ampere": [0.5, 0.1]}
)


class Time:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module", params=["table", "sinusoid", "text", "pen"])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Makes the run folders of each requested source."""
    return {"": str(tmp_path_factory.mktemp("runs"))}


@pytest.fixture
def service_of(folders: dict[str, str], tmp_path: Path) -> Any:
    def make(source: str = "table", most: int = 3, **limits: int) -> Service:
        if source not in folders:
            learner = "maml" if source == "sinusoid" else "prototypes"
            made = make_run(Path(folders[""]) / source, source, f"learner={learner}")
            folders[source] = str(made.path)
        tasks = KeptTasks(tmp_path / "kept", most, Time())
        return Service(model=raymeta.load(folders[source]), tasks=tasks, limits=Limits(**limits))

    return make


def body_of(source: str, num: int, seed: int = 0, *, with_targets: bool) -> bytes:
    x, y = task_of(source, num, seed)
    found: dict[str, Any] = {"x": [one if isinstance(one, str) else one.tolist() for one in x]}
    if with_targets:
        found["y"] = [value if isinstance(value, str | int) else float(value) for value in y]
    return json.dumps(found).encode()


def keep(service: Service, source: str = "table") -> str:
    """Adapts to a task and keeps it; returns its id."""
    task_id = new_id(KEEP_S, service.tasks.clock())
    answer = service.adapt(task_id, body_of(source, 10, with_targets=True), JSON)
    assert answer.status == 201, answer.body
    return task_id


def error(answer: Answer) -> str:
    assert answer.kind == JSON
    message = str(json.loads(answer.body)["error"])
    assert len(message) <= MAX_MESSAGE
    return message


def test_every_source_is_served_as_it_predicts_in_process(service_of: Any, source: str) -> None:
    service = service_of(source)
    task_id = keep(service, source)
    found = json.loads(
        service.predict(task_id, body_of(source, 4, 1, with_targets=False), JSON, None).body
    )
    adapted = service.model.adapt(*task_of(source, 10))
    x = task_of(source, 4, 1)[0]
    if adapted.labels is None:
        np.testing.assert_allclose(found["predictions"], adapted.predict(x), rtol=1e-9)
        return
    assert found["predictions"] == adapted.predict(x).tolist()
    np.testing.assert_allclose(found["probabilities"], adapted.predict_proba(x), rtol=1e-9)


def test_a_coverage_gives_sets_or_intervals_in_json_as_in_arrow(
    service_of: Any, source: str
) -> None:
    service = service_of(source)
    is_regression = source == "sinusoid"
    rows = tuple(tuple(row) for row in np.random.default_rng(0).uniform(size=(19, 3)).tolist())
    known = Calibration(residuals=(rows,)) if is_regression else Calibration(1.0, rows)
    refused = service.predict(
        keep(service, source), body_of(source, 4, 1, with_targets=False), JSON, None, "0.9"
    )
    assert refused.status == 400
    assert "was not calibrated" in error(refused)

    service = replace(service, model=replace(service.model, calibration=known))
    task_id, x = keep(service, source), task_of(source, 4, 1)[0]
    body = body_of(source, 4, 1, with_targets=False)
    adapted = service.tasks.get(task_id)
    for coverage in (0.5, 0.99):  # the second has no threshold
        found = json.loads(service.predict(task_id, body, JSON, None, str(coverage)).body)
        arrow = service.predict(task_id, body, JSON, ARROW, str(coverage)).body
        table = pa.ipc.open_stream(arrow).read_all()
        if is_regression:
            ends = dict(
                zip(("lower", "upper"), adapted.predict_interval(x, coverage=coverage), strict=True)
            )
            for name, end in ends.items():
                wanted = end.tolist() if coverage == 0.5 else [None] * 4
                assert found[name] == wanted
                np.testing.assert_array_equal(table[name].to_numpy(), end)
            continue
        sets = adapted.predict_set(x, coverage=coverage)
        assert found["sets"] == [one.tolist() for one in sets]
        members = [[table[f"in_set_{k}"][n].as_py() for k in found["classes"]] for n in range(4)]
        assert found["sets"] == [
            [k for k, is_in in zip(found["classes"], row, strict=True) if is_in] for row in members
        ]
    for wrong in ("1", "nan", "much", ""):
        answer = service.predict(task_id, body, JSON, None, wrong)
        assert answer.status == 400
        assert "coverage must be a number > 0 and < 1" in error(answer)
    assert "sets" not in json.loads(service.predict(task_id, body, JSON, None).body)


def batch_of(source: str, *sizes: int) -> bytes:
    bodies = [
        json.loads(body_of(source, size, seed, with_targets=True))
        for seed, size in enumerate(sizes)
    ]
    return json.dumps({"tasks": bodies}).encode()


def test_many_tasks_are_adapted_at_once_as_each_alone(service_of: Any, source: str) -> None:
    service = service_of(source)
    first = new_id(KEEP_S, service.tasks.clock())
    answer = service.adapt_many(first, batch_of(source, 10, 10, 12), JSON)
    assert answer.status == 201, answer.body
    told = json.loads(answer.body)
    assert [task["num_examples"] for task in told["tasks"]] == [10, 10, 12]
    queries = body_of(source, 4, 9, with_targets=False)
    for seed, task in enumerate(told["tasks"]):
        assert end_of(task["id"]) == end_of(first)
        alone = service.model.adapt(*task_of(source, task["num_examples"], seed))
        found = json.loads(service.predict(task["id"], queries, JSON, None).body)
        x = task_of(source, 4, 9)[0]
        if alone.labels is None:
            np.testing.assert_allclose(found["predictions"], alone.predict(x), rtol=1e-6)
        else:
            np.testing.assert_allclose(found["probabilities"], alone.predict_proba(x), atol=1e-6)
            assert task["classes"] == alone.labels.tolist()
    # To be asked twice, as after the death of a replica, takes no more room.
    again = json.loads(service.adapt_many(first, batch_of(source, 10, 10, 12), JSON).body)
    assert [t["id"] for t in again["tasks"]] == [t["id"] for t in told["tasks"]]
    assert service.tasks.count() == 3


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        ({"tasks": []}, JSON, 400, "tasks must be a list of tasks"),
        ({"tasks": {}}, JSON, 400, "tasks must be a list of tasks"),
        ({"x": [], "y": []}, JSON, 400, "tasks is required"),
        ({"tasks": [1]}, JSON, 400, "task 1: must be an object with x and y, but is 1"),
        ({"tasks": [{"x": [[[1, 2]]]}]}, JSON, 400, "task 1: the body: y is required"),
        ("good, bad", JSON, 400, "task 2: y must have 2 classes at least"),
        ("good, good, good, good", JSON, 400, "at most 3 tasks, but the request has 4"),
        ("good, good, long", JSON, 400, "at most 20 examples in a request, but task 3"),
        ("good", "text/csv", 415, "Content-Type must be application/json or application/vnd"),
    ],
)
def test_a_broken_batch_keeps_none_of_its_tasks(
    service_of: Any, body: Any, kind: str, status: int, message: str
) -> None:
    service = service_of(batch_examples=20)
    if isinstance(body, str):
        good, long = (json.loads(body_of("table", num, with_targets=True)) for num in (5, 12))
        bad = {**good, "y": ["a"] * 5}
        named = {"good": good, "bad": bad, "long": long}
        body = {"tasks": [named[name] for name in body.split(", ")]}
    first = new_id(KEEP_S, service.tasks.clock())
    answer = service.adapt_many(first, json.dumps(body).encode(), kind)
    assert answer.status == status, answer.body
    assert message in error(answer)
    assert service.tasks.count() == 0


def keep_many(service: Service, source: str, *sizes: int) -> list[str]:
    """Adapts to tasks at once and keeps them; returns their ids."""
    first = new_id(KEEP_S, service.tasks.clock())
    answer = service.adapt_many(first, batch_of(source, *sizes), JSON)
    assert answer.status == 201, answer.body
    return [task["id"] for task in json.loads(answer.body)["tasks"]]


def asked_of(source: str, **sizes: int) -> bytes:
    """A request for as many examples of each task, by its id."""
    bodies = [
        {"id": task_id, **json.loads(body_of(source, size, 20 + seed, with_targets=False))}
        for seed, (task_id, size) in enumerate(sizes.items())
    ]
    return json.dumps({"tasks": bodies}).encode()


def test_many_tasks_are_predicted_at_once_as_each_alone(service_of: Any, source: str) -> None:
    service = service_of(source)
    ids = keep_many(service, source, 10, 10, 12)
    sizes = dict(zip(ids, (4, 4, 3), strict=True))
    body = asked_of(source, **sizes)
    answer = service.predict_many(body, JSON, None)
    assert answer.status == 200, answer.body
    found = json.loads(answer.body)["tasks"]
    assert [one["id"] for one in found] == ids
    arrow = service.predict_many(body, JSON, ARROW)
    assert arrow.kind == ARROW
    rows = pa.ipc.open_stream(arrow.body).read_all()
    assert rows["task"].to_pylist() == [name for name, size in sizes.items() for _ in range(size)]
    for one, sent in zip(found, json.loads(body)["tasks"], strict=True):
        alone = json.dumps({"x": sent["x"]}).encode()
        wanted = json.loads(service.predict(one["id"], alone, JSON, None).body)
        assert one.keys() == {"id", *wanted}
        own = rows.filter(pa.compute.equal(rows["task"], one["id"]))
        if "classes" not in wanted:
            np.testing.assert_allclose(one["predictions"], wanted["predictions"], rtol=1e-6)
            np.testing.assert_array_equal(own["prediction"].to_pylist(), one["predictions"])
            continue
        assert one["classes"] == wanted["classes"]
        np.testing.assert_allclose(one["probabilities"], wanted["probabilities"], atol=1e-6)
        chances = [own[f"probability_{label}"].to_pylist() for label in one["classes"]]
        np.testing.assert_array_equal(np.transpose(chances), one["probabilities"])


def test_tasks_with_other_classes_share_a_table_up_to_a_limit(service_of: Any) -> None:
    service = service_of(classes=5)
    x = json.loads(body_of("table", 4, with_targets=False))["x"]
    supports = [{"x": x, "y": y} for y in (["a", "a", "b", "b"], [7, 7, 8, 9], ["c", "d"] * 2)]
    first = new_id(KEEP_S, service.tasks.clock())
    sent = json.dumps({"tasks": supports}).encode()
    ids = [task["id"] for task in json.loads(service.adapt_many(first, sent, JSON).body)["tasks"]]
    body = json.dumps({"tasks": [{"id": name, "x": x[:1]} for name in ids[:2]]}).encode()
    rows = pa.ipc.open_stream(service.predict_many(body, JSON, ARROW).body).read_all()
    text, number = rows["prediction"].to_pylist()
    assert text in ("a", "b")
    assert number in ("7", "8", "9")
    assert rows["probability_a"].to_pylist()[1] is None
    assert rows["probability_7"].to_pylist()[0] is None
    body = json.dumps({"tasks": [{"id": name, "x": x[:1]} for name in ids]}).encode()
    refused = service.predict_many(body, JSON, ARROW)
    assert refused.status == 400
    assert "at most 5 classes together, but have 7; accept application/json" in error(refused)
    assert service.predict_many(body, JSON, JSON).status == 200


def test_streams_of_arrow_name_the_task_of_each_row(service_of: Any) -> None:
    service = service_of()
    x, y = task_of("table", 6)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("task", "recording", "kind", "second", "volt", "ampere")
    }
    for task in ("second", "first"):  # in any order, and of each other's recordings
        for number, (one, label) in enumerate(zip(x, y, strict=True)):
            columns["task"] += [task] * len(one)
            columns["recording"] += [f"r{number}"] * len(one)
            columns["kind"] += [label] * len(one)
            columns["second"] += list(range(len(one)))
            columns["volt"] += one[:, 0].tolist()
            columns["ampere"] += one[:, 1].tolist()
    table = pa.table(columns)
    mixed = table.take(np.random.default_rng(0).permutation(table.num_rows))
    first = new_id(KEEP_S, service.tasks.clock())
    answer = service.adapt_many(first, stream(mixed), ARROW)
    assert answer.status == 201, answer.body
    tasks = {task["task"]: task for task in json.loads(answer.body)["tasks"]}
    assert tasks.keys() == {"first", "second"}
    assert all(task["num_examples"] == 6 for task in tasks.values())

    ids = [tasks[name]["id"] for name in columns["task"]]
    asked = table.set_column(0, "task", [ids]).drop_columns("kind")
    answer = service.predict_many(stream(asked), ARROW, ARROW)
    assert answer.status == 200, answer.body
    rows = pa.ipc.open_stream(answer.body).read_all()
    assert rows.schema.names[:3] == ["task", "recording", "prediction"]
    assert rows["task"].to_pylist() == [tasks["second"]["id"]] * 6 + [tasks["first"]["id"]] * 6
    alone = service.model.adapt(x, y)
    for start in (0, 6):
        own = rows.slice(start, 6)
        chances = [own[f"probability_kind {n}"].to_pylist() for n in range(3)]
        order = [int(name[1:]) for name in own["recording"].to_pylist()]
        wanted = alone.predict_proba([x[number] for number in order])
        np.testing.assert_allclose(np.transpose(chances), wanted, atol=1e-6)

    for broken, message in (
        (ROWS, "must have one column 'task' that names the task of each row, but has 0"),
        (ROWS.append_column("task", [["a", None]]), "row 2: column 'task' is empty"),
        (ROWS.append_column("task", [[0.5, 1.5]]), "must have text or whole numbers, but has"),
        (ROWS.append_column("task", [["a", "a"]]).slice(0, 0), "has no rows"),
        (ROWS.append_column("task", [["a", "b"]]), "task 'a': its rows: has no column 'kind'"),
    ):
        answer = service.adapt_many(first, stream(broken), ARROW)
        assert answer.status == 400, answer.body
        assert message in error(answer)
    answer = service.predict_many(stream(ROWS.append_column("task", [["a", "b"]])), ARROW, JSON)
    assert answer.status == 404
    assert error(answer).startswith("task 'a': there is no such task")


@pytest.mark.parametrize(
    ("tasks", "status", "message"),
    [
        ([], 400, "tasks must be a list of tasks"),
        (["good", 1], 400, "task 2: must be an object with id and x, but is 1"),
        ([{"x": [[[1, 2]]]}], 400, "task 1: id must be the id of a task, as text, but is None"),
        (["good", {"id": "a" * 9, "x": [[[1, 2]]]}], 404, "task 2: there is no such task"),
        (["good", {"y": ["a"]}], 400, "task 2: the body: 'y' is not a known key; the targets"),
        ([{"x": [[[1]]]}], 400, "task 1: example 1: must be numbers"),
        ([{"x": [[[1, 2]]] * 9}], 400, "task 1: there may be at most 8 examples in a request"),
        (["good", "good", "good"], 400, "at most 10 examples in a request, but task 3 is beyond"),
        ([{"x": [[[1e300, 1e300]]]}], 400, "task 1: example 1: holds numbers too large"),
    ],
)
def test_a_broken_request_for_many_tasks_is_refused_whole(
    service_of: Any, tasks: list[Any], status: int, message: str
) -> None:
    service = service_of(batch_examples=10, examples=8)
    task_id = new_id(KEEP_S, service.tasks.clock())
    service.adapt(task_id, body_of("table", 6, with_targets=True), JSON)
    good = {"id": task_id, "x": [[[1.0, 2.0]]] * 4}
    sent = [
        good if one == "good" else {**good, **one} if isinstance(one, dict) else one
        for one in tasks
    ]
    if message.startswith("task 1: id"):
        del sent[0]["id"]
    answer = service.predict_many(json.dumps({"tasks": sent}).encode(), JSON, None)
    assert answer.status == status, answer.body
    assert message in error(answer)


def test_many_tasks_may_name_more_networks_than_are_kept_in_memory(
    service_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymeta.serving.service.MOST_OPEN", 2)
    monkeypatch.setattr("raymeta.serving.tasks.MOST_OPEN", 2)
    service = service_of(most=5)
    ids = keep_many(service, "table", 10, 10, 10, 10, 10)
    body = asked_of("table", **dict.fromkeys(ids, 1))
    found = json.loads(service.predict_many(body, JSON, None).body)["tasks"]
    assert [one["id"] for one in found] == ids
    assert service.predict_many(body, "text/csv", None).status == 415
    assert service.predict_many(body, JSON, "text/csv").status == 406
    assert service.predict_many(body, JSON, None, "2").status == 400


def test_a_batch_waits_until_there_is_room_for_all_of_it(service_of: Any) -> None:
    service = service_of()
    keep(service)
    service.tasks.clock.now += 10
    keep(service)
    first = new_id(KEEP_S, service.tasks.clock())
    full = service.adapt_many(first, batch_of("table", 10, 10, 10), JSON)
    assert full.status == 429
    assert f"delete 2, or wait {KEEP_S} s until so many have ended" in error(full)
    assert service.tasks.count() == 2


def test_a_task_is_reported_with_its_end_and_its_warnings(service_of: Any) -> None:
    service = service_of()
    task_id = new_id(KEEP_S, service.tasks.clock())
    x, y = task_of("table", 3)
    few = json.dumps({"x": [one.tolist() for one in x], "y": y}).encode()
    told = json.loads(service.adapt(task_id, few, JSON).body)
    assert told["id"] == task_id
    assert "1 support examples" in told["warnings"][0]
    assert json.loads(service.task(task_id).body)["expires"] == told["expires"]
    assert end_of(task_id) == service.tasks.clock() + KEEP_S


def test_an_expired_task_makes_room(service_of: Any) -> None:
    service = service_of(most=2)
    first, _ = keep(service), keep(service)
    full = service.adapt(
        new_id(KEEP_S, service.tasks.clock()), body_of("table", 6, with_targets=True), JSON
    )
    assert full.status == 429
    assert f"wait {KEEP_S} s until the first ends" in error(full)
    service.tasks.clock.now += KEEP_S + 1
    gone = service.task(first)
    assert gone.status == 404
    assert "has expired" in error(gone)
    keep(service)
    assert service.tasks.count() == 1


def test_deleted_and_unknown_tasks_are_not_found(service_of: Any) -> None:
    service = service_of()
    task_id = keep(service)
    assert service.delete(task_id).status == 204
    unknown = new_id(KEEP_S, service.tasks.clock())
    for name in (task_id, unknown, "../../etc/passwd", "a" * 5000, ""):
        answer = service.predict(name, b"{}", JSON, None)
        assert answer.status == 404
        assert "send its support examples again" in error(answer)


def test_another_replica_finds_a_task_and_reports_a_damaged_one(service_of: Any) -> None:
    service = service_of()
    task_id = keep(service)
    other = replace(service, tasks=KeptTasks(service.tasks.folder, 3, Time()), limits=Limits())
    assert other.task(task_id).status == 200
    (file,) = service.tasks.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    fresh = replace(service, tasks=KeptTasks(service.tasks.folder, 3, Time()), limits=Limits())
    answer = fresh.task(task_id)
    assert answer.status == 404
    assert "damaged" in error(answer)
    assert str(service.tasks.folder) not in error(answer)


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cannot be read as a stream of Arrow|has no rows"),
        (b"\x00" * 100, "cannot be read as a stream of Arrow"),
        (stream(ROWS)[:-60], "cannot be read as a stream of Arrow"),
        (stream(ROWS, compression="zstd"), "must not be compressed"),
        (stream(pa.table({"recording": pa.nulls(10**7)})), "at most 100000 rows"),
        (stream(ROWS.drop_columns("volt")), "'volt'"),
        (stream(ROWS.set_column(2, "volt", [[[1.0], [2.0]]])), "column 'volt' has the type list"),
        (stream(ROWS.set_column(2, "volt", [[1.0, np.inf]])), "volt: inf is not a finite number"),
        (stream(ROWS.set_column(2, "volt", [["1", "two"]])), "column volt: 'two'"),
    ],
)
def test_hostile_streams_of_arrow_are_refused(service_of: Any, body: bytes, message: str) -> None:
    service = service_of(examples=100, time_steps=1000)
    answer = service.predict(keep(service), body, ARROW, JSON)
    assert answer.status == 400, answer.body
    assert any(part in error(answer) for part in message.split("|")), error(answer)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"x": "abc", "y": []}, "x must be a list"),
        ({"x": [[[1, 2]]], "y": "a"}, "y must be a list"),
        ({"x": [[[1, 2]]], "y": ["a", "b"]}, "a target for each of the 1 examples"),
        ({"x": [[[1, True]]], "y": ["a"]}, "must hold numbers, but has True"),
        ({"x": [[["1", 2]]], "y": ["a"]}, "must hold numbers"),
        ({"x": [[1, 2]], "y": ["a"]}, "must be a list of time steps"),
        ({"x": [[[1, 10**400]]], "y": ["a"]}, "is not a number of 64 bits"),
        ({"x": [[[1, 2]]], "y": [10**30]}, "must be a class or a number"),
        ({"x": [[[1, 2]]] * 4, "y": ["a", "b", "c", "d"], "z": 1}, "'z' is not a known key"),
        ({"x": [[[1, 2]]] * 9, "y": [*"abcdefghi"]}, "at most 8 examples"),
        ({"x": [[[1, 2]] * 21], "y": ["a"]}, "at most 20 time steps"),
        ({"x": [[[1, 2]]] * 5, "y": [*"abcde"]}, "at most 4 classes"),
    ],
)
def test_hostile_json_is_refused(service_of: Any, body: Any, message: str) -> None:
    service = service_of(examples=8, time_steps=20, classes=4)
    task_id = new_id(KEEP_S, service.tasks.clock())
    answer = service.adapt(task_id, json.dumps(body).encode(), JSON)
    assert answer.status == 400
    assert message in error(answer)
    assert service.tasks.count() == 0


@pytest.mark.parametrize(
    ("sent", "accepted", "status"), [("text/csv", None, 415), (JSON, "image/png", 406)]
)
def test_other_media_types_are_refused(
    service_of: Any, sent: str, accepted: str | None, status: int
) -> None:
    service = service_of()
    body = body_of("table", 2, 1, with_targets=False)
    answer = service.predict(keep(service), body, sent, accepted)
    assert answer.status == status
    assert ARROW in error(answer)


def test_the_model_says_what_it_expects(service_of: Any) -> None:
    found = json.loads(service_of().describe().body)
    assert found["channels"] == ["volt", "ampere"]
    assert found["categories"] == {}
    assert (found["num_ways"], found["num_shots"]) == (3, 2)
    assert found["limits"]["tasks"] == 3


def parts_of_document(found: Any) -> Iterator[dict[str, Any]]:
    """Yields every object in a document."""
    if isinstance(found, dict):
        yield found
    for value in found.values() if isinstance(found, dict) else found:
        if isinstance(value, dict | list):
            yield from parts_of_document(value)


@pytest.mark.parametrize("has_token", [True, False])
def test_the_published_schema_tells_of_every_route_in_json_schema(has_token: bool) -> None:
    document = openapi.document(has_token=has_token)
    found = get_openapi(title="", version="", routes=api.routes)["paths"]
    del found["/openapi.json"]
    routes = {(path, method) for path, own in found.items() for method in own}
    assert routes == {(path, method) for path, own in document["paths"].items() for method in own}
    for part in parts_of_document(document):
        assert "nullable" not in part  # OpenAPI 3.0's
        if "schema" in part:
            Draft202012Validator.check_schema(part["schema"])
        if "$ref" in part:
            assert (
                part["$ref"].removeprefix("#/components/schemas/")
                in (document["components"]["schemas"])
            )
    guarded = {
        (path, method)
        for path, own in document["paths"].items()
        for method, route in own.items()
        if "401" in route["responses"]
    }
    assert guarded == (routes - {("/health", "get")} if has_token else set())
    schemes = document["components"].get("securitySchemes", {})
    assert schemes == ({"HTTPBearer": {"type": "http", "scheme": "bearer"}} if has_token else {})
    for path, method in routes:
        security = document["paths"][path][method].get("security", [])
        assert security == ([{"HTTPBearer": []}] if (path, method) in guarded else [])
        assert "422" not in document["paths"][path][method]["responses"]


def test_a_token_is_made_once_and_readable_only_by_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "new" / "token"
    token, is_new = _token(file)
    assert is_new
    assert len(token) >= 40
    assert file.stat().st_mode & 0o077 == 0
    assert _token(file) == (token, False)
    file.chmod(0o644)
    with pytest.raises(RunError, match="others may read the token; chmod 600"):
        _token(file)
    file.chmod(0o600)
    file.write_text("short")
    with pytest.raises(RunError, match="16 characters at least"):
        _token(file)


def test_other_machines_need_a_token() -> None:
    with pytest.raises(ResourceError, match="token"):
        _check_address("0.0.0.0", 0, has_token=False)  # noqa: S104
    _check_address("127.0.0.1", 0, has_token=False)


def test_the_application_for_configuration_files_asks_for_a_token(
    service_of: Any, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service_of()
    settings = ServeSettings(run=folders["table"], tasks_dir=str(tmp_path))
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ResourceError, match=f"{TOKEN_VARIABLE} must hold the server's token"):
        build(settings)
    monkeypatch.setenv(TOKEN_VARIABLE, "a token of some length")
    assert build(settings)


def test_without_its_packages_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raymeta.cli.serving.find_spec", lambda _: None)
    result = CliRunner().invoke(app, ["serve", "some run"])
    assert isinstance(result.exception, ResourceError)
    assert "pip install 'raymeta[serve]'" in str(result.exception)


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """Whoever runs the tests may ignore signals."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_server_under_nohup_outlives_the_terminal(heeded_signals: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with server._signals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert not signals.ended.is_set()
        assert not signals.received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_interrupts_the_start_and_ends_a_server_that_serves(
    number: signal.Signals, heeded_signals: None
) -> None:
    with server._signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # a second one does not break off the end
        assert signals.received == number
    with server._signals() as signals:
        signals.is_serving = True
        signal.raise_signal(number)
        assert signals.ended.is_set()


def test_an_unreachable_folder_of_tasks_is_reported_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", "table", "learner=prototypes")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    address = "s3://bucket/tasks?endpoint_override=http://127.0.0.1:9&region=us-east-1"
    command = ["serve", str(run.path), "--no-token", "--tasks-dir", address]
    found = CliRunner().invoke(app, command)
    assert isinstance(found.exception, RunError)
    assert "the storage cannot be reached" in str(found.exception)
