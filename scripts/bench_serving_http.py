"""`raymeta serve` under load: requests a second, waits, and what becomes of requests at faults.

A server of its own serves a network of `pen` (prototypes on a GRU of 64 units, 5 ways, 1 shot) to
clients that keep their connection and ask one request after another.  Before that the same
predictions are made in this process, one example a call and many: their ratio bounds what batching
requests (`serve.batch`) could save.

    python scripts/bench_serving_http.py [--seconds S] [--replicas N] [--json FILE]

A replica is killed while clients ask; a rolling update follows; then the door (the process that
speaks HTTP) is killed.  A request is lost if it is answered with anything but 200, or not at all.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

import raymeta
from raymeta.inference.adapted import Adapted

START_S = 300
NUM_CLIENTS = (1, 4, 16)
BATCH = 16  # examples of a call, against one
ANSWER_S = 120


@dataclass
class Answers:
    """The statuses of requests (0: none came) and the seconds that each took."""

    statuses: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """The number of requests that were not answered with status 200."""
        return sum(status != 200 for status in self.statuses)


@dataclass
class Server:
    """A server under test."""

    process: subprocess.Popen[bytes]
    port: int
    token: str
    log: Path

    def ask(
        self, connection: http.client.HTTPConnection, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        """Status and content of an answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def connection(self) -> http.client.HTTPConnection:
        """A new connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)

    def processes(self, name: str) -> list[psutil.Process]:
        """The processes of a deployment: `Replica` or `Door`."""
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
def asked(server: Server, path: str, body: bytes, num_clients: int) -> Iterator[Answers]:
    """Clients that ask without a pause, each on a connection of its own."""
    answers, stop = Answers(), threading.Event()

    def client() -> None:
        connection = server.connection()
        while not stop.is_set():
            began = time.perf_counter()
            try:
                status = server.ask(connection, path, body)[0]
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
                time.sleep(0.05)
            answers.seconds.append(time.perf_counter() - began)
            answers.statuses.append(status)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def trained_run(folder: Path) -> str:
    """A run of a few meta-steps: speed does not depend on what a network has learned."""
    report = raymeta.train(
        "pen",
        overrides={
            "learner": "prototypes",
            "tasks.context_grid": 0,
            "model.stacked_steps": 1,
            "training.meta_steps": 4,
            "training.val_episodes": 2,
            "evaluation.num_episodes": 4,
            "model.hidden_size": 64,
            "search.refit": None,
            "resources.num_workers": 1,
        },
        runs_dir=folder,
    )
    return str(report.run.path)


def strokes(num: int, seed: int) -> list[np.ndarray]:
    """Examples as `pen` has them: points x, y and the stroke's number, `[60, 3]`."""
    rng = np.random.default_rng(seed)
    walks = rng.normal(size=(num, 60, 2)).cumsum(axis=1) * 20
    stroke = np.repeat([0.0, 1.0], 30)
    return [np.column_stack([walk, stroke]) for walk in walks]


@contextmanager
def server_of(run: str, replicas: int, folder: Path) -> Iterator[Server]:
    """A server that answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    token, log = folder / "token", folder / "log"
    command = [sys.executable, "-m", "raymeta", "serve", run, "--port", str(port)]
    options = ["--replicas", str(replicas), "--token-file", str(token)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *options],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        deadline = time.monotonic() + START_S
        while b"curl" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server does not start: {log.read_text()}")
            time.sleep(0.2)
        yield Server(process, port, token.read_text(), log)
    finally:
        process.terminate()
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def in_process(adapted: Adapted, x: list[np.ndarray]) -> dict[str, float]:
    """Milliseconds an example (median), one at a time and many in a call."""

    def timed(part: list[np.ndarray], rounds: int) -> float:
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            adapted.predict_proba(part, axes="NTC")
            times.append((time.perf_counter() - began) / len(part))
        return 1000 * statistics.median(times)

    timed(x[:1], 5)  # the first calls compile and allocate
    return {"one": timed(x[:1], 60), "many": timed(x, 20)}


def throughput(
    server: Server, path: str, body: bytes, seconds: float, what: str
) -> list[dict[str, Any]]:
    """A row a number of clients; requests that end after the time count in the time they took."""
    rows = []
    for clients in NUM_CLIENTS:
        began = time.perf_counter()
        with asked(server, path, body, clients) as answers:
            time.sleep(seconds)
        took = time.perf_counter() - began
        rows.append(
            {
                "what": what,
                "clients": clients,
                "requests": len(answers.statuses),
                "lost": answers.lost,
                "per_second": len(answers.statuses) / took,
                "p50_ms": 1000 * float(np.quantile(answers.seconds, 0.5)),
                "p99_ms": 1000 * float(np.quantile(answers.seconds, 0.99)),
            }
        )
    return rows


def fault(
    server: Server, path: str, body: bytes, what: str, act: Callable[[], Callable[[], bool]]
) -> dict[str, Any]:
    """Four clients ask while `act` is done, until what it returns says that all is well again."""
    with asked(server, path, body, 4) as answers:
        time.sleep(2)
        is_over = act()
        deadline = time.monotonic() + START_S
        while not is_over():
            if time.monotonic() > deadline:
                sys.exit(f"{what}: not over within {START_S} s")
            time.sleep(0.2)
        time.sleep(2)
    return {
        "what": what,
        "clients": 4,
        "requests": len(answers.statuses),
        "lost": answers.lost,
        "lost_statuses": sorted({status for status in answers.statuses if status != 200}),
        "longest_s": max(answers.seconds),
    }


def killing(server: Server, name: str) -> Callable[[], Callable[[], bool]]:
    """Kills a process of a deployment; over when there are as many again, and they answer."""

    def act() -> Callable[[], bool]:
        before = {process.pid for process in server.processes(name)}
        psutil.Process(min(before)).kill()

        def is_over() -> bool:
            now = {process.pid for process in server.processes(name)}
            if now == before or len(now) < len(before):
                return False
            connection = server.connection()
            try:
                return server.ask(connection, "/health", None)[0] == 200
            except (OSError, http.client.HTTPException):
                return False
            finally:
                connection.close()

        return is_over

    return act


def updating(server: Server) -> Callable[[], bool]:
    """Asks for a rolling update; over when the server says so."""
    server.process.send_signal(signal.SIGUSR1)
    return lambda: b"updated" in server.log.read_bytes()


def main() -> None:
    """Reads the command line, serves, asks, kills, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10, help="for each number of clients")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = trained_run(folder / "runs")
        support, labels = strokes(5, seed=0), list("abcde")
        adapted = raymeta.load(run).adapt(support, labels, axes="NTC")
        queries = strokes(BATCH, seed=1)
        alone = in_process(adapted, queries)
        with server_of(run, arguments.replicas, folder) as server:
            sent = json.dumps({"x": [x.tolist() for x in support], "y": labels}).encode()
            connection = server.connection()
            status, content = server.ask(connection, "/tasks", sent)
            if status != 201:
                sys.exit(f"no task: {content.decode()}")
            connection.close()
            path = f"/tasks/{json.loads(content)['id']}/predict"
            body = json.dumps({"x": [queries[0].tolist()]}).encode()
            rows = throughput(server, path, body, arguments.seconds, "predict 1 example")
            many = json.dumps({"x": [x.tolist() for x in queries]}).encode()
            rows += throughput(server, path, many, arguments.seconds, f"predict {BATCH} examples")
            faults = [
                fault(server, path, body, "a replica is killed", killing(server, "Replica")),
                fault(server, path, body, "a rolling update", lambda: updating(server)),
                fault(server, path, body, "the door is killed", killing(server, "Door")),
            ]
    show(alone, rows, faults)
    if arguments.json:
        found = {"in_process_ms": alone, "load": rows, "faults": faults}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def show(alone: dict[str, float], rows: list[dict[str, Any]], faults: list[dict[str, Any]]) -> None:
    """Prints the tables."""
    console = Console()
    console.print(
        f"in process, one thread: {alone['one']:.2f} ms an example alone, "
        f"{alone['many']:.2f} ms in calls of {BATCH}"
    )
    table = Table("what", "clients", "requests a second", "p50", "p99", "lost")
    for row in rows:
        cells = [f"{row['per_second']:.0f}", f"{row['p50_ms']:.0f} ms", f"{row['p99_ms']:.0f} ms"]
        table.add_row(row["what"], str(row["clients"]), *cells, str(row["lost"]))
    console.print(table)
    table = Table("4 clients ask while", "requests", "longest wait", "lost", "statuses", "")
    for row in faults:
        cells = [str(row["requests"]), f"{row['longest_s']:.1f} s", str(row["lost"])]
        statuses = ", ".join(map(str, row["lost_statuses"]))
        table.add_row(row["what"], *cells, statuses, "falls short" if row["lost"] else "holds")
    console.print(table)


if __name__ == "__main__":
    main()
