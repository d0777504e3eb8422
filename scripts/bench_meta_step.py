"""The exact second-order meta-step of recurrent networks: raymeta beside its peers and the floor.

Every contestant gets the same weights, episodes, loss and number of threads, in one process; their
meta-gradients are compared first, and one that is more than 1e-4 (relative to the largest entry)
away from raymeta's is refused.  Contestants take turns, round by round; a ratio is taken within a
round, and the median over rounds is shown with its range.

- loops over tasks on `torch.nn` modules: learn2learn 0.2.0, higher 0.2.1, TorchOpt 0.7.3, and a
  plain loop of `torch.func.functional_call`;
- vmap over hand-written cells: parallel-metalearn 0.5.6 (its own LSTM, GRU and two-directional
  layers; it has no plain RNN, which is written here in its form);
- the floor: the matrix products and gate functions of the same step alone, without autograd.

What was tried, predicted → seen (one thread, LSTM, first row of the grid, 5 inner steps):

- one autograd function a layer with both derivatives written out, instead of single operations:
  2 × → 1.5 ×: element-wise passes over memory and copies between layouts remained;
- compiled scans, episode by episode in the cache, gates fused with their products
  (`raymeta.nn.native`), instead of torch's operations: 2 × → 1.3 × at first, since the compiler did
  not see that the gate loops vectorise; 1.7 × with `omp simd`;
- freed blocks kept by the C library (`mallopt`), instead of pages cleared anew: 1.1 × → 1.09 ×;
- the second-order adjoint scan taken together with the layer's own (sources of one scan), the
  tangent scan together with the sources, so that tangents of the gates never reach the memory; no
  copy of a single direction; biases as a feature that is one: 1.4 × → 1.6 × (663 to 411 ms);
- our own batched product for projections and weight gradients: 1.15 × → 1.02 × there, more on
  smaller sizes: it reaches 80 to 110 GFLOP/s a thread, where torch's reaches 45 to 90;
- chunks of episodes that fit the cache: 1.2 × → none to slower: the graph of five steps does not
  fit in any case, and small chunks cost calls;
- memory-flat mode, parameters of every step kept in one block: 1.9 × → 1.3 × of added memory for
  20 steps against 5; two steps taken again at a time, half as many kept: 1.06 × in use.

What limits it now: products, at the speed of the machine, are two thirds of the time, and passes
over tensors larger than the cache most of the rest.

The peers are put into a folder of their own by `pip install --no-deps`, without learn2learn's
compiled parts, whose build fails today; one that cannot be run is listed as not run.

    python scripts/bench_meta_step.py [--rounds N] [--rows N] [--json FILE] [--peers FOLDER]
    python scripts/bench_meta_step.py --quick
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib
import json
import math
import statistics
import subprocess
import sys
import tarfile
import time
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raymeta.episodes import Episodes, Examples
from raymeta.experiment.file import load_experiment
from raymeta.meta.learners.maml import Maml
from raymeta.nn.cells import NUM_GATES, Cell
from raymeta.nn.native import keep_freed_memory, library
from raymeta.nn.native import scans as native_scans
from raymeta.nn.networks import NetworkSpec, Params, init_params
from raymeta.problem import PROBLEMS
from raymeta.training.distributed import join_group
from raymeta.training.trainer import build_trainer

INNER_STEPS, INNER_LR = 5, 0.1
TOLERANCE = 1e-4
PEERS = ("higher==0.2.1", "torchopt==0.7.3", "optree", "parallel-metalearn==0.5.6")
LEARN2LEARN = "learn2learn==0.2.0"
LOOPS = ("learn2learn", "higher", "torchopt", "functional_call")
VMAP = "parallel-metalearn"
OURS, FLOOR = "raymeta", "floor"
MIB = 2**20
CELLS: tuple[Cell, ...] = ("rnn", "gru", "lstm")


@dataclass(frozen=True)
class Row:
    """Sizes of a meta-step."""

    episodes: int
    length: int
    features: int
    hidden: int
    ways: int
    support: int
    query: int
    num_layers: int = 1
    bidirectional: bool = False

    def __str__(self) -> str:
        sizes = (self.episodes, self.length, self.features, self.hidden, self.ways)
        more = ", 2 layers" if self.num_layers == 2 else ""
        more += ", two directions" if self.bidirectional else ""
        return f"{', '.join(map(str, sizes))}, {self.support}, {self.query}{more}"


GRID = (
    Row(16, 32, 16, 64, 5, 25, 25),
    Row(32, 32, 8, 32, 5, 5, 15),
    Row(4, 64, 8, 128, 2, 20, 30),
    Row(64, 16, 4, 16, 2, 4, 8),
    Row(8, 200, 6, 64, 5, 25, 25),
)
SMALLEST = GRID[3]
DEEPER = (
    Row(32, 32, 8, 32, 5, 5, 15, num_layers=2),
    Row(32, 32, 8, 32, 5, 5, 15, bidirectional=True),
)


class Problem:
    """One row for one cell: the network's weights and the episodes that all contestants get."""

    def __init__(self, cell: Cell, row: Row) -> None:
        generator = torch.Generator().manual_seed(0)
        self.cell, self.row = cell, row
        self.spec = NetworkSpec(
            num_outputs=row.ways,
            num_features=row.features,
            cell=cell,
            hidden_size=row.hidden,
            num_layers=row.num_layers,
            bidirectional=row.bidirectional,
        )
        self.params = init_params(self.spec, generator)

        def examples(count: int) -> Examples:
            x = torch.randn(row.episodes, count, row.length, row.features, generator=generator)
            return Examples(x, torch.arange(count).remainder(row.ways).repeat(row.episodes, 1))

        self.episodes = Episodes(
            examples(row.support), examples(row.query), torch.arange(row.episodes)
        )

    def module(self) -> TorchNetwork:
        """The same network of torch's modules."""
        module = TorchNetwork(self.spec)
        module.load_state_dict(self.params)
        return module

    def tasks(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Support and query of every episode."""
        support, query = self.episodes.support, self.episodes.query
        return zip(support.x, support.y, query.x, query.y, strict=True)


class TorchNetwork(nn.Module):
    """The network of a loop over tasks: `torch.nn`'s layers and a head on the last state."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        layers: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        assert spec.num_features is not None
        self.rnn = layers[spec.cell](
            spec.num_features,
            spec.hidden_size,
            spec.num_layers,
            batch_first=True,
            bidirectional=spec.bidirectional,
        )
        self.head = nn.Linear(spec.output_size, spec.num_outputs)
        self._hidden = spec.hidden_size

    def features(self, x: Tensor) -> Tensor:
        """The last state of each direction, `[N, F]`."""
        states, _ = self.rnn(x)
        ends = [states[:, -1, : self._hidden]]
        if self.rnn.bidirectional:
            ends.append(states[:, 0, self._hidden :])
        return torch.cat(ends, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, ways]`."""
        logits: Tensor = self.head(self.features(x))
        return logits


# -------------------------------------------------------------------- contestants


def run_raymeta(problem: Problem) -> Callable[[], Params]:
    """Sums of the meta-gradients over episodes; the others give the same."""
    maml = Maml(adaptation_steps=INNER_STEPS, inner_lr=INNER_LR)

    def step() -> Params:
        return maml.meta_gradient(
            problem.spec, PROBLEMS["classification"], problem.params, problem.episodes
        ).grads

    return step


def run_functional_call(problem: Problem) -> Callable[[], Params]:
    """A plain loop."""
    module = problem.module()
    start: Params = dict(module.named_parameters())

    def step() -> Params:
        module.zero_grad()
        for support_x, support_y, query_x, query_y in problem.tasks():
            params = start
            for _ in range(INNER_STEPS):
                logits = torch.func.functional_call(module, params, (support_x,))
                grads = torch.autograd.grad(
                    F.cross_entropy(logits, support_y), list(params.values()), create_graph=True
                )
                params = {
                    name: value - INNER_LR * grad
                    for (name, value), grad in zip(params.items(), grads, strict=True)
                }
            logits = torch.func.functional_call(module, params, (query_x,))
            F.cross_entropy(logits, query_y).backward()  # type: ignore[no-untyped-call]
        return _grads(module)

    return step


def run_learn2learn(problem: Problem) -> Callable[[], Params]:
    """A meta-step with learn2learn's `MAML` wrapper."""
    algorithms = importlib.import_module("learn2learn.algorithms.maml")
    module = problem.module()
    maml = algorithms.MAML(module, lr=INNER_LR)

    def step() -> Params:
        module.zero_grad()
        for support_x, support_y, query_x, query_y in problem.tasks():
            learner = maml.clone()
            for _ in range(INNER_STEPS):
                learner.adapt(F.cross_entropy(learner(support_x), support_y))
            F.cross_entropy(learner(query_x), query_y).backward()  # type: ignore[no-untyped-call]
        return _grads(module)

    return step


def run_higher(problem: Problem) -> Callable[[], Params]:
    """A meta-step with higher's inner-loop context."""
    higher = importlib.import_module("higher")
    module = problem.module()
    optimizer = torch.optim.SGD(module.parameters(), lr=INNER_LR)

    def step() -> Params:
        module.zero_grad()
        for support_x, support_y, query_x, query_y in problem.tasks():
            with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (
                functional,
                inner,
            ):
                for _ in range(INNER_STEPS):
                    inner.step(F.cross_entropy(functional(support_x), support_y))
                F.cross_entropy(functional(query_x), query_y).backward()  # type: ignore[no-untyped-call]
        return _grads(module)

    return step


def run_torchopt(problem: Problem) -> Callable[[], Params]:
    """A meta-step with TorchOpt's differentiable optimiser."""
    torchopt = importlib.import_module("torchopt")
    module = problem.module()
    leaves = dict(module.named_parameters())
    inner = torchopt.MetaSGD(module, lr=INNER_LR)

    def step() -> Params:
        for leaf in leaves.values():
            leaf.grad = None
        before = torchopt.extract_state_dict(module, by="reference")
        optimizer_before = torchopt.extract_state_dict(inner, by="reference")
        for support_x, support_y, query_x, query_y in problem.tasks():
            for _ in range(INNER_STEPS):
                inner.step(F.cross_entropy(module(support_x), support_y))
            F.cross_entropy(module(query_x), query_y).backward()  # type: ignore[no-untyped-call]
            torchopt.recover_state_dict(module, before)
            torchopt.recover_state_dict(inner, optimizer_before)
        return {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}

    return step


def run_parallel_metalearn(problem: Problem) -> Callable[[], Params]:
    """A meta-step with parallel-metalearn's `MAML.step`, vmap backend, over its own layers."""
    algorithms = importlib.import_module("metalearn.algorithms.MAML")
    wrappers = importlib.import_module("metalearn.model_wrappers.MAMLWrapper")
    optimizers = importlib.import_module("metalearn.inner_optimizers.optimizers")
    losses = importlib.import_module("metalearn.loss.CEloss")
    accuracy = importlib.import_module("metalearn.loss.categorical_accuracy")
    backbone = VmapBackbone(problem.spec)
    head = VmapHead(problem.spec)
    backbone.take(problem.params)
    head.take(problem.params)
    model = wrappers.MAML_Model(backbone, head)
    maml = algorithms.MAML(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        inner_optimizer=optimizers.InnerSGD(
            model.get_fast_weights(),
            inner_lr=INNER_LR,
            max_inner_steps=INNER_STEPS,
            learn_lr=False,
        ),
        support_loss_fn=losses.CrossEntropy(accuracy.CategoricalAccuracy()),
        inner_steps=INNER_STEPS,
        chunk_size=problem.row.episodes,
        device=torch.device("cpu"),
    )
    support, query = problem.episodes.support, problem.episodes.query
    batch = (support.x, {"labels": support.y}, query.x, {"labels": query.y})

    def step() -> Params:
        maml.step(iter([batch]))
        grads = backbone.grads() | head.grads()
        return {name: grad * problem.row.episodes for name, grad in grads.items()}

    return step


class VmapRnn(nn.Module):
    """A tanh layer in the form of parallel-metalearn's GRU and LSTM."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w_ih = nn.Parameter(torch.empty(hidden_dim, input_dim))
        self.w_hh = nn.Parameter(torch.empty(hidden_dim, hidden_dim))
        self.bias_ih = nn.Parameter(torch.empty(hidden_dim))
        self.bias_hh = nn.Parameter(torch.empty(hidden_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """States `[N, T, H]` and the last one."""
        state = x.new_zeros(x.shape[0], self.w_hh.shape[0])
        states = []
        for projected in torch.unbind(F.linear(x, self.w_ih, self.bias_ih), dim=1):
            state = torch.tanh(projected + F.linear(state, self.w_hh, self.bias_hh))
            states.append(state)
        return torch.stack(states, dim=1), state


class VmapBackbone(nn.Module):
    """Layers of parallel-metalearn, and the last state of them."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        classes: dict[str, Any] = {"rnn": VmapRnn}
        if spec.cell != "rnn":
            name = spec.cell.upper()
            package = importlib.import_module(f"metalearn.nn_models.basic_layers.{name}")
            classes[spec.cell] = getattr(
                package, f"{'ParallelBi' if spec.bidirectional else 'Uni'}{name}"
            )
        elif spec.bidirectional:
            raise ImportError("parallel-metalearn has no RNN of two directions")
        sizes = [spec.input_size, *[spec.output_size] * (spec.num_layers - 1)]
        self.layers = nn.ModuleList(classes[spec.cell](size, spec.hidden_size) for size in sizes)
        self._spec = spec

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Features `[N, F]`."""
        for layer in self.layers:
            x, _last = layer(x)
        if not self._spec.bidirectional:
            return x[:, -1]
        forwards, backwards = x.chunk(2, dim=-1)
        return torch.cat([forwards[:, -1], backwards[:, 0]], dim=-1)

    _names = (
        ("w_ih", "weight_ih"),
        ("w_hh", "weight_hh"),
        ("bias_ih", "bias_ih"),
        ("bias_hh", "bias_hh"),
    )

    def take(self, params: Params) -> None:
        """Copies the weights."""
        with torch.no_grad():
            for number, layer in enumerate(self.layers):
                for mine, torchs in self._names:
                    both = [params[f"rnn.{torchs}_l{number}{end}"] for end in self._spec.suffixes]
                    stacked = torch.stack(both) if self._spec.bidirectional else both[0]
                    getattr(layer, mine).copy_(stacked)

    def grads(self) -> Params:
        """The gradients by torch's names."""
        found: Params = {}
        for number, layer in enumerate(self.layers):
            for mine, torchs in self._names:
                grad = getattr(layer, mine).grad
                parts = grad.unbind(0) if self._spec.bidirectional else [grad]
                for end, part in zip(self._spec.suffixes, parts, strict=True):
                    found[f"rnn.{torchs}_l{number}{end}"] = part.clone()
        return found


class VmapHead(nn.Module):
    """The linear head; parallel-metalearn passes it keywords."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.output_size, spec.num_outputs)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Logits."""
        logits: Tensor = self.linear(x)
        return logits

    def take(self, params: Params) -> None:
        """Copies the weights."""
        with torch.no_grad():
            self.linear.weight.copy_(params["head.weight"])
            self.linear.bias.copy_(params["head.bias"])

    def grads(self) -> Params:
        """The gradients by raymeta's names."""
        weight, bias = self.linear.weight.grad, self.linear.bias.grad
        assert weight is not None and bias is not None  # noqa: PT018
        return {"head.weight": weight.clone(), "head.bias": bias.clone()}


def run_floor(problem: Problem) -> Callable[[], Params]:
    """The products and gate functions that a step cannot do without, on buffers made before.

    A pass over the support set in second order is four scans (the layer, its adjoint, and the
    tangents of both), each a product a time step; gates belong to the first.  Weight gradients,
    their tangents and the products with tangent weights are one product for all time steps each.
    The query set has two scans.
    """
    row, spec = problem.row, problem.spec
    gates = NUM_GATES[problem.cell] * row.hidden
    directions = len(spec.suffixes)
    sets = [(row.support, True)] * INNER_STEPS + [(row.query, False)]  # in second order

    def products(left: tuple[int, ...], right: tuple[int, ...]) -> Callable[[], object]:
        episodes = row.episodes * directions
        a, b = torch.randn(episodes, *left) * 0.1, torch.randn(episodes, *right) * 0.1
        out = torch.empty(episodes, left[0], right[1])
        return lambda: torch.bmm(a, b, out=out)

    parts: list[tuple[int, Callable[[], object]]] = []
    for layer in range(spec.num_layers):
        size = spec.input_size if layer == 0 else spec.output_size
        for count, second in sets:
            rows = count * row.length
            forward = products((count, row.hidden), (row.hidden, gates))
            backward = products((count, gates), (gates, row.hidden))
            parts += [(row.length * (1 + second), scan) for scan in (forward, backward)]
            parts.append((row.length, _gate_functions(problem.cell, directions, row, count)))
            parts.append((1 + second, products((rows, size), (size, gates))))
            parts.append((1 + second, products((size, rows), (rows, gates))))
            parts.append((1 + 2 * second, products((row.hidden, rows), (rows, gates))))
            if second:
                parts.append((1, products((rows, row.hidden), (row.hidden, gates))))
                parts.append((1, products((rows, gates), (gates, row.hidden))))

    def step() -> Params:
        for repeats, part in parts:
            for _ in range(repeats):
                part()
        return {}

    return step


def _gate_functions(cell: Cell, directions: int, row: Row, count: int) -> Callable[[], object]:
    gates = torch.randn(row.episodes * directions, count, NUM_GATES[cell] * row.hidden)
    state = torch.randn(row.episodes * directions, count, row.hidden)
    sigmoids = {"rnn": 0, "gru": 2, "lstm": 3}[cell] * row.hidden

    def apply() -> None:
        gates[..., :sigmoids].sigmoid_()
        gates[..., sigmoids:].tanh_()
        if cell == "lstm":
            state.tanh_()

    return apply


def _grads(module: nn.Module) -> Params:
    return {
        name: value.grad.clone()
        for name, value in module.named_parameters()
        if value.grad is not None
    }


CONTESTANTS: dict[str, Callable[[Problem], Callable[[], Params]]] = {
    OURS: run_raymeta,
    FLOOR: run_floor,
    VMAP: run_parallel_metalearn,
    "functional_call": run_functional_call,
    "learn2learn": run_learn2learn,
    "higher": run_higher,
    "torchopt": run_torchopt,
}


# -------------------------------------------------------------------- peers


def take_in_peers(folder: Path) -> None:
    """Installs the peers into `folder`, and makes them importable."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    if not folder.is_dir():
        subprocess.run([*pip, "install", "--no-deps", "--target", str(folder), *PEERS], check=False)
        downloads = folder / "downloads"
        source_only = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        subprocess.run(
            [*pip, "download", *source_only, "-d", str(downloads), LEARN2LEARN], check=False
        )
        for archive in downloads.glob("learn2learn-*.tar.gz"):
            with tarfile.open(archive) as content:
                content.extractall(downloads, filter="data")
    sys.path.append(str(folder))
    # learn2learn's own __init__ wants gym, torchvision and compiled parts; its MAML wants neither.
    for root in folder.glob("downloads/learn2learn-*/learn2learn"):
        for name, path in (("learn2learn", root), ("learn2learn.algorithms", root / "algorithms")):
            package = types.ModuleType(name)
            package.__path__ = [str(path)]
            sys.modules[name] = package


# -------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Cellwise:
    """The times of one row for one cell, by contestant, one per round; and who did not run."""

    cell: Cell
    row: Row
    seconds: dict[str, list[float]]
    not_run: dict[str, str]

    def ratios(self, name: str) -> list[float]:
        """The time of a contestant as a multiple of raymeta's, by round."""
        return [a / b for a, b in zip(self.seconds[name], self.seconds[OURS], strict=True)]


def measure(cell: Cell, row: Row, rounds: int) -> Cellwise:
    """Runs all contestants that can be run."""
    problem = Problem(cell, row)
    steps: dict[str, Callable[[], Params]] = {}
    not_run: dict[str, str] = {}
    reference = run_raymeta(problem)()
    for name, make in CONTESTANTS.items():
        try:
            step = make(problem)
            grads = step()
        except Exception as error:  # noqa: BLE001  (whatever a peer fails with is told)
            not_run[name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            continue
        if name != FLOOR and (apart := distance(grads, reference)) > TOLERANCE:
            not_run[name] = f"refused: its meta-gradient is {apart:.1e} apart"
            continue
        steps[name] = step
    return Cellwise(cell, row, seconds_a_step(steps, rounds), not_run)


def seconds_a_step(
    steps: Mapping[str, Callable[[], Params]], rounds: int
) -> dict[str, list[float]]:
    """The times of contestants that take turns, one a round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            once = time.perf_counter() - start
            repeats = min(20, int(0.1 / once))  # short steps are taken several times
            for _ in range(repeats):
                step()
            seconds[name].append((time.perf_counter() - start) / (repeats + 1))
    return seconds


def distance(grads: Params, reference: Params) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    if grads.keys() != reference.keys():
        return math.inf
    return max(
        ((grads[k] - v).abs().max() / v.abs().max().clamp_min(1e-12)).item()
        for k, v in reference.items()
    )


def peak_memory(steps: int, graph_steps: int | None, *, in_use: bool) -> tuple[float, float]:
    """Peak of the memory that a meta-step adds, in MiB, and its seconds.

    With `in_use` the C library gives every block of a MiB back when it is freed, so that what is
    resident is what is in use; otherwise it keeps them, as in training, which is faster.
    """
    problem = Problem("lstm", GRID[0])
    maml = Maml(adaptation_steps=steps, inner_lr=INNER_LR)

    def step() -> None:
        maml.meta_gradient(
            problem.spec,
            PROBLEMS["classification"],
            problem.params,
            problem.episodes,
            graph_steps=graph_steps,
        )

    libc = ctypes.CDLL(None)
    keep_freed_memory()
    if in_use:
        libc.mallopt(-3, MIB)  # M_MMAP_THRESHOLD
    step()
    libc.malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    peak = (_status("VmHWM") - before) / MIB
    keep_freed_memory()
    return peak, seconds


def _status(key: str) -> int:
    """A value of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def growth(steps: int) -> float:
    """Resident memory after `steps` meta-steps against that after the first 50."""
    step = run_raymeta(Problem("gru", GRID[3]))
    for _ in range(50):
        step()
    early = _status("VmRSS")
    for _ in range(steps - 50):
        step()
    return _status("VmRSS") / early


def _train_rank(rank: int, world: int, port: int, steps: int, results: Any) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    address = f"tcp://127.0.0.1:{port}"
    group = join_group(rank, world, address, "gloo", timeout_s=300) if world > 1 else None
    experiment = load_experiment(
        "pen-maml",
        ["training.meta_batch_size=32", f"training.meta_steps={3 * steps}", "search.space={}"],
    )
    trainer = build_trainer(experiment, group)
    trainer.train(steps)
    metrics = trainer.train(2 * steps)
    if rank == 0:
        results.put(metrics["meta_steps_per_s"])


def workers_speed(world: int, steps: int) -> float:
    """Meta-steps a second of 32 `pen` episodes on `world` workers of one thread each."""
    context = mp.get_context("spawn")
    results = context.Queue()
    port = 29500 + time.time_ns() % 2000
    processes = [
        context.Process(target=_train_rank, args=(rank, world, port, steps, results))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    speed: float = results.get(timeout=600)
    for process in processes:
        process.join()
    return speed


# -------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Claim:
    """A line of the table: what was measured against what must be reached."""

    what: str
    must: str
    seen: str
    holds: bool | None  # None: not run

    @property
    def verdict(self) -> str:
        """The result in words."""
        return "not run" if self.holds is None else "holds" if self.holds else "falls short"


def spread(values: Sequence[float]) -> str:
    """The median of ratios, with their range."""
    return f"{statistics.median(values):.2f} × ({min(values):.2f} to {max(values):.2f})"


def against(name: str, cells: Sequence[Cellwise], least: float) -> Claim:
    """Whether raymeta is `least` times as fast as a peer on the geometric mean, slower nowhere."""
    ran = [cell for cell in cells if name in cell.seconds]
    must = f"≥ {least:g} ×, never slower"
    if not ran:
        reason = next(iter(cells)).not_run.get(name, "")
        return Claim(f"against {name}", must, reason, None)
    by_round = [
        statistics.geometric_mean(ratios)
        for ratios in zip(*(c.ratios(name) for c in ran), strict=True)
    ]
    worst = min(statistics.median(cell.ratios(name)) for cell in ran)
    mean = statistics.median(by_round)
    seen = f"{spread(by_round)}, least {worst:.2f} ×, {len(ran)} of {len(cells)} cells"
    return Claim(f"against {name}", must, seen, mean >= least and worst >= 1)


def floor_claim(cells: Sequence[Cellwise]) -> Claim:
    """Whether every row is within three times the floor."""
    ours = [[1 / ratio for ratio in cell.ratios(FLOOR)] for cell in cells]
    worst = max(statistics.median(ratios) for ratios in ours)
    by_round = [statistics.geometric_mean(ratios) for ratios in zip(*ours, strict=True)]
    return Claim(
        "against the floor", "≤ 3 ×", f"{spread(by_round)}, most {worst:.2f} ×", worst <= 3
    )


def memory_claims(rounds: int) -> list[Claim]:
    """Measures the memory-flat mode."""
    used: dict[int, list[float]] = {5: [], 20: []}
    resident: dict[int, list[tuple[float, float]]] = {5: [], 20: []}
    full: list[tuple[float, float]] = []
    for _ in range(rounds):
        for steps in (5, 20):
            used[steps].append(peak_memory(steps, 0, in_use=True)[0])
            resident[steps].append(peak_memory(steps, 0, in_use=False))
        full.append(peak_memory(20, None, in_use=False))
    memory = [b / a for a, b in zip(used[5], used[20], strict=True)]
    kept = [b[0] / a[0] for a, b in zip(resident[5], resident[20], strict=True)]
    seconds = [a[1] / b[1] for a, b in zip(resident[20], full, strict=True)]
    few, many = (statistics.median(used[steps]) for steps in (5, 20))
    return [
        Claim(
            "memory-flat, 20 adaptation steps against 5: peak of the memory in use",
            "≤ 1.2 ×",
            f"{spread(memory)}: {few:.0f}, {many:.0f} MiB; with freed blocks that the C library "
            f"keeps {spread(kept)}; full graph {statistics.median(x[0] for x in full):.0f} MiB",
            statistics.median(memory) <= 1.2,
        ),
        Claim(
            "memory-flat against the full graph, 20 steps: time",
            "≤ 1.3 ×",
            spread(seconds),
            statistics.median(seconds) <= 1.3,
        ),
    ]


class Tf32Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the factors of matrix products to TF32 (ten bits), as tensor cores do."""

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs one operation."""
        name = function.overloadpacket.__name__
        first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "baddbmm_": 1}.get(name)
        if first is not None:
            rounded = [
                ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(x.dtype) for x in args[first:]
            ]
            args = (*args[:first], *rounded)
        return function(*args, **(kwargs or {}))


def precision_errors(cell: Cell) -> dict[str, float]:
    """Distances of the meta-gradient from that in float64, relative, by setting."""
    problem = Problem(cell, GRID[1])
    maml = Maml(adaptation_steps=INNER_STEPS, inner_lr=INNER_LR)

    def flat(dtype: torch.dtype, layer_dtype: torch.dtype | None = None) -> Tensor:
        spec = dataclasses.replace(problem.spec, layer_dtype=layer_dtype)
        params = {name: value.to(dtype) for name, value in problem.params.items()}
        episodes = problem.episodes.to(torch.device("cpu"), dtype)
        grads = maml.meta_gradient(spec, PROBLEMS["classification"], params, episodes).grads
        return torch.cat([grads[name].flatten() for name in params])

    exact, found = flat(torch.float64), {"float32": flat(torch.float32)}
    with mock.patch.object(native_scans, "serves", return_value=False), Tf32Products():  # type: ignore[no-untyped-call]
        found["tf32"] = flat(torch.float32)
    found["bfloat16"] = flat(torch.float32, torch.bfloat16)
    return {name: ((x - exact).norm() / exact.norm()).item() for name, x in found.items()}


def workers_claim(rounds: int, steps: int) -> Claim:
    """Two workers against one, over twice as many meta-steps as they begin with."""
    ratios = [workers_speed(2, steps) / workers_speed(1, steps) for _ in range(rounds)]
    return Claim(
        "2 workers × 1 thread against 1 × 1, 32 episodes of pen",
        "≥ 1.7 ×",
        spread(ratios),
        statistics.median(ratios) >= 1.7,
    )


def growth_claim(steps: int) -> Claim:
    """Measures the growth of memory over many meta-steps."""
    ratio = growth(steps)
    return Claim(
        f"memory after {steps:,} meta-steps against 50", "≤ 1.01 ×", f"{ratio:.3f} ×", ratio <= 1.01
    )


def print_cells(console: Console, cells: Sequence[Cellwise]) -> None:
    """Times by row: raymeta's in milliseconds, the others' as multiples of it."""
    table = Table(title="raymeta in ms; the others as multiples of its time (medians)", box=None)
    table.add_column("cell")
    table.add_column("episodes, length, features, hidden, ways, support, query")
    for name in CONTESTANTS:
        table.add_column(name, justify="right")
    for cell in cells:
        shown = []
        for name in CONTESTANTS:
            if name not in cell.seconds:
                shown.append("not run")
            elif name == OURS:
                shown.append(f"{1e3 * statistics.median(cell.seconds[name]):.0f}")
            else:
                shown.append(f"{statistics.median(cell.ratios(name)):.1f}")
        table.add_row(cell.cell, str(cell.row), *shown)
    console.print(table)


def print_errors(console: Console, errors: dict[Cell, dict[str, float]]) -> None:
    """The errors of the settings of precision."""
    table = Table(
        title="error of the meta-gradient against float64 (TF32: products rounded as GPUs do)",
        box=None,
    )
    table.add_column("cell")
    for name in next(iter(errors.values())):
        table.add_column(name, justify="right")
    for cell, by_name in errors.items():
        table.add_row(cell, *(f"{error:.1e}" for error in by_name.values()))
    console.print(table)


def main() -> None:
    """Measures, prints the table, and writes it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=len(GRID), help="of the grid, from its top")
    parser.add_argument(
        "--quick", action="store_true", help="one round of one cell and row, to see that it runs"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--peers", type=Path, default=Path(".peers"), help="folder they are put into"
    )
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    warnings.filterwarnings("ignore", message="The .grad attribute")  # of peers
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    take_in_peers(arguments.peers)
    rows = [*GRID[: arguments.rows], *DEEPER]
    kinds = CELLS
    if arguments.quick:
        rows, kinds, arguments.rounds = [SMALLEST], ("rnn",), 1
    cells = []
    for row in rows:
        for cell in kinds if row in GRID else ("lstm",):
            cells.append(measure(cell, row, arguments.rounds))
            console.print(f"{cell} {row}: measured")
    print_cells(console, cells)
    for name, reason in {k: v for cell in cells for k, v in cell.not_run.items()}.items():
        console.print(f"not run everywhere: {name}: {reason}", markup=False)
    errors = {cell: precision_errors(cell) for cell in kinds}
    print_errors(console, errors)
    grid = [cell for cell in cells if cell.row in GRID]
    claims = [
        *[against(name, grid, 10) for name in LOOPS],
        against(VMAP, grid, 3),
        floor_claim(cells),
        *memory_claims(arguments.rounds),
        workers_claim(arguments.rounds, 5 if arguments.quick else 30),
        growth_claim(100 if arguments.quick else 1000),
    ]
    compiled = "compiled scans" if library() is not None else "torch's operations, no compiler"
    table = Table(title=f"{arguments.threads} thread(s), {compiled}", box=None)
    for name in ("what", "must reach", "seen: median (range over rounds)", "verdict"):
        table.add_column(name, overflow="fold")
    for claim in claims:
        table.add_row(claim.what, claim.must, claim.seen, claim.verdict)
    console.print(table)
    if arguments.json is not None:
        content = OrderedDict(
            command=" ".join(["python", *sys.argv]),
            torch=torch.__version__,
            errors=errors,
            cells=[
                {
                    "cell": c.cell,
                    "row": str(c.row),
                    "seconds": c.seconds,
                    "not_run": c.not_run,
                }
                for c in cells
            ],
            claims=[
                {"what": c.what, "must": c.must, "seen": c.seen, "verdict": c.verdict}
                for c in claims
            ],
        )
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
