"""What a cluster costs in time, and what a thousand GPUs would ask of head, search and storage.

- faults (root on Linux, with what the tests marked `cluster` need): on four test hosts of this
  machine, a head and three workers; seconds from `raymeta submit` to the first result of a trial,
  and from each fault to the next result;
- throughput (likewise): trials per hour with one, two and three worker hosts.  All hosts share this
  machine's cores, so this shows what they leave, not what hosts with cores of their own would give;
- scale: what an event costs the driver and what a candidate costs Ax, by the number of trials that
  have ended and that run; the bytes of the searcher's state; and from these a simulation of 1,000
  slots, for trials of different lengths: the share of the time in which slots are busy.
  `cluster/SCALING.md` draws the conclusions.

    python scripts/bench_cluster.py [--quick] [--only faults throughput scale] [--json FILE]
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from rich.console import Console
from rich.table import Table

from raymeta.search import AxSearcher, Parameter, Space
from raymeta.search.ax_model import AxModel
from raymeta.search.candidates import MOST_STOCK
from raymeta.search.records import Curve, TrialRecord
from raymeta.search.settings import SearchSettings

ROOT = Path(__file__).parents[1]
ROUNDS = 3  # of each measurement on the hosts
NOTICE_S, TIMEOUT_S = 30, 180
SPACE = [Parameter(name=f"x{i}", low=0, high=1) for i in range(6)]
ENDED, RUNNING = (100, 400), (8, 125, 1000)  # trials, where a candidate's time is measured
QUICK_ENDED, QUICK_RUNNING = (20,), (8,)
# Candidates that are made together, and whose mean time is taken; the searcher asks for as many as
# trials run, up to 64.
MOST_TOGETHER = 16
TICKS = 400  # reports of a trial, where Tune's own handling is measured
SLOTS, HOURS = 1000, (0.25, 1.0, 4.0, 12.0)  # of the simulation: trials at once, a trial's length
GPUS_PER_TRIAL = (1, 8)

Row = tuple[str, str]


# -------------------------------------------------------------------- hosts


@contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    """A head and so many workers; Ray is to be started."""
    from tests.cluster.conftest import ENVIRONMENT  # noqa: PLC0415  (root on Linux alone)
    from tests.cluster.hosts import Hosts  # noqa: PLC0415
    from tests.cluster.onprem import CPUS, OnPrem  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        hosts = Hosts(1 + workers, Path(folder), environment=ENVIRONMENT)
        for worker in hosts.hosts[1:]:
            worker.environment["RAY_OVERRIDE_RESOURCES"] = f'{{"CPU": {CPUS}}}'
        with hosts:
            cluster = OnPrem(hosts, redis=True)
            cluster.start_redis()
            yield cluster


def fault_rows() -> list[Row]:
    """Times on test hosts; each a median over rounds with its range."""
    with _cluster(3) as cluster:
        began = time.monotonic()
        cluster.up()
        rows = [_shown("`ray up` until three workers have joined", [_since(began)])]
        return [*rows, _submissions(cluster), *_recoveries(cluster)]


def _submissions(cluster: Any) -> Row:
    times = []
    for number in range(ROUNDS):
        began = time.monotonic()
        search = cluster.start(f"submit{number}", command="submit")
        search.wait_for_reports(1)
        times.append(_since(began))
        search.stop()
        cluster.wait_until_ready()
    return _shown("`raymeta submit` to the first result", times)


def _recoveries(cluster: Any) -> list[Row]:
    """Measures the time from the beginning of a fault to the next result of a trial.

    After the fault of a host it is the next result of the same trial, from another host.
    """
    faults: dict[str, Callable[[Any], object]] = {
        "the trial's process is killed": lambda search: search.kill_trial(),
        "the trial's host loses power": lambda search: search.trial_host().power_off(),
        "the cable of the trial's host is cut": lambda search: search.trial_host().cut_cable(),
        "the trial's host is to be taken away": lambda search: cluster.drain(
            search.trial_host(), NOTICE_S
        ),
        "the driver is killed": lambda _: cluster.head.kill("-m raymeta tune"),
        "the head loses power, is started again, and the run resumed": partial(_lose_head, cluster),
    }
    rows = []
    for index, (name, strike) in enumerate(faults.items()):
        times = []
        of_host = "host" in name
        for number in range(ROUNDS):
            command = "submit" if "trial" not in name else "train"
            search = cluster.start(f"fault{index}-{number}", command=command)
            search.wait_for_reports(3)
            struck = search.trial_host()
            began, known = time.monotonic(), len(search.results())
            strike(search)
            if of_host:
                search.wait_for_host_other_than(struck, TIMEOUT_S)
            else:
                search.wait_for_reports(known + 1, TIMEOUT_S)
            times.append(_since(began))
            search.stop()
            if of_host:
                struck.power_off()  # back again, it is no longer drained, and has its cable
                struck.power_on()
            cluster.wait_until_ready()
        rows.append(_shown(f"{name}: until the next result", times))
    return rows


def _lose_head(cluster: Any, search: Any) -> None:
    cluster.head.power_off()
    cluster.head.power_on()
    cluster.start_redis()
    cluster.up("--restart-only")
    cluster.laptop(f"raymeta submit --resume {search.name} --detach --cluster {cluster.file}")


def throughput_rows() -> list[Row]:
    """Trials per hour, from the first report of a search to the last."""
    rows = []
    for workers in (1, 2, 3):
        with _cluster(workers) as cluster:
            cluster.up()
            trials = 6 * workers
            search = cluster.start(
                "search",
                "resources.max_concurrent_trials=null",
                f"search.num_trials={trials}",
                "training.meta_steps=400",
                command="tune",
            )
            search.wait_for_reports(1)
            began, done = time.monotonic(), sum(bool(r["done"]) for r in search.results())
            search.wait_for_end_of_trials(trials, timeout_s=600)
            rate = 3600 * (trials - done) / _since(began)
            search.stop()
        name = f"trials per hour, worker hosts on shared cores: {workers}"
        Console(stderr=True).print(name, f"{rate:.0f}")
        rows.append((name, f"{rate:.0f}"))
    return rows


def _since(began: float) -> float:
    return time.monotonic() - began


def _shown(what: str, times: list[float]) -> Row:
    """Median and range, printed at once: the whole takes long."""
    spread = f" ({min(times):.1f} to {max(times):.1f})" if len(times) > 1 else ""
    row = (what, f"{statistics.median(times):.1f} s{spread}")
    Console(stderr=True).print(*row)
    return row


# -------------------------------------------------------------------- scale


def scale_rows(ended: Sequence[int], running: Sequence[int]) -> list[Row]:
    """Measured costs by the numbers of trials, and a simulation that uses them."""
    rows = [_loop_row(), *_event_rows()]
    costs = {(n, p): _candidate_seconds(n, p) for n in ended for p in running}
    rows += [
        (f"a candidate with {n} trials ended and {p} running", f"{seconds:.2f} s")
        for (n, p), seconds in costs.items()
    ]
    for gpus in GPUS_PER_TRIAL:
        slots = SLOTS // gpus
        if slots not in running:  # the quick form measures no such candidate
            continue
        for hours in HOURS:
            busy = _busy_share(slots, 3600 * hours, costs[ended[-1], slots])
            name = f"{SLOTS} GPUs, {gpus} a trial, trials of {hours:g} h: slots busy"
            rows.append((name, f"{100 * busy:.1f} %"))
    return rows


class _Ticking(tune.Trainable):
    """A trial whose reports cost nothing but Tune's own handling of them."""

    def step(self) -> dict[str, Any]:
        return {"value": 0.0, "done": self.iteration + 1 >= TICKS}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing; Tune saves a trial at its end."""


class _Times(tune.Callback):
    """Records when Tune processed each report."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_trial_result(self, **_: Any) -> None:
        self.seconds.append(time.perf_counter())


def _loop_row() -> Row:
    ray.init("local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False)
    times = _Times()
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            _Ticking,
            tune_config=tune.TuneConfig(num_samples=2, metric="value", mode="max"),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[times]),
        )
        errors = tuner.fit().errors
    ray.shutdown()
    assert not errors
    # Without the start: from a quarter of the reports on.
    taken = times.seconds[len(times.seconds) // 4 :]
    rate = (len(taken) - 1) / (taken[-1] - taken[0])
    return ("reports a second through Tune's loop, its files included", f"{rate:.0f}")


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
    together = min(running, MOST_TOGETHER)
    began = time.monotonic()
    model.propose_several({}, together)
    return _since(began) / together


def _busy_share(slots: int, trial_seconds: float, candidate_seconds: float) -> float:
    """The share of the time in which slots are busy, from the first end of a trial on.

    Three rounds of trials on `slots` slots are simulated; candidates are made one after another,
    up to a full stock ahead of need.
    """
    rng = np.random.default_rng(0)
    lengths = trial_seconds * np.exp(0.25 * rng.standard_normal(4 * slots))
    ends = list(lengths[:slots])  # the first come from Sobol's sequence at once
    heapq.heapify(ends)
    begin = now = ends[0]
    idle_seconds, ready_at = 0.0, begin
    for length in lengths[slots:]:
        free = heapq.heappop(ends)
        ready_at = max(ready_at + candidate_seconds, free - MOST_STOCK * candidate_seconds)
        now = max(free, ready_at)
        idle_seconds += now - free
        heapq.heappush(ends, now + length)
    return float(1 - idle_seconds / (slots * (now - begin)))


def main() -> None:
    """Runs the parts and prints their rows."""
    parts: dict[str, Callable[[], list[Row]]] = {
        "faults": fault_rows,
        "throughput": throughput_rows,
        "scale": lambda: scale_rows(ENDED, RUNNING),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument(
        "--quick", action="store_true", help="scale with few trials and without the simulation"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.only = ["scale"]
        parts["scale"] = partial(scale_rows, QUICK_ENDED, QUICK_RUNNING)
    sys.path.insert(0, str(ROOT))
    from tests.cluster.hosts import missing  # noqa: PLC0415

    found = {}
    for name in arguments.only:
        if name != "scale" and (reason := missing()) is not None:
            found[name] = [("test hosts", f"not run: {reason}")]
        else:
            found[name] = parts[name]()
    table = Table("what", "seen", box=None, pad_edge=False)
    for rows in found.values():
        for row in rows:
            table.add_row(*row)
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
