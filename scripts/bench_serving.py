"""What an adapted network costs where it is used: a step of a stream, an adaptation, a prediction.

Everything runs in this process on one thread.  Networks have the sizes of real ones and random
weights, on which no time depends.  Contestants take turns, round after round, and are first checked
to give the same numbers.

    python scripts/bench_serving.py [--rounds N] [--tasks N] [--json FILE]

A step is timed by the clock: it is over before a busy machine interrupts it, mostly.  What takes
milliseconds is timed by the processor's time of this thread, which is what the clock would say if
nothing else ran; the clock's own median stands beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

import raymeta
from raymeta.errors import DataWarning
from raymeta.evaluation.networks import keep_network
from raymeta.experiment.file import load_experiment
from raymeta.inference.adapted import Adapted
from raymeta.inference.model import Model
from raymeta.nn.native import library
from raymeta.run_folder import Run
from raymeta.training.trainer import build_trainer

HIDDEN, CHANNELS, STEPS = 64, 12, 200  # STEPS of a round; `vowels` has 12 channels
UNTRAINED = ("training.meta_steps=1", "training.pretrain_steps=0", "training.val_episodes=2")
ALONE = ("search.space={}", "search.refit=null", "resources.num_workers=1")
# Of `pen`: a network whose states are pooled, without the ink around the pen.
POOLED = ("learner=prototypes", "tasks.context_grid=0", "model.stacked_steps=1")
MOST_STEP_US, MOST_OF_FASTEST, MOST_ADAPT_MS = 100.0, 1.1, 10.0


@dataclass
class Row:
    """A line of the table; `holds` is None where nothing must be reached."""

    what: str
    must: str
    seen: str
    holds: bool | None = None


def model_of(folder: Path, source: str, *overrides: str) -> Model:
    """A network of a shipped experiment, hardly trained."""
    experiment = load_experiment(source, [*UNTRAINED, *ALONE, *overrides])
    run = Run.create(folder / "runs", experiment, name=f"run-{len(list(folder.iterdir()))}")
    trainer = build_trainer(experiment)
    trainer.train(1)
    checkpoint = folder / f"{run.path.name}.safetensors"
    checkpoint.write_bytes(trainer.serialize())
    keep_network(run, "tuned", checkpoint)
    run.keep_best({})
    return raymeta.load(run.path)


def session_of(path: Path) -> Any:
    """A graph in onnxruntime, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def strokes(num: int, seed: int) -> list[np.ndarray]:
    """Examples as `pen` has them: points x, y and the stroke's number, `[60, 3]`."""
    rng = np.random.default_rng(seed)
    walks = rng.normal(size=(num, 60, 2)).cumsum(axis=1) * 20
    return [np.column_stack([walk, np.repeat([0.0, 1.0], 30)]) for walk in walks]


def rounds_of(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, np.ndarray]:
    """Seconds `[rounds, repeats]` of each contestant, in turns."""
    found: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, act in contestants.items():
            times = []
            for _ in range(repeats):
                began = clock()
                act()
                times.append(clock() - began)
            if number:  # the first round warms up
                found[name].append(times)
    return {name: np.array(times) for name, times in found.items()}


def spread(values: np.ndarray, unit: str = "", digits: int = 1) -> str:
    """A median and its range over rounds."""
    middle, least, most = np.median(values), values.min(), values.max()
    return f"{middle:.{digits}f}{unit} ({least:.{digits}f} to {most:.{digits}f})"


def torch_step() -> Callable[[], object]:
    """GRU, head and softmax as a user of `torch.nn` has them, the state kept."""
    cell, head = torch.nn.GRUCell(CHANNELS, HIDDEN), torch.nn.Linear(HIDDEN, 3)
    state, x = [torch.zeros(1, HIDDEN)], np.ones((1, CHANNELS), np.float32)

    def step() -> object:
        with torch.inference_mode():
            state[0] = cell(torch.from_numpy(x), state[0])
            return head(state[0]).softmax(dim=-1).numpy()

    return step


def bare_onnx_step(folder: Path) -> Callable[[], object]:
    """A GRU, a product and a softmax alone in onnxruntime, without preparation and labels."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415  (an extra)

    rng = np.random.default_rng(0)
    shapes = {
        "w": (1, 3 * HIDDEN, CHANNELS),
        "r": (1, 3 * HIDDEN, HIDDEN),
        "b": (1, 6 * HIDDEN),
        "v": (HIDDEN, 3),
    }
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) / 8, name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("GRU", ["x", "w", "r", "b", "", "h"], ["", "g"], hidden_size=HIDDEN),
        helper.make_node("MatMul", ["g", "v"], ["y"]),
        helper.make_node("Softmax", ["y"], ["p"]),
    ]
    nodes[0].attribute.append(helper.make_attribute("linear_before_reset", 1))

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "step",
        [value("x", 1, 1, CHANNELS), value("h", 1, 1, HIDDEN)],
        [value("g", 1, 1, HIDDEN), value("p", 1, 1, 3)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "bare.onnx").write_bytes(model.SerializeToString())
    session, state = session_of(folder / "bare.onnx"), [np.zeros((1, 1, HIDDEN), np.float32)]
    x = np.ones((1, 1, CHANNELS), np.float32)

    def step() -> object:
        state[0], answer = session.run(None, {"x": x, "h": state[0]})
        return answer

    return step


def exported_step(adapted: Adapted, folder: Path, num_streams: int) -> Callable[..., Any]:
    """The graph that `raymeta export --stream` writes, in onnxruntime."""
    adapted.export(folder / "step.onnx", stream=True)
    session = session_of(folder / "step.onnx")
    state = [np.zeros((1, num_streams, HIDDEN), np.float32)]
    names = ["next_hidden", "probabilities"]

    def step(x: np.ndarray) -> Any:
        state[0], answer = session.run(names, {"x": x, "hidden": state[0]})
        return answer

    return step


def streams(folder: Path, rounds: int) -> list[Row]:
    """A step of one stream, and of 64 in a batch."""
    model = model_of(folder, "vowels", "model.bidirectional=false", "model.pooling=last")
    x = np.random.default_rng(0).normal(size=(40, CHANNELS))
    adapted = model.adapt([x[:20], x[20:], x[10:30]], ["a", "b", "c"])
    rows = []
    for num_streams in (1, 64):
        now = np.tile(x[0], (num_streams, 1))
        ours, theirs = adapted.stream(num_streams), exported_step(adapted, folder, num_streams)
        for one in x:
            each = np.tile(one, (num_streams, 1))
            assert np.abs(ours.step(each) - theirs(each)).max() < 1e-5
        most, current = model.trained.inputs.stream_steps or 0, [ours]

        def step(
            now: np.ndarray = now, most: int = most, current: Any = current, n: int = num_streams
        ) -> object:
            if current[0].num_steps == most:
                current[0] = adapted.stream(n)
            return current[0].step(now)

        def exported(now: np.ndarray = now, theirs: Callable[..., Any] = theirs) -> object:
            return theirs(now)

        contestants: dict[str, Callable[[], object]] = {"raymeta": step, "exported": exported}
        if num_streams == 1:
            contestants |= {"torch.nn": torch_step(), "bare": bare_onnx_step(folder)}
        found = rounds_of(contestants, rounds, STEPS, time.perf_counter)
        us = {name: 1e6 * np.median(times, axis=1) for name, times in found.items()}
        tails = {name: 1e6 * np.quantile(times, 0.99) for name, times in found.items()}
        what = f"a step of {num_streams} stream{'s' * (num_streams > 1)}, GRU-{HIDDEN}"
        for name, values in us.items():
            label = {
                "raymeta": "adapted.stream()",
                "exported": "onnxruntime, the exported graph",
                "bare": "onnxruntime, GRU and head alone",
                "torch.nn": "torch.nn, GRU and head alone",
            }[name]
            is_ours = name == "raymeta" and num_streams == 1
            rows.append(
                Row(
                    f"{what}: {label}",
                    f"≤ {MOST_STEP_US:.0f} µs" if is_ours else "shown",
                    f"{spread(values)} µs, p99 {tails[name]:.0f}",
                    float(np.median(values)) <= MOST_STEP_US if is_ours else None,
                )
            )
        fastest = np.min([them for name, them in us.items() if name != "raymeta"], axis=0)
        ratio = us["raymeta"] / fastest
        rows.append(
            Row(
                f"{what}: against the fastest of the others",
                f"≤ {MOST_OF_FASTEST} ×",
                spread(ratio, " ×", 2),
                float(np.median(ratio)) <= MOST_OF_FASTEST,
            )
        )
    return rows


def adaptations(folder: Path, rounds: int, num_tasks: int) -> list[Row]:
    """Adaptation to 5-way 1-shot tasks of `pen`: one, many, and within an ONNX graph."""
    rows, labels = [], list("abcde")
    support, query = strokes(5, seed=0), strokes(1, seed=1)
    classes = np.arange(5)
    sizes = {
        name: np.full(len(x), 60, np.int64) for name, x in (("support", support), ("x", query))
    }
    inputs = {
        "support_x": np.stack(support),
        "support_lengths": sizes["support"],
        "support_y": classes,
        "x": np.stack(query),
        "lengths": sizes["x"],
    }
    for learner, source, overrides in (
        ("alignment", "pen", ()),
        ("prototypes", "pen", POOLED),
        ("maml, 10 steps", "pen-maml", ("evaluation.adaptation_steps=10",)),
    ):
        model = model_of(folder, source, *overrides)
        model.export(folder / "adapting.onnx")
        session = session_of(folder / "adapting.onnx")

        def in_graph(session: Any = session) -> Any:
            return session.run(["probabilities"], inputs)[0]

        def one(model: Model = model) -> Adapted:
            return model.adapt(support, labels)

        def both(model: Model = model) -> np.ndarray:
            return model.adapt(support, labels).predict_proba(query)

        apart = float(np.abs(in_graph() - both()).max())
        assert apart < 1e-4, f"the graph and Python differ by {apart}"
        contestants = {"adapt": one, "both": both, "graph": in_graph}
        found = rounds_of(contestants, rounds, 5, time.thread_time)
        ms = {name: 1e3 * np.median(times, axis=1) for name, times in found.items()}
        clock = 1e3 * np.median(rounds_of({"adapt": one}, rounds, 5, time.perf_counter)["adapt"])
        rows.append(
            Row(
                f"adapt, {source}, {learner}",
                f"≤ {MOST_ADAPT_MS:.0f} ms",
                f"{spread(ms['adapt'])} ms of the processor, {clock:.1f} by the clock",
                float(np.median(ms["adapt"])) <= MOST_ADAPT_MS,
            )
        )
        rows.append(
            Row(
                f"adapt and predict one, {source}, {learner}",
                "shown",
                f"Python {spread(ms['both'])} ms, the ONNX graph {spread(ms['graph'])} ms, "
                f"{spread(ms['both'] / ms['graph'], ' ×')}; apart by {apart:.0e}",
            )
        )
        rows.append(many_tasks(model, f"{source}, {learner}", num_tasks, labels))
        adapted = one()
        for number in (1, 16, 256):
            queries = strokes(number, seed=2)
            taken = rounds_of(
                {"": partial(adapted.predict_proba, queries)}, rounds, 3, time.thread_time
            )[""]
            rows.append(
                Row(
                    f"predictions a second in calls of {number}, {source}, {learner}",
                    "shown",
                    spread(number / np.median(taken, axis=1), digits=0),
                )
            )
    return rows


def many_tasks(model: Model, what: str, num_tasks: int, labels: list[str]) -> Row:
    """Tasks adapted in one call, against a tenth of them one by one."""
    tasks = [(strokes(5, seed=seed), labels) for seed in range(num_tasks)]
    query, few = strokes(4, seed=10**6), tasks[: max(1, num_tasks // 10)]
    began = time.thread_time()
    together = model.adapt_many(tasks)
    each_together = (time.thread_time() - began) / num_tasks
    began = time.thread_time()
    alone = [model.adapt(*task) for task in few]
    each_alone = (time.thread_time() - began) / len(few)
    apart = max(
        float(np.abs(one.predict_proba(query) - other.predict_proba(query)).max())
        for one, other in zip(alone, together, strict=False)
    )
    ratio = each_alone / each_together
    return Row(
        f"{num_tasks} tasks adapted in one call, {what}",
        "equal to 1e-6, faster",
        f"{1e3 * each_together:.2f} ms a task, {ratio:.1f} × as fast as alone; apart by "
        f"{apart:.0e}",
        apart <= 1e-6 and ratio > 1,
    )


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DataWarning)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = streams(folder, arguments.rounds)
        rows += adaptations(folder, arguments.rounds, arguments.tasks)
    console = Console(width=150)
    told = "compiled" if library() is not None else "torch's operations: no C++ compiler"
    console.print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {told}")
    table = Table("what", "must reach", "seen: median (range over rounds)", "")
    for row in rows:
        verdict = "" if row.holds is None else "holds" if row.holds else "falls short"
        table.add_row(row.what, row.must, row.seen, verdict)
    console.print(table)
    if arguments.json:
        content = json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False)
        arguments.json.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
