"""The meta-step of learners that share features: raymeta beside the same learner of `torch.nn`.

    python scripts/bench_embedding_step.py [--rounds N] [--rows N] [--json FILE]

The rival is what a good user would write: all examples of all episodes pass at once through one
`torch.nn.RNN`, `GRU` or `LSTM`, and the rest is a few batched operations.  Both get the same
weights, episodes, loss and number of threads, in one process; their meta-gradients are compared
first.  They take turns, round by round; a ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_meta_step import (
    CELLS,
    DEEPER,
    GRID,
    TOLERANCE,
    Claim,
    Problem,
    distance,
    seconds_a_step,
    spread,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from raymeta.meta.embedding import EmbeddingLearner
from raymeta.meta.learners.matching import QUERY, SUPPORT, Matching
from raymeta.meta.learners.prototypes import Prototypes
from raymeta.meta.learners.ridge import Ridge
from raymeta.nn.native import keep_freed_memory, library
from raymeta.nn.networks import Params
from raymeta.problem import PROBLEMS

LEARNERS: tuple[EmbeddingLearner, ...] = (Prototypes(), Matching(), Ridge())
LEAST = 1.5  # of the geometric mean over the grid

Answers = Callable[[Tensor, Tensor, Tensor], Tensor]  # features of support, query; one-hot rows


class TorchPrototypes(nn.Module):
    """Minus the squared distance to every class's mean."""

    def __init__(self, start: Params) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(start["log_scale"].clone())

    def forward(self, support: Tensor, query: Tensor, rows: Tensor) -> Tensor:
        """Logits `[E, M, W]`."""
        sums = rows.transpose(1, 2) @ support
        means = sums / rows.sum(dim=1).unsqueeze(-1)
        return -self.log_scale.exp() * torch.cdist(query, means).square()


class TorchRidge(nn.Module):
    """Ridge regression with `torch.linalg.solve`."""

    def __init__(self, start: Params) -> None:
        super().__init__()
        self.log_penalty = nn.Parameter(start["log_penalty"].clone())
        self.log_scale = nn.Parameter(start["log_scale"].clone())

    def forward(self, support: Tensor, query: Tensor, rows: Tensor) -> Tensor:
        """Logits `[E, M, W]`."""
        x, new = (F.pad(features.double(), (0, 1), value=1.0) for features in (support, query))
        identity = torch.eye(x.shape[1], dtype=x.dtype)
        gram = x @ x.transpose(1, 2) + self.log_penalty.double().exp() * identity
        found = new @ x.transpose(1, 2) @ torch.linalg.solve(gram, rows.double())
        return self.log_scale.exp() * found.to(support.dtype)


class TorchMatching(nn.Module):
    """Full-context embeddings of `nn.LSTM` and `nn.LSTMCell`."""

    def __init__(self, start: Params) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(start["log_scale"].clone())
        size = start[f"{SUPPORT}rnn.weight_hh_l0"].shape[-1]
        self.support_reader = nn.LSTM(size, size, batch_first=True, bidirectional=True)
        self.support_reader.load_state_dict(_own(start, SUPPORT))
        self.query_reader = nn.LSTMCell(2 * size, size)
        ours = _own(start, QUERY)
        self.query_reader.load_state_dict({k.removesuffix("_l0"): v for k, v in ours.items()})

    def forward(self, support: Tensor, query: Tensor, rows: Tensor) -> Tensor:
        """Logits `[E, M, W]`."""
        states, _ = self.support_reader(support)
        support = support + sum(states.chunk(2, dim=-1))
        flat = query.flatten(0, 1)
        hidden = read = cell = torch.zeros_like(flat)
        for _ in range(Matching().read_steps):
            found, cell = self.query_reader(torch.cat([flat, read], dim=-1), (hidden, cell))
            hidden = found + flat
            weights = (hidden.view_as(query) @ support.transpose(1, 2)).softmax(dim=-1)
            read = (weights @ support).flatten(0, 1)
        hidden = hidden.view_as(query)
        cosines = F.normalize(hidden, dim=-1) @ F.normalize(support, dim=-1).transpose(1, 2)
        return ((self.log_scale.exp() * cosines).softmax(dim=-1) @ rows).log()


RIVALS: dict[str, type[nn.Module]] = {
    Prototypes.name: TorchPrototypes,
    Matching.name: TorchMatching,
    Ridge.name: TorchRidge,
}
# Where the rival's modules keep what raymeta names otherwise.
NAMES = {
    "support_reader.": f"{SUPPORT}rnn.",
    "query_reader.": f"{QUERY}rnn.",
}


def _own(params: Params, prefix: str) -> Params:
    prefix += "rnn."
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}


def ours(problem: Problem, learner: EmbeddingLearner, start: Params) -> Callable[[], Params]:
    """Sums of the meta-gradients over episodes; the rival gives the same."""
    kind = PROBLEMS["classification"]

    def step() -> Params:
        return learner.meta_gradient(problem.spec, kind, start, problem.episodes).grads

    return step


def rival(problem: Problem, learner: EmbeddingLearner, start: Params) -> Callable[[], Params]:
    """The same learner of torch's modules, all episodes in one pass."""
    network, answers = problem.module(), RIVALS[learner.name](start)
    support, query = problem.episodes.support, problem.episodes.query
    num_support = support.y.shape[1]
    x = torch.cat([support.x, query.x], dim=1)
    rows = F.one_hot(support.y, problem.row.ways).to(x.dtype)

    def step() -> Params:
        network.zero_grad()
        answers.zero_grad()
        features = network.features(x.flatten(0, 1)).view(*x.shape[:2], -1)
        outputs = answers(features[:, :num_support], features[:, num_support:], rows)
        losses = F.cross_entropy(outputs.flatten(0, 1), query.y.flatten(), reduction="sum")
        (losses / query.y.shape[1]).backward()  # type: ignore[no-untyped-call]
        return _gradients(network) | _gradients(answers)

    return step


def _gradients(module: nn.Module) -> Params:
    """The gradients by raymeta's names."""
    found: Params = {}
    for name, value in module.named_parameters():
        if value.grad is None:
            continue  # the head, which these learners do without
        for theirs, mine in NAMES.items():
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)  # noqa: PLW2901
                name = name if "_l0" in name else f"{name}_l0"  # noqa: PLW2901
        found[name] = value.grad.clone()
    return found


def measured(problem: Problem, learner: EmbeddingLearner, rounds: int) -> list[float]:
    """The time of the rival as a multiple of raymeta's, by round."""
    start = learner.init_meta_params(problem.params)
    steps = {"raymeta": ours(problem, learner, start), "torch": rival(problem, learner, start)}
    apart = distance(steps["torch"](), steps["raymeta"]())
    if apart > TOLERANCE:
        raise SystemExit(f"{learner.name}, {problem.row}: the gradients are {apart:.1e} apart")
    seconds = seconds_a_step(steps, rounds)
    return [a / b for a, b in zip(seconds["torch"], seconds["raymeta"], strict=True)]


def claim(learner: EmbeddingLearner, ratios: Sequence[Sequence[float]]) -> Claim:
    """Whether raymeta is as much faster as it must be, and slower nowhere."""
    by_round = [statistics.geometric_mean(one) for one in zip(*ratios, strict=True)]
    worst = min(map(statistics.median, ratios))
    return Claim(
        f"{learner.name} against torch.nn",
        f"≥ {LEAST:g} ×, never slower",
        f"{spread(by_round)}, least {worst:.2f} ×",
        statistics.median(by_round) >= LEAST and worst >= 1,
    )


def main() -> None:
    """Measures, prints the tables, and writes them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=len(GRID), help="of the grid, from its top")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    problems = [Problem(cell, row) for row in GRID[: arguments.rows] for cell in CELLS]
    problems += [Problem("lstm", row) for row in DEEPER]
    found = {
        learner.name: [measured(problem, learner, arguments.rounds) for problem in problems]
        for learner in LEARNERS
    }
    table = Table(title="time of torch.nn as a multiple of raymeta's (medians)", box=None)
    for name in ("cell", "episodes, length, features, hidden, ways, support, query", *found):
        table.add_column(name, justify="right" if name in found else "left")
    for number, problem in enumerate(problems):
        medians = [f"{statistics.median(ratios[number]):.2f}" for ratios in found.values()]
        table.add_row(problem.cell, str(problem.row), *medians)
    console.print(table)
    claims = [claim(learner, found[learner.name]) for learner in LEARNERS]
    compiled = "compiled scans" if library() is not None else "torch's operations, no compiler"
    table = Table(title=f"{arguments.threads} thread(s), {compiled}", box=None)
    for name in ("what", "must reach", "seen: median (range over rounds)", "verdict"):
        table.add_column(name)
    for one in claims:
        table.add_row(one.what, one.must, one.seen, one.verdict)
    console.print(table)
    if arguments.json is not None:
        content = {
            "command": " ".join(["python", *sys.argv]),
            "torch": torch.__version__,
            "rows": [f"{problem.cell} {problem.row}" for problem in problems],
            "ratios": found,
            "claims": [[one.what, one.must, one.seen, one.verdict] for one in claims],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
