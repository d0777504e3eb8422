"""What a cluster costs in time, and what a thousand GPUs would ask of head, search and storage.

- hosts (root on Linux, with what the tests marked `cluster` need): on four test hosts of this
  machine, a head and three workers; seconds from `raymeta submit` to the first result of a trial,
  from each fault to the next result, and trials per hour with one, two and three workers.  All
  hosts share this machine's cores, so the last of these shows what they leave, not what hosts
  with cores of their own would give;
- scale: what an event costs the driver and what a candidate costs Ax, by the number of trials that
  have ended and that run; the bytes of the searcher's state; and from these a simulation of 1,000
  slots, for trials of different lengths: the share of the time in which slots are busy.
  `cluster/SCALING.md` draws the conclusions.

    python scripts/bench_cluster.py [--only hosts scale] [--json FILE]
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from raymeta.search import AxSearcher, Parameter, Space
from raymeta.search.ax_model import AxModel
from raymeta.search.records import Curve, TrialRecord
from raymeta.search.settings import SearchSettings

ROOT = Path(__file__).parents[1]
ROUNDS = 3  # of each measurement on the hosts
SPACE = [Parameter(name=f"x{i}", low=0, high=1) for i in range(6)]
ENDED, RUNNING = (100, 300), (8, 64, 256)  # trials, where a candidate's time is measured
CANDIDATES = 4  # whose mean time is taken
SLOTS, HOURS = 1000, (0.25, 1.0, 4.0, 12.0)  # of the simulation: trials at once, a trial's length
GPUS_PER_TRIAL = (1, 8)

Row = tuple[str, str]


# -------------------------------------------------------------------- hosts


def host_rows() -> list[Row]:
    """Times on test hosts; each a median over rounds with its range."""
    sys.path.insert(0, str(ROOT))
    from tests.cluster.conftest import ENVIRONMENT  # noqa: PLC0415  (root on Linux alone)
    from tests.cluster.hosts import Hosts, missing  # noqa: PLC0415
    from tests.cluster.onprem import CPUS, OnPrem  # noqa: PLC0415

    if (reason := missing()) is not None:
        return [("test hosts", f"not run: {reason}")]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        hosts = Hosts(4, Path(folder), environment=ENVIRONMENT)
        for worker in hosts.hosts[1:]:
            worker.environment["RAY_OVERRIDE_RESOURCES"] = f'{{"CPU": {CPUS}}}'
        with hosts:
            cluster = OnPrem(hosts)
            began = time.monotonic()
            cluster.up()
            rows.append(("`ray up` until three workers have joined", _seconds([_since(began)])))
            rows.append(("`raymeta submit` to the first result", _submissions(cluster)))
            rows += _recoveries(cluster)
            rows += _throughput(cluster)
    return rows


def _submissions(cluster: Any) -> str:
    times = []
    for number in range(ROUNDS):
        began = time.monotonic()
        search = cluster.start(f"submit{number}", command="submit")
        search.wait_for_reports(1)
        times.append(_since(began))
        search.stop()
        cluster.wait_until_ready()
    return _seconds(times)


def _recoveries(cluster: Any) -> list[Row]:
    """From a fault to the next result: of the same trial, which has nowhere else to come from."""
    faults: dict[str, Callable[[Any], object]] = {
        "the trial's process is killed": lambda search: search.kill_trial(),
        "the trial's host loses power": lambda search: search.trial_host().power_off(),
        "the trial's host is to be taken away": lambda search: cluster.drain(
            search.trial_host(), 60
        ),
    }
    rows = []
    for name, strike in faults.items():
        times = []
        for number in range(ROUNDS):
            search = cluster.start(f"{name.split()[-1]}{number}")
            search.wait_for_reports(3)
            struck = search.trial_host()
            strike(search)
            began, known = time.monotonic(), len(search.results())
            search.wait_for_reports(known + 1, timeout_s=180)
            times.append(_since(began))
            search.stop()
            if name.endswith("away"):
                struck.power_off()  # as its provider would; back again, it is no longer drained
            if not struck.is_on():
                struck.power_on()
            cluster.wait_until_ready()
        rows.append((f"{name}: until the next result", _seconds(times)))
    return rows


def _throughput(cluster: Any) -> list[Row]:
    from tests.cluster.hosts import wait_until  # noqa: PLC0415
    from tests.cluster.onprem import CPUS  # noqa: PLC0415

    rows = []
    for count in (3, 2, 1):
        for worker in cluster.workers[count:]:
            if worker.is_on():
                worker.power_off()
        cpus = f" 0.0/{CPUS * count}.0 CPU"
        wait_until(partial(_shows, cluster, cpus), "too many workers")
        trials = 4 * count
        search = cluster.start(
            f"hosts{count}",
            "resources.max_concurrent_trials=null",
            f"search.num_trials={trials}",
            "training.meta_steps=400",
            command="tune",
        )
        search.wait_for_reports(1)
        began, done = time.monotonic(), sum(bool(r["done"]) for r in search.results())
        search.wait_for_end_of_trials(trials, timeout_s=600)
        rate = 3600 * (trials - done) / _since(began)
        rows.append((f"trials per hour, {count} worker hosts on shared cores", f"{rate:.0f}"))
        search.stop()
    return rows


def _shows(cluster: Any, text: str) -> bool:
    return text in cluster.on_head("ray status")


def _since(began: float) -> float:
    return time.monotonic() - began


def _seconds(times: list[float]) -> str:
    middle = statistics.median(times)
    spread = f" ({min(times):.1f} to {max(times):.1f})" if len(times) > 1 else ""
    return f"{middle:.1f} s{spread}"


# -------------------------------------------------------------------- scale


def scale_rows() -> list[Row]:
    """Measured costs, and a simulation that lives on them."""
    rows = _event_rows()
    costs = {(n, p): _candidate_seconds(n, p) for n in ENDED for p in RUNNING}
    rows += [
        (f"a candidate with {n} trials ended and {p} running", f"{seconds:.2f} s")
        for (n, p), seconds in costs.items()
    ]
    # Time grows as a power of both numbers: fitted on the logarithms.
    known = np.log([[np.e, n, p] for n, p in costs])
    powers, *_ = np.linalg.lstsq(known, np.log(list(costs.values())), rcond=None)
    rows.append(
        ("as powers: of trials ended, of trials running", f"{powers[1]:.2f}, {powers[2]:.2f}")
    )

    def seconds(ended: int, running: int) -> float:
        return float(np.exp(np.log([np.e, max(ended, 1), max(running, 1)]) @ powers))

    for gpus in GPUS_PER_TRIAL:
        for hours in HOURS:
            busy, last = _simulated(SLOTS // gpus, 3600 * hours, seconds)
            name = f"{SLOTS} GPUs, {gpus} a trial, trials of {hours:g} h: slots busy"
            rows.append((name, f"{100 * busy:.1f} %, a candidate takes {last:.1f} s at the end"))
    return rows


def _event_rows() -> list[Row]:
    """The driver's side of the searcher with 1,000 trials running, and its state."""
    ray.init("local", num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
    searcher = AxSearcher(SPACE, metric="value", mode="max", method="random", max_steps=100)
    rng = np.random.default_rng(0)
    given: list[str] = []
    deadline = time.monotonic() + 600
    while len(given) < SLOTS and time.monotonic() < deadline:
        if searcher.suggest(f"t{len(given)}") is not None:
            given.append(f"t{len(given)}")
        else:
            time.sleep(0.005)
    times = []
    for step in range(1, 11):
        for trial in given:
            result = {"training_iteration": step, "value": float(rng.random())}
            began = time.perf_counter()
            searcher.on_trial_result(trial, result)
            times.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        began = time.perf_counter()
        searcher.save(str(path))
        saving, size = time.perf_counter() - began, path.stat().st_size
    ray.shutdown()
    return [
        (
            f"a report of one of {len(given)} trials, in the driver",
            f"{1e6 * np.median(times):.0f} µs",
        ),
        (
            f"state of {len(given)} trials of 10 reports",
            f"{1e3 * saving:.0f} ms, {size / 1e6:.2f} MB",
        ),
    ]


def _candidate_seconds(ended: int, running: int) -> float:
    rng = np.random.default_rng(0)

    def point() -> dict[str, Any]:
        return {parameter.name: float(rng.random()) for parameter in SPACE}

    settings = SearchSettings(objectives=(("value", "max"),), num_sobol=20)
    model = AxModel(Space(tuple(SPACE)), settings)
    records = {f"running{i}": TrialRecord(point(), "bo") for i in range(running)}
    for i in range(ended):
        at = point()
        curve: Curve = [(1, sum(at.values()), 0.01)]
        records[f"ended{i}"] = TrialRecord(at, "sobol", "completed", curve)
    model.propose_several(records, 1)
    began = time.monotonic()
    model.propose_several({}, CANDIDATES)
    return _since(began) / CANDIDATES


def _simulated(
    slots: int, trial_seconds: float, candidate_seconds: Callable[[int, int], float]
) -> tuple[float, float]:
    """Three rounds of trials on `slots` slots, candidates made one after another ahead of need.

    Returns:
        The share of the time, from the first end of a trial on, in which slots are busy; and the
        seconds of the last candidate.
    """
    rng = np.random.default_rng(0)
    lengths = trial_seconds * np.exp(0.25 * rng.standard_normal(4 * slots))
    ends = list(lengths[:slots])  # the first come from Sobol's sequence at once
    heapq.heapify(ends)
    begin = now = ends[0]
    idle_seconds = ready_at = cost = 0.0
    for ended, length in enumerate(lengths[slots:], 1):
        free = heapq.heappop(ends)
        cost = candidate_seconds(ended, slots)
        ready_at = max(ready_at + cost, free - 64 * cost)  # no more than a stock is made ahead
        now = max(free, ready_at)
        idle_seconds += now - free
        heapq.heappush(ends, now + length)
    return 1 - idle_seconds / (slots * (now - begin)), cost


def main() -> None:
    """Runs the parts and prints their rows."""
    parts: dict[str, Callable[[], list[Row]]] = {"hosts": host_rows, "scale": scale_rows}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {name: parts[name]() for name in arguments.only}
    table = Table("what", "seen", box=None, pad_edge=False)
    for rows in found.values():
        for row in rows:
            table.add_row(*row)
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
