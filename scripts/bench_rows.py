"""Tables of millions of rows: `raymeta inspect`, the start of training, memory, and waiting.

Makes a table of windows of six sensors, by person and activity, as one Parquet file; the same rows
every time.  Each part is measured in a process of its own:

- the seconds and the peak memory of `raymeta inspect`;
- the seconds until a worker holds its tasks, at first and again;
- what 1 and 4 workers that are to train hold in memory, beyond what they hold of a table of ten
  people: what each has written itself, and their shares of the pages that they share (PSS);
- the share of the time of meta-steps that waits for episodes.

    python scripts/bench_rows.py [--rows N] [--quick] [--steps N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

STEPS = 128  # rows of a window
ACTIVITIES = 8
SENSORS = ("ax", "ay", "az", "gx", "gy", "gz")
WINDOWS_EACH = 39  # of a person and an activity
PERSON_ROWS = ACTIVITIES * WINDOWS_EACH * STEPS
BLOCK = 2048  # windows made at a time
FEWEST = 10 * PERSON_ROWS  # a table that is large enough to be mapped too
HELD_OUT = 0.1  # of the people, for validation and for the test
INSPECT_LIMIT_S = 60.0
WAIT_LIMIT = 0.05
WORKERS = (1, 4)

EXPERIMENT = """
name: rows
tasks:
  source: table
  data_dir: {folder}
  kind: groups
  sequence: window
  target: activity
  time: step
  features: [{sensors}]
  groups: [person]
  num_ways: {ways}
  num_shots: 2
  num_queries: 2
  val_groups: {held_out}
  test_groups: {held_out}
"""


def make_table(folder: Path, num_rows: int) -> Path:
    """Writes at least so many rows, of whole people, and the experiment file, which it returns."""
    folder.mkdir()
    people = math.ceil(num_rows / PERSON_ROWS)
    num_windows = people * PERSON_ROWS // STEPS
    schema = pa.schema(
        [("window", pa.string()), ("person", pa.string()), ("activity", pa.string())]
        + [("step", pa.int32())]
        + [(name, pa.float64()) for name in SENSORS]
    )
    with pq.ParquetWriter(folder / "rows.parquet", schema) as writer:
        for start in range(0, num_windows, BLOCK):
            number = np.arange(start, min(start + BLOCK, num_windows))
            rng = np.random.default_rng((0, start))
            activity = number % ACTIVITIES
            person = number // (ACTIVITIES * WINDOWS_EACH)
            speed = (0.05 + 0.05 * activity)[:, None, None] * (1 + np.arange(len(SENSORS)) % 3)
            phase = rng.uniform(0, 6, (len(number), 1, len(SENSORS)))
            x = np.sin(speed * np.arange(STEPS)[:, None] + phase)
            x += rng.normal(0, 0.3, x.shape) + 0.1 * (person % 7)[:, None, None]
            owner = np.repeat(np.arange(len(number)), STEPS)
            columns = [
                pa.array([f"w{one:07}" for one in number]).take(pa.array(owner)),
                pa.array([f"p{one:05}" for one in person]).take(pa.array(owner)),
                pa.array([f"activity {one}" for one in activity]).take(pa.array(owner)),
                pa.array(np.tile(np.arange(STEPS, dtype=np.int32), len(number))),
                *(pa.array(x[:, :, place].reshape(-1)) for place in range(len(SENSORS))),
            ]
            writer.write_table(pa.table(columns, schema=schema))
    file = folder / "rows.yaml"
    file.write_text(
        EXPERIMENT.format(
            folder=folder,
            sensors=", ".join(SENSORS),
            ways=ACTIVITIES,
            held_out=max(1, int(HELD_OUT * people)),
        )
    )
    return file


@dataclass(frozen=True)
class Ended:
    """A process that ended: its seconds by the clock and of the processor, its peak of memory."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def ended(command: list[str], log: Path) -> Ended:
    """Runs a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}: {log.read_text()}"
        )
    return Ended(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def own_command(part: str, file: Path, *further: str) -> list[str]:
    """The command that runs one part of this script in a process of its own."""
    return [sys.executable, __file__, "--part", part, "--file", str(file), *further]


def worker(file: Path, num_steps: int) -> None:
    """Starts as a worker of a trial does, waits for a line, trains, and tells what it saw."""
    import torch  # noqa: PLC0415  (seconds, which the other parts need not spend)

    from raymeta.episodes import TaskDistribution  # noqa: PLC0415
    from raymeta.experiment.file import load_experiment  # noqa: PLC0415
    from raymeta.training.trainer import build_trainer  # noqa: PLC0415

    torch.set_num_threads(1)
    experiment = load_experiment(str(file))
    start = time.perf_counter()
    trainer = build_trainer(experiment)
    print(json.dumps({"start_s": time.perf_counter() - start}), flush=True)
    sys.stdin.readline()
    waited = [0.0]
    draw = TaskDistribution.episodes

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        drawn = draw(*arguments)
        waited[0] += time.perf_counter() - began
        return drawn

    trainer.train(min(2, num_steps))  # compilers and caches
    TaskDistribution.episodes = timed  # type: ignore[assignment,method-assign]
    start = time.perf_counter()
    trainer.train(num_steps)
    seconds = time.perf_counter() - start
    print(json.dumps({"waited_s": waited[0], "seconds": seconds}), flush=True)


def memory_of(pid: int) -> tuple[int, int]:
    """The bytes that a process has written itself, and its share of all that it uses (PSS)."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        found[name] = int(value.split()[0]) * 1024
    return found["Private_Dirty"], found["Pss"]


def workers(file: Path, count: int, num_steps: int) -> tuple[list[dict[str, Any]], int, int]:
    """Runs `count` workers at once, each of which holds its tasks.

    Returns:
        What each one says; the mean of what each has written itself; the sum of their shares.
    """
    command = own_command("worker", file, "--steps", str(num_steps))
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    said: list[dict[str, Any]] = [{} for _ in running]
    memory: list[tuple[int, int]] = []
    try:
        for part in range(2):
            for process, own in zip(running, said, strict=True):
                assert process.stdout is not None, "it is a pipe"
                own.update(json.loads(process.stdout.readline()))
            if part == 0:
                memory = [memory_of(process.pid) for process in running]
                for process in running:
                    assert process.stdin is not None, "it is a pipe"
                    process.stdin.write("train\n")
                    process.stdin.flush()
    finally:
        for process in running:
            process.communicate()
    return said, sum(own for own, _ in memory) // count, sum(share for _, share in memory)


def measure(folder: Path, num_rows: int, num_steps: int) -> dict[str, Any]:
    """Measures all parts on one table."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    small = make_table(folder / "small", FEWEST)
    start = time.perf_counter()
    file = make_table(folder / "large", num_rows)
    made_s = time.perf_counter() - start
    log = folder / "log.txt"
    inspect = ended([sys.executable, "-m", "raymeta", "inspect", str(file)], log)
    first, again = (workers(file, 1, 0)[0][0]["start_s"] for _ in range(2))
    found: dict[str, Any] = {
        "rows": pq.read_metadata(file.parent / "rows.parquet").num_rows,
        "file_mb": (file.parent / "rows.parquet").stat().st_size / 1e6,
        "made_s": made_s,
        "inspect_s": inspect.seconds,
        "inspect_cpu_s": inspect.cpu_s,
        "inspect_peak_mb": inspect.peak_bytes / 1e6,
        "first_start_s": first,
        "next_start_s": again,
    }
    workers(small, 1, 0)  # prepares it
    found["numbers_mb"] = found["rows"] * len(SENSORS) * 8 / 1e6
    for count in WORKERS:
        _, small_own, small_share = workers(small, count, 0)
        said, own, share = workers(file, count, num_steps)
        found |= {
            f"own_{count}_mb": (own - small_own) / 1e6,
            f"pss_{count}_mb": (share - small_share) / 1e6,
            f"waits_{count}": sum(one["waited_s"] for one in said)
            / sum(one["seconds"] for one in said),
        }
    return found


def rows_of(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The lines of the table: what, its limit, what was seen, the verdict."""

    def verdict(value: float, limit: float) -> str:
        return "holds" if value <= limit else "falls short"

    most, peak = WORKERS[-1], f"{found['inspect_peak_mb']:,.0f} MB"
    numbers = found["numbers_mb"]
    lines = [
        (
            "raymeta inspect",
            f"≤ {INSPECT_LIMIT_S:.0f} s",
            f"{found['inspect_s']:.0f} s, {found['inspect_cpu_s']:.0f} s of the processor; {peak}",
            verdict(found["inspect_s"], INSPECT_LIMIT_S),
        ),
        (
            "start of training in a worker",
            "",
            f"{found['first_start_s']:.1f} s at first, then {found['next_start_s']:.1f} s",
            "",
        ),
        (
            "memory of the data, 1 worker",
            f"≤ {numbers:,.0f} MB: the numbers once",
            f"{found['pss_1_mb']:,.0f} MB, {found['own_1_mb']:,.0f} MB its own",
            verdict(found["pss_1_mb"], numbers),
        ),
        (
            f"memory of the data, {most} workers together",
            f"≤ {numbers:,.0f} MB",
            f"{found[f'pss_{most}_mb']:,.0f} MB, {found[f'own_{most}_mb']:,.0f} MB each one's own",
            verdict(found[f"pss_{most}_mb"], numbers),
        ),
    ]
    for count in WORKERS:
        waits = found[f"waits_{count}"]
        lines.append(
            (
                f"waiting for episodes, {count} at once",
                f"≤ {WAIT_LIMIT:.0%} of a meta-step",
                f"{waits:.1%}, training {1 - waits:.1%}",
                verdict(waits, WAIT_LIMIT),
            )
        )
    return lines


def main() -> None:
    """Measures, prints the table, and writes it if asked."""
    parser = argparse.ArgumentParser(description="Tables of millions of rows.")
    parser.add_argument("--rows", type=int, default=10_000_000, help="default: 10 million")
    parser.add_argument("--quick", action="store_true", help="1 million rows")
    parser.add_argument("--steps", type=int, default=10, help="meta-steps timed (default 10)")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--part", choices=("worker",), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "worker":
        worker(arguments.file, arguments.steps)
        return
    num_rows = 1_000_000 if arguments.quick else arguments.rows
    if num_rows < FEWEST:
        parser.error(f"--rows must be at least {FEWEST:,}, but got {num_rows:,}")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), num_rows, arguments.steps)
    title = f"{found['rows']:,} rows, {found['file_mb']:,.0f} MB of Parquet"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("", "must reach", "seen", ""):
        table.add_column(name)
    for line in rows_of(found):
        table.add_row(*line)
    Console(width=150).print(table)
    if arguments.json is not None:
        content = found | {"cores": os.cpu_count()}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
