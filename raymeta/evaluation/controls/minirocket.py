"""Control for sequences of numbers: MiniRocket's features and a ridge classifier on the support.

MiniRocket (Dempster, Schmidt & Webb 2021) convolves a sequence with 84 fixed kernels at several
dilations, and keeps for some ten thousand thresholds the share of time steps above each.  It is the
usual choice for time-series classification without a neural network.  Its thresholds and the scale
of its features come from meta-training examples, without their labels.

Shape legend: E episodes, N support examples, M query examples, B examples, T time steps,
D input features, K kernels, Q thresholds of a kernel at one dilation, F features of an example,
W ways.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import Examples, Split, TaskDistribution
from raymeta.evaluation.controls import contract
from raymeta.evaluation.controls.contract import Contest, Control, Judgement
from raymeta.evaluation.controls.kernel_ridge import ridge_answers
from raymeta.evaluation.controls.time_warping import block_means

# The numbers of the paper.
KERNEL_SIZE = 9
NUM_FEATURES = 9996
MAX_DILATIONS = 32
MAX_CHANNELS = 9  # that one kernel sums

PENALTIES = (
    1e-3,
    1e-2,
    1e-1,
    1.0,
)  # of the ridge, where an example's kernel with itself is about 1
NUM_TRAINING_EPISODES = 50
MAX_STEPS = 512  # longer sequences are averaged over blocks of steps
CHUNK_VALUES = 2e7  # comparisons with thresholds at once; bounds memory


class MiniRocketRidge(Control):
    """A query gets the class with the highest output of a ridge regression on the support set."""

    name = "minirocket"
    label = "ridge classifier on MiniRocket features"
    problems = frozenset({"classification"})
    inputs = frozenset({"features"})

    def judge(self, contest: Contest) -> Judgement:
        """Chooses the penalty on meta-validation; scores the meta-test with it."""
        tasks = contest.as_recorded
        features = _Features.of(tasks)
        validation = features.kernels(tasks, "val", contract.NUM_CHOICE_EPISODES)
        num_ways = tasks.input_spec.num_outputs

        def scores(episodes: _Kernels, penalty: float) -> Tensor:
            one_hot = torch.nn.functional.one_hot(episodes.support_y, num_ways).double()
            outputs = ridge_answers(episodes.gram, episodes.cross, one_hot, penalty)
            return (outputs.argmax(dim=-1) == episodes.query_y).double()

        penalty = max(PENALTIES, key=lambda value: float(scores(validation, value).mean()))
        meta_test = features.kernels(tasks, "test", contest.num_episodes)
        detail = f"penalty {penalty:g}"
        if features.block > 1:
            detail += f", means of {features.block} steps"
        return Judgement(scores(meta_test, penalty), detail=detail)


@dataclass(frozen=True)
class _Kernels:
    """Inner products of the features of an episode's examples, and its labels."""

    gram: Tensor  # [E, N, N]
    cross: Tensor  # [E, M, N]
    support_y: Tensor  # [E, N]
    query_y: Tensor  # [E, M]


@dataclass(frozen=True)
class _Dilation:
    """The kernels at one dilation, and their thresholds."""

    dilation: int
    weights: Tensor  # float64 [K, D, 9]; 0 for channels that a kernel does not see
    is_padded: Tensor  # bool [K]: whether it also counts the steps where it overlaps an end
    thresholds: Tensor  # [K, Q]

    def outputs(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Convolves `x` `[B, T, D]`, zero past its ends; says which outputs count: `[B, K, T]`."""
        reach = KERNEL_SIZE // 2 * self.dilation
        # Rounded from float64, so that an output equal to a threshold stays equal in any batch.
        convolved = torch.nn.functional.conv1d(
            x.double().transpose(1, 2), self.weights, padding=reach, dilation=self.dilation
        ).float()
        step = torch.arange(x.shape[1])
        inside = (step < lengths.unsqueeze(-1)).unsqueeze(1)  # [B, 1, T]
        whole = ((step >= reach) & (step < lengths.unsqueeze(-1) - reach)).unsqueeze(1)
        # A kernel longer than the sequence overlaps an end at every step.
        counts = torch.where(self.is_padded[:, None] | ~whole.any(-1, keepdim=True), inside, whole)
        return convolved, counts

    def shares(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Computes the share of steps above each threshold, `[B, K * Q]`."""
        convolved, counts = self.outputs(x, lengths)
        above = (convolved.unsqueeze(2) > self.thresholds.unsqueeze(-1)) & counts.unsqueeze(2)
        return (above.sum(-1) / counts.sum(-1).unsqueeze(-1)).flatten(1)


@dataclass(frozen=True)
class _Features:
    """MiniRocket's transform, fitted to meta-training examples."""

    dilations: tuple[_Dilation, ...]
    mean: Tensor  # [F], over meta-training examples
    scale: Tensor  # [F]
    block: int

    @classmethod
    def of(cls, tasks: TaskDistribution) -> _Features:
        """Fits thresholds and scales to the support sets of meta-training episodes."""
        examples = tasks.episodes("train", range(NUM_TRAINING_EPISODES)).support
        block = max(1, math.ceil(examples.x.shape[2] / MAX_STEPS))
        x, lengths = _prepared(examples, block)
        x, lengths = x.flatten(0, 1), lengths.flatten()
        dilations = fitted_dilations(x, lengths)
        values = transform(dilations, x, lengths)
        scale = values.std(dim=0)
        return cls(dilations, values.mean(dim=0), scale.where(scale > 0, 1.0), block)

    def kernels(self, tasks: TaskDistribution, split: Split, num_episodes: int) -> _Kernels:
        """Computes inner products between the examples of each of the first episodes of a split."""
        grams, crosses, support_labels, query_labels = [], [], [], []
        known: dict[bytes, Tensor] = {}  # episodes draw the same recordings again and again
        for index in range(num_episodes):
            episode = tasks.episodes(split, [index])
            support, query = (
                self._values(episode.support, known),
                self._values(episode.query, known),
            )
            grams.append(support @ support.T)
            crosses.append(query @ support.T)
            support_labels.append(episode.support.y)
            query_labels.append(episode.query.y)
        return _Kernels(
            torch.stack(grams),
            torch.stack(crosses),
            torch.cat(support_labels),
            torch.cat(query_labels),
        )

    def _values(self, examples: Examples, known: dict[bytes, Tensor]) -> Tensor:
        """Computes one episode's features, scaled to a squared norm of about 1."""
        x, lengths = (part[0] for part in _prepared(examples, self.block))
        keys = [x[row, :length].numpy().tobytes() for row, length in enumerate(lengths.tolist())]
        new = [row for row, key in enumerate(keys) if key not in known]
        if new:
            values = (transform(self.dilations, x[new], lengths[new]) - self.mean) / self.scale
            for row, value in zip(new, values.double() / math.sqrt(len(self.mean)), strict=True):
                known[keys[row]] = value
        return torch.stack([known[key] for key in keys])


def _prepared(examples: Examples, block: int) -> tuple[Tensor, Tensor]:
    """Averages the examples over blocks, float32 `[E, N, T, D]`, zero past their ends."""
    x, lengths = block_means(examples, block)
    past = torch.arange(x.shape[2]) >= lengths.unsqueeze(-1)
    return x.masked_fill(past.unsqueeze(-1), 0.0), lengths


def transform(dilations: tuple[_Dilation, ...], x: Tensor, lengths: Tensor) -> Tensor:
    """Computes the features `[B, F]` of sequences `[B, T, D]`, zero past their ends."""
    most = max(dilation.thresholds.numel() for dilation in dilations)
    size = max(1, int(CHUNK_VALUES / (most * x.shape[1])))
    parts = [slice(start, start + size) for start in range(0, len(x), size)]
    shares = [[one.shares(x[part], lengths[part]) for one in dilations] for part in parts]
    return torch.cat([torch.cat(part, dim=1) for part in shares])


def fitted_dilations(x: Tensor, lengths: Tensor) -> tuple[_Dilation, ...]:
    """Fits MiniRocket's thresholds to sequences `[B, T, D]` (the paper's section 3)."""
    rng = np.random.default_rng(0)
    triples = list(itertools.combinations(range(KERNEL_SIZE), 3))
    shapes = torch.full((len(triples), KERNEL_SIZE), -1.0)
    for row, triple in enumerate(triples):
        shapes[row, list(triple)] = 2.0
    num_channels = x.shape[2]
    used = 0
    found = []
    for number, (dilation, count) in enumerate(_num_thresholds(int(lengths.max()), len(triples))):
        sees = torch.zeros(len(triples), num_channels)
        for row in range(len(triples)):
            most = math.log2(min(num_channels, MAX_CHANNELS) + 1)
            size = int(2 ** rng.uniform(0, most))
            sees[row, rng.choice(num_channels, size, replace=False)] = 1.0
        is_padded = (torch.arange(len(triples)) + number) % 2 == 0
        blank = torch.empty(len(triples), 0)
        kernels = _Dilation(
            dilation, (sees[:, :, None] * shapes[:, None]).double(), is_padded, blank
        )
        # Every kernel takes its thresholds from the outputs for a sequence of its own.
        rows = torch.from_numpy(rng.integers(0, len(x), len(triples)))
        convolved, counts = kernels.outputs(x[rows], lengths[rows])
        # Quantiles spread by the golden ratio are even for any number of them.
        order = torch.arange(used + 1, used + len(triples) * count + 1, dtype=torch.float64)
        quantiles = (order * (math.sqrt(5) + 1) / 2 % 1).float().view(len(triples), count)
        used += quantiles.numel()
        thresholds = torch.stack(
            [
                torch.quantile(convolved[row, row][counts[row, row]], quantiles[row])
                for row in range(len(triples))
            ]
        )
        found.append(_Dilation(dilation, kernels.weights, is_padded, thresholds))
    return tuple(found)


def _num_thresholds(longest: int, num_kernels: int) -> list[tuple[int, int]]:
    """Chooses dilations for sequences of up to `longest` steps, and the thresholds at each.

    Dilations are spread evenly on a logarithmic scale up to where a kernel spans the sequence.
    """
    per_kernel = NUM_FEATURES // num_kernels
    most = max(0.0, math.log2(max(1, longest - 1) / (KERNEL_SIZE - 1)))
    spread = np.floor(np.logspace(0, most, min(per_kernel, MAX_DILATIONS), base=2)).astype(int)
    dilations, counts = np.unique(spread, return_counts=True)
    shares = counts * per_kernel // counts.sum()
    shares[: per_kernel - shares.sum()] += 1  # smallest dilations get the remainder
    return [(int(d), int(n)) for d, n in zip(dilations, shares, strict=True)]
