"""`raymeta serve` as a process of its own answers real HTTP clients."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped, unused-ignore]

import raymeta
from raymeta.run_folder import Run
from raymeta.serving.arrow import stream_of
from tests.inference.conftest import make_run
from tests.inference.test_attribution import task_of
from tests.inference.test_forecaster import forecast_run, history
from tests.search.helpers import kill_driver

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ARROW, JSON = "application/vnd.apache.arrow.stream", "application/json"
TIMEOUT_S = 240  # until a server answers
NUM_CLIENTS = 3
ORPHANS_S = 30  # stated in cluster/README.md


@dataclass
class Server:
    """A server and its client."""

    process: subprocess.Popen[bytes]
    url: str
    token_file: Path
    run: str
    log: Path

    def ask(
        self, path: str, body: Any = None, *, method: str | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Sends a request, as JSON unless the body is bytes; returns status and body."""
        status, _, content = self.answer(path, body, method=method, **headers)
        return status, content

    def answer(
        self, path: str, body: Any = None, *, method: str | None = None, **headers: str
    ) -> tuple[int, str, bytes]:
        """Sends a request as `ask` does; returns status, media type and body."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "Authorization": f"Bearer {self.token_file.read_text()}",
            "Content-Type": "application/json",
        }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(  # noqa: S310  (loopback)
            f"{self.url}{path}", content, sent, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                return answer.status, answer.headers.get("Content-Type", ""), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get("Content-Type", ""), error.read()

    def replicas(self, name: str = "Replica") -> list[psutil.Process]:
        """Returns the processes that adapt and predict, or those of `Door`."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if line and f":{name}" in line[0]:
                found.append(process)
        return found


@contextmanager
def serving(
    folder: Path, num_replicas: int, *further: str, run: Run | None = None
) -> Iterator[Server]:
    """Starts a server and waits until it answers; later options count."""
    run = run or make_run(folder / "run", "table", "learner=prototypes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, log = folder / "secret" / "token", folder / "log"
    command = [sys.executable, "-c", "from raymeta.cli import main; main()", "serve"]
    options = ["--port", str(port), "--replicas", str(num_replicas), "--token-file", str(token)]
    limits = ["--tasks-kept", "30", "--max-body-mib", "0.5", "--max-examples", "50"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, str(run.path), *options, *limits, *further],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    found = Server(process, f"http://127.0.0.1:{port}", token, str(run.path), log)
    try:
        wait_until_it_answers(found)
        yield found
    finally:
        kill_driver(process)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("served"), 2) as found:
        yield found


def wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if server.ask("/health")[0] == 200:
                return
        except OSError:  # not yet
            pass
        time.sleep(0.3)
    pytest.fail(f"no answer: {server.log.read_text()[-3000:]}")


def support() -> dict[str, Any]:
    x, y = task_of("table", 6)
    return {"x": [one.tolist() for one in x], "y": y}


def queries(num: int = 4) -> list[np.ndarray]:
    return task_of("table", num, seed=1)[0]


def new_task(server: Server) -> str:
    status, content = server.ask("/tasks", support())
    assert status == 201, content
    return str(json.loads(content)["id"])


def test_answers_are_those_of_the_network_in_json_and_in_arrow(server: Server) -> None:
    status, content = server.ask("/tasks", support())
    assert status == 201
    task = json.loads(content)
    assert task["classes"] == ["kind 0", "kind 1", "kind 2"]
    assert task["num_examples"] == 6
    x = queries()
    adapted = raymeta.load(server.run).adapt(*task_of("table", 6))
    path = f"/tasks/{task['id']}/predict"
    found = json.loads(server.ask(path, {"x": [one.tolist() for one in x]})[1])
    assert found["predictions"] == adapted.predict(x).tolist()
    np.testing.assert_allclose(found["probabilities"], adapted.predict_proba(x), rtol=1e-9)

    columns: dict[str, list[Any]] = {"recording": [], "second": [], "volt": [], "ampere": []}
    for number, one in enumerate(x):
        columns["recording"] += [f"new {number}"] * len(one)
        columns["second"] += list(range(len(one)))
        columns["volt"] += one[:, 0].tolist()
        columns["ampere"] += one[:, 1].tolist()
    table, sink = pa.table(columns), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    status, content = server.ask(path, sink.getvalue(), Content_Type=ARROW, Accept=ARROW)
    assert status == 200, content
    answer = pa.ipc.open_stream(content).read_all()
    assert answer["prediction"].to_pylist() == found["predictions"]
    assert answer["recording"].to_pylist() == [f"new {n}" for n in range(4)]
    chances = np.stack([answer[f"probability_kind {n}"].to_numpy() for n in range(3)], axis=1)
    np.testing.assert_allclose(chances, adapted.predict_proba(x), rtol=1e-9)


def test_many_tasks_are_adapted_at_once_and_predict_with_coverage(server: Server) -> None:
    status, content = server.ask("/tasks/batch", {"tasks": [support()] * 3})
    assert status == 201, content
    tasks = json.loads(content)["tasks"]
    assert len({task["id"] for task in tasks}) == 3
    body = {"x": [one.tolist() for one in queries(2)]}
    for task in tasks:
        assert server.ask(f"/tasks/{task['id']}/predict", body)[0] == 200
        # This run has no meta-test yet.
        status, content = server.ask(f"/tasks/{task['id']}/predict?coverage=0.9", body)
        assert status == 400
        assert "was not calibrated" in json.loads(content)["error"]
        assert server.ask(f"/tasks/{task['id']}", method="DELETE")[0] == 204
    status, content = server.ask("/tasks/batch", {"tasks": [support()] * 31})
    assert status == 400
    assert "at most 30 tasks" in json.loads(content)["error"]


def arrow(task_ids: list[str]) -> bytes:
    """A stream of two examples of each task."""
    columns: dict[str, list[Any]] = {}
    for task_id in task_ids:
        for number, one in enumerate(queries(2)):
            for name, values in (
                ("task", [task_id] * len(one)),
                ("recording", [f"new {number}"] * len(one)),
                ("second", list(range(len(one)))),
                ("volt", one[:, 0].tolist()),
                ("ampere", one[:, 1].tolist()),
            ):
                columns.setdefault(name, []).extend(values)
    table, sink = pa.table(columns), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_many_tasks_are_predicted_at_once_in_json_and_in_arrow(server: Server) -> None:
    ids = [new_task(server) for _ in range(2)]
    x = [one.tolist() for one in queries(2)]
    body = {"tasks": [{"id": name, "x": x} for name in ids]}
    status, content = server.ask("/predict/batch", body)
    assert status == 200, content
    found = json.loads(content)["tasks"]
    for name, one in zip(ids, found, strict=True):
        alone = json.loads(server.ask(f"/tasks/{name}/predict", {"x": x})[1])
        assert one["id"] == name
        assert one["predictions"] == alone["predictions"]
        np.testing.assert_allclose(one["probabilities"], alone["probabilities"], atol=1e-9)
    status, content = server.ask("/predict/batch", arrow(ids), Content_Type=ARROW, Accept=ARROW)
    assert status == 200, content
    rows = pa.ipc.open_stream(content).read_all()
    assert rows["task"].to_pylist() == [name for name in ids for _ in range(2)]
    assert rows["prediction"].to_pylist() == [p for one in found for p in one["predictions"]]
    assert server.ask("/predict/batch", body, Authorization="")[0] == 401
    assert server.ask("/predict/batch", b"a" * 600_000)[0] == 413
    assert server.ask(f"/tasks/{ids[0]}", method="DELETE")[0] == 204
    status, content = server.ask("/predict/batch", body)
    assert status == 404
    assert json.loads(content)["error"].startswith("task 1: there is no such task")
    assert server.ask(f"/tasks/{ids[1]}", method="DELETE")[0] == 204
    assert 'route="predict_many",status="200"' in server.ask("/metrics")[1].decode()


@dataclass
class Published:
    """The schema that a server publishes, and the statuses of each route that were checked."""

    server: Server
    schema: dict[str, Any]
    seen: set[tuple[str, int]]

    @classmethod
    def of(cls, server: Server) -> Published:
        return cls(server, json.loads(server.ask("/openapi.json", Authorization="")[1]), set())

    def ask(
        self, status: int, method: str, route: str, task: str = "", body: Any = None, **headers: str
    ) -> bytes:
        """Sends a request and checks its answer, and if it was taken the request too."""
        path = route.replace("{task_id}", task)
        found, kind, content = self.server.answer(path, body, method=method, **headers)
        assert found == status, content
        self.check(method, route, found, kind, content)
        if status < 300 and isinstance(body, dict):
            self._validate(body, route, method.lower(), "requestBody", "content", JSON)
        return content

    def check(self, method: str, route: str, status: int, kind: str, content: bytes) -> None:
        """Checks an answer."""
        own = self.schema["paths"][route][method.lower()]["responses"][str(status)]
        self.seen.add((f"{method} {route}", status))
        if not content:
            assert "content" not in own
            return
        assert kind in own["content"]
        if kind == JSON:
            place = (route, method.lower(), "responses", str(status), "content", JSON)
            self._validate(json.loads(content), *place)

    def _validate(self, found: Any, *place: str) -> None:
        steps = [step.replace("/", "~1") for step in ("paths", *place, "schema")]
        Draft202012Validator({**self.schema, "$ref": "#/" + "/".join(steps)}).validate(found)


def stalled(server: Server) -> socket.socket:
    """Sends the head of a request and none of the body that it tells of."""
    address = urllib.parse.urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=120)
    head = (
        f"POST /tasks HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {JSON}\r\n"
        f"Authorization: Bearer {server.token_file.read_text()}\r\nContent-Length: 99\r\n\r\n"
    )
    connection.sendall(head.encode())
    return connection


def test_real_answers_are_those_of_the_published_schema(server: Server) -> None:
    waiting = stalled(server)
    published = Published.of(server)
    x = [one.tolist() for one in queries(2)]
    task = str(json.loads(published.ask(201, "POST", "/tasks", body=support()))["id"])
    body = {"tasks": [support(), support()]}
    told = json.loads(published.ask(201, "POST", "/tasks/batch", body=body))
    ids = [one["id"] for one in told["tasks"]]
    one, many = "/tasks/{task_id}/predict", "/predict/batch"
    published.ask(200, "POST", one, task, {"x": x})
    published.ask(200, "POST", many, body={"tasks": [{"id": name, "x": x} for name in ids]})
    sent = {"Content_Type": ARROW, "Accept": JSON}
    published.ask(200, "POST", many, body=arrow(ids), **sent)
    published.ask(200, "POST", many, body=arrow(ids), **{**sent, "Accept": ARROW})
    published.ask(200, "POST", one, task, arrow([task]), **sent)
    published.ask(200, "POST", one, task, {"x": x}, Accept=ARROW)
    for route in ("/model", "/health", "/metrics"):
        published.ask(200, "GET", route)
    published.ask(200, "GET", "/tasks/{task_id}", task)

    for route in ("/tasks", "/tasks/batch", one, many):
        published.ask(400, "POST", route, task, b"{")
        published.ask(401, "POST", route, task, b"{", Authorization="")
        published.ask(413, "POST", route, task, b"a" * 600_000)
        published.ask(415, "POST", route, task, b"{}", Content_Type="text/csv")
    for route in (one, many):
        published.ask(406, "POST", route, task, b"{}", Accept="text/csv")
        body = {"tasks": [{"id": "none", "x": x}]}
        published.ask(404, "POST", route, "none", body)
        published.ask(400, "POST", f"{route}", task, {"x": x, "y": []})
    for name in (task, *ids):
        published.ask(204, "DELETE", "/tasks/{task_id}", name)
    published.ask(404, "POST", "/forecast", body={"history": {"volt": [1.0]}})
    for method in ("GET", "DELETE"):
        published.ask(404, method, "/tasks/{task_id}", task)
        published.ask(401, method, "/tasks/{task_id}", task, Authorization="")
    for route in ("/model", "/metrics"):
        published.ask(401, "GET", route, Authorization="")

    with waiting:
        late = http.client.HTTPResponse(waiting)
        late.begin()
        kind, content = late.headers["Content-Type"], late.read()
    assert late.status == 408
    published.check("POST", "/tasks", late.status, kind, content)
    # The rest need a full store or a broken one, and the other routes read bodies by the same code;
    # a run of a forecast has a server of its own below.
    declared = {
        (f"{method.upper()} {route}", int(status))
        for route, methods in published.schema["paths"].items()
        for method, own in methods.items()
        for status in own["responses"]
    }
    unseen = {status for route, status in declared - published.seen if route != "POST /forecast"}
    assert unseen <= {408, 429, 503}


def test_a_full_store_refuses_tasks_until_they_have_expired(tmp_path: Path) -> None:
    kept, lives_s = tmp_path / "kept", 20
    options = ("--tasks-kept", "2", "--keep-for", str(lives_s), "--tasks-dir", str(kept))
    with serving(tmp_path, 1, *options) as server:
        published = Published.of(server)
        x = [one.tolist() for one in queries(2)]
        first = new_task(server)  # the first is slow
        assert server.ask(f"/tasks/{first}", method="DELETE")[0] == 204
        began = time.monotonic()
        ids = [new_task(server), new_task(server)]
        told = published.ask(429, "POST", "/tasks", body=support())
        assert "as many tasks are kept as may be (2); delete one, or wait" in told.decode()
        told = published.ask(429, "POST", "/tasks/batch", body={"tasks": [support()] * 2})
        assert "delete 2, or wait" in told.decode()
        assert published.ask(200, "POST", "/tasks/{task_id}/predict", ids[0], {"x": x})
        assert time.monotonic() < began + lives_s, "the machine is too busy for this test"
        assert "raymeta_tasks_kept 2.0" in server.ask("/metrics")[1].decode()

        time.sleep(max(0, began + lives_s + 2 - time.monotonic()))
        while True:  # the second was kept a little later
            if "raymeta_tasks_kept 0.0" in server.ask("/metrics")[1].decode():
                break
            assert time.monotonic() < began + 2 * lives_s
            time.sleep(0.2)
        for name in ids:
            told = published.ask(404, "POST", "/tasks/{task_id}/predict", name, {"x": x})
            assert "has expired" in told.decode()
        task = new_task(server)
        assert server.ask(f"/tasks/{task}")[0] == 200
        assert [file.name for file in kept.iterdir()] == [f"{task}.raymeta"]

        shutil.rmtree(kept)
        kept.write_text("where the folder was")
        told = published.ask(503, "POST", "/tasks", body=support())
        assert str(kept) not in told.decode()


def test_the_run_of_a_forecast_is_served(tmp_path: Path) -> None:
    run = forecast_run(tmp_path / "run", "learner=ridge")
    frame = history()
    sent = {str(name): column.astype(str).tolist() for name, column in frame.items()}
    expected = raymeta.load_forecaster(str(run.path)).forecast(frame)
    route, body = "/forecast", {"history": sent}
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with serving(tmp_path, 1, run=run) as server:
        published = Published.of(server)
        found = json.loads(published.ask(200, "POST", route, body=body))["forecasts"]["forecast"]
        assert found == pytest.approx(expected.point.ravel(), rel=1e-9)
        answer = published.ask(
            200, "POST", route, body=stream_of(table), Content_Type=ARROW, Accept=ARROW
        )
        assert pa.ipc.open_stream(answer).read_all().equals(expected.to_table())
        published.ask(200, "GET", "/model")
        published.ask(400, "POST", route, body=b"{")
        published.ask(401, "POST", route, body=b"{", Authorization="")
        published.ask(406, "POST", route, body=body, Accept="text/csv")
        published.ask(413, "POST", route, body=b"a" * 600_000)
        published.ask(415, "POST", route, body=b"{}", Content_Type="text/csv")
        no_task = {"x": [[[1.0]]], "y": [1]}
        assert "POST /forecast" in str(server.ask("/tasks", no_task)[1])


def test_every_replica_knows_a_task_until_it_is_deleted(server: Server) -> None:
    task = new_task(server)
    for _ in range(8):  # whichever replica it is
        assert server.ask(f"/tasks/{task}")[0] == 200
    assert server.ask(f"/tasks/{task}", method="DELETE")[0] == 204
    status, content = server.ask(f"/tasks/{task}/predict", {"x": [[[0, 0]]]})
    assert status == 404
    assert "send its support examples again" in json.loads(content)["error"]


def test_requests_without_the_token_are_refused(server: Server) -> None:
    assert server.token_file.stat().st_mode & 0o077 == 0
    for header in ("", "Bearer wrong", f"Basic {server.token_file.read_text()}"):
        status, content = server.ask("/tasks", support(), Authorization=header)
        assert status == 401
        assert "token is missing or wrong" in json.loads(content)["error"]
    assert server.ask("/metrics", Authorization="")[0] == 401
    assert server.ask("/health", Authorization="")[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "is no JSON"),
        (b"[" * 100_000, 400, "is no JSON|nested too deeply"),
        ({"x": [[[1, 2]]]}, 400, "y is required"),
        ({"x": [[[1, 2, 3]]], "y": ["a"]}, 400, "channels"),
        (b'{"x": [[[NaN, 1]]], "y": ["a"]}', 400, "NaN is not a finite number"),
        ({"x": [[[0, 0]]] * 51, "y": ["a", "b", "c"] * 17}, 400, "at most 50 examples"),
        (b'{"x": "' + b"a" * 600_000 + b'"}', 413, "at most 524288 bytes"),
    ],
)
def test_a_broken_request_gets_one_message(
    server: Server, body: Any, status: int, message: str
) -> None:
    found, content = server.ask("/tasks", body)
    assert found == status, content
    error = json.loads(content)["error"]
    assert any(part in error for part in message.split("|")), error
    assert len(error) < 1500
    assert str(server.token_file.parent) not in error


def test_a_client_that_sends_too_much_slowly_reads_why_it_was_refused(server: Server) -> None:
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    with closing(connection):
        connection.putrequest("POST", "/tasks")
        connection.putheader("Authorization", f"Bearer {server.token_file.read_text()}")
        connection.putheader("Content-Type", JSON)
        connection.putheader("Content-Length", "1000000")
        connection.endheaders()
        for _ in range(10):
            time.sleep(0.1)
            connection.send(b"a" * 100_000)
        answer = connection.getresponse()
        assert (answer.status, b"at most 524288 bytes" in answer.read()) == (413, True)


def test_prometheus_gets_figures_and_clients_what_the_network_expects(server: Server) -> None:
    new_task(server)
    text = server.ask("/metrics")[1].decode()
    assert "raymeta_adaptations_total" in text
    assert 'raymeta_requests_total{route="adapt",status="201"}' in text
    model = json.loads(server.ask("/model")[1])
    assert model["channels"] == ["volt", "ampere"]
    assert model["limits"]["tasks"] == 30


@dataclass
class Load:
    """Clients that ask without a pause, and their answers: 0 where the connection broke."""

    statuses: list[int]
    stop: threading.Event


@pytest.fixture
def load(server: Server) -> Iterator[Load]:
    task = new_task(server)
    body = {"x": [one.tolist() for one in queries(2)]}
    found = Load([], threading.Event())

    def ask() -> None:
        while not found.stop.is_set():
            try:
                status, _ = server.ask(f"/tasks/{task}/predict", body)
            except OSError:  # urllib's too, for whoever is gone before the answer is whole
                status = 0
            found.statuses.append(status)

    threads = [threading.Thread(target=ask) for _ in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    yield found
    found.stop.set()
    for thread in threads:
        thread.join()
    server.ask(f"/tasks/{task}", method="DELETE")


def test_no_request_is_lost_when_a_replica_is_killed(server: Server, load: Load) -> None:
    wait_for(load, 10)
    before = {process.pid for process in server.replicas()}
    assert len(before) == 2
    psutil.Process(min(before)).kill()
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        now = {process.pid for process in server.replicas()}
        if len(now) == 2 and now != before:
            break
        time.sleep(0.2)
    wait_for(load, 20)
    assert set(load.statuses) == {200}


def test_a_killed_door_loses_at_most_what_it_had_under_way(server: Server, load: Load) -> None:
    wait_for(load, 10)
    (door,) = server.replicas("Door")
    door.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while {process.pid for process in server.replicas("Door")} <= {door.pid}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    wait_for(load, 20)
    lost = [status for status in load.statuses if status != 200]
    assert len(lost) <= NUM_CLIENTS
    assert load.statuses[-10:] == [200] * 10


def test_no_request_is_lost_in_a_rolling_update(server: Server, load: Load) -> None:
    before = {process.pid for process in server.replicas()}
    server.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + TIMEOUT_S
    while "updated: all replicas" not in server.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    wait_for(load, 10)
    assert set(load.statuses) == {200}
    assert before.isdisjoint({process.pid for process in server.replicas()})


def wait_for(load: Load, more: int) -> None:
    """Waits until a number of further requests were answered."""
    deadline, count = time.monotonic() + TIMEOUT_S, len(load.statuses) + more
    while len(load.statuses) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_signal_ends_it_and_leaves_nothing(server: Server) -> None:
    descendants = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=120) == 0
    _, alive = psutil.wait_procs(descendants, timeout=60)
    assert not alive
    log = server.log.read_text()
    assert "Traceback" not in log
    token = server.token_file.read_text()
    assert log.count(token) == 1  # shown once, when it was made


def test_nothing_outlives_a_killed_server(tmp_path: Path) -> None:
    with serving(tmp_path, 1) as killed:
        descendants = psutil.Process(killed.process.pid).children(recursive=True)
        # Two agents of Ray's own report the raylet's end for 60 s.
        everything = [
            process
            for process in descendants
            if not process.cmdline() or "Agent" not in process.cmdline()[0]
        ]
        assert killed.replicas()
        killed.process.kill()
        killed.process.wait()
        _, alive = psutil.wait_procs(everything, timeout=ORPHANS_S)
        assert not alive
        psutil.wait_procs(descendants, timeout=0)
        for agent in descendants:
            if agent.is_running():
                agent.kill()
