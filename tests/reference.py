"""An independent, slow MAML: a Python loop over episodes on torch's own recurrent modules.

It shares with raymeta the names of parameters and settings, and nothing else: padded sequences are
packed, episodes are looped over, gradients are those of plain autograd.  The random problems at the
end are what both are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from raymeta.episodes import Episode, Episodes, Examples, Split, TaskDistribution

MODULES: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
RATE = "log_inner_lr."


class ReferenceNetwork(nn.Module):
    """Embedding (of token ids) → torch.nn.RNN, GRU or LSTM → pooling → linear head; one episode."""

    def __init__(
        self,
        *,
        cell: str,
        num_outputs: int,
        hidden_size: int,
        num_features: int | None = None,
        vocabulary_size: int | None = None,
        embedding_size: int = 0,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        layer_dtype: None = None,
        stacked_steps: int = 1,
    ) -> None:
        super().__init__()
        del dropout  # its masks come from outside: `thinned`
        del layer_dtype  # the reference computes in that of its parameters
        self.cell, self.pooling, self.num_directions = cell, pooling, 2 if bidirectional else 1
        input_size = num_features
        if vocabulary_size is not None:
            self.embedding = nn.Embedding(vocabulary_size, embedding_size)
            input_size = embedding_size
        assert input_size is not None
        self.num_features, self.stacked_steps = input_size, stacked_steps
        self.rnn = MODULES[cell](
            input_size=input_size * stacked_steps,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            batch_first=True,
        )
        size = hidden_size * self.num_directions
        if pooling == "attention":
            self.attention = nn.Linear(size, 1, bias=False)
        self.head = nn.Linear(size, num_outputs)
        self.double()

    def states(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the last layer's states `[N, T, F]` and its final ones `[N, F]`."""
        if lengths is None:
            lengths = torch.full(x.shape[:1], x.shape[1])
        if hasattr(self, "embedding"):
            x = self.embedding(x)
        x, lengths = self._stacked(x, lengths)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        packed_states, final = self.rnn(packed)
        if self.cell == "lstm":
            final = final[0]
        states, _ = pad_packed_sequence(packed_states, batch_first=True, total_length=x.shape[1])
        return states, torch.cat(list(final[-self.num_directions :]), dim=-1)

    def _stacked(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Joins each example's steps into stacks, padded with zeros; returns their number too."""
        if self.stacked_steps == 1:
            return x, lengths
        rows = []
        for one, length in zip(x, lengths.tolist(), strict=True):
            steps = [*one[:length]]
            while len(steps) < x.shape[1] or len(steps) % self.stacked_steps:
                steps.append(torch.zeros_like(one[0]))
            starts = range(0, len(steps), self.stacked_steps)
            rows.append(
                torch.stack([torch.cat(steps[at : at + self.stacked_steps]) for at in starts])
            )
        return torch.stack(rows), (lengths + self.stacked_steps - 1) // self.stacked_steps

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        states, final = self.states(x, lengths)
        if self.pooling == "last":
            return self.head(final)
        steps = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
        ends = [math.ceil(count / self.stacked_steps) for count in steps]
        return self.head(
            torch.stack([self._pool(s[:n]) for s, n in zip(states, ends, strict=True)])
        )

    def _pool(self, states: Tensor) -> Tensor:
        if self.pooling == "mean":
            return states.mean(dim=0)
        return self.attention(states).softmax(dim=0).T.matmul(states).squeeze(0)


def thinned(params: Mapping[str, Tensor], masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """Returns parameters that give without dropout what `params` give under keep masks `[F]`.

    What a mask multiplies, the weights behind it may multiply instead.
    """
    pending, result = list(masks), dict(params)
    if "embedding.weight" in params:
        result["embedding.weight"] = params["embedding.weight"] * pending.pop(0)
    for layer, mask in enumerate(pending, start=1):
        behind = f"rnn.weight_ih_l{layer}" if layer < len(pending) else "head.weight"
        for name in (behind, f"{behind}_reverse"):
            if name in params:
                result[name] = params[name] * mask
    if "attention.weight" in params:
        result["attention.weight"] = params["attention.weight"] * pending[-1]
    return result


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of integer targets, squared error of real ones."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs, targets)


@dataclass(frozen=True)
class ExampleSet:
    """Support or query of an episode: `x` `[N, T, ...]`, `y` `[N]` or `[N, O]`, `lengths` `[N]`."""

    x: Tensor
    y: Tensor
    lengths: Tensor | None = None


Pair = tuple[ExampleSet, ExampleSet]  # support, query


@dataclass(frozen=True, kw_only=True)
class ReferenceMaml:
    """MAML; the settings mean what they mean in `raymeta.meta.settings.MamlSettings`.

    `masks` are those of dropout, one `[F]` for each place it acts on.
    """

    network: ReferenceNetwork
    adaptation_steps: int = 5
    inner_lr: float = 0.1
    learn_inner_lr: bool = False
    first_order: bool = False
    adapt: str = "all"
    inner_clip: float | None = None
    shared_head: bool = False

    def outputs(
        self, params: Mapping[str, Tensor], data: ExampleSet, masks: Sequence[Tensor] | None
    ) -> Tensor:
        """Returns the outputs `[N, O]`."""
        own = params if masks is None else thinned(params, masks)
        return functional_call(self.network, dict(own), (data.x, data.lengths))

    def adapted(
        self,
        meta_params: Mapping[str, Tensor],
        support: ExampleSet,
        masks: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Returns the parameters after the last step, as a function of `meta_params`."""
        params = {k: v for k, v in meta_params.items() if not k.startswith(RATE)}
        if self.shared_head:
            rows = self.network.head.out_features
            for name in ("head.weight", "head.bias"):
                params[name] = torch.cat([params[name]] * rows)
        moving = list(params)
        if self.adapt == "head":
            moving = [k for k in params if k.startswith("head.")]
        elif self.adapt == "body":
            moving = [k for k in params if not k.startswith("head.")]
        for step in range(self.adaptation_steps):
            loss = loss_of(self.outputs(params, support, masks), support.y)
            grads = torch.autograd.grad(
                loss, [params[k] for k in moving], create_graph=not self.first_order
            )
            norm = torch.cat([g.flatten() for g in grads]).norm()
            if self.inner_clip is not None and norm > self.inner_clip:
                grads = tuple(g * (self.inner_clip / norm) for g in grads)
            for name, grad in zip(moving, grads, strict=True):
                rate = (
                    meta_params[RATE + name][step].exp() if self.learn_inner_lr else self.inner_lr
                )
                params[name] = params[name] - rate * grad
        return params

    def meta_gradient(
        self,
        meta_params: Mapping[str, Tensor],
        episodes: Sequence[Pair],
        masks: Sequence[Sequence[Tensor]] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradient of the query losses' sum over episodes, and the sum."""
        leaves = {k: v.detach().clone().requires_grad_() for k, v in meta_params.items()}
        losses = []
        for index, (support, query) in enumerate(episodes):
            own = None if masks is None else masks[index]
            outputs = self.outputs(self.adapted(leaves, support, own), query, own)
            losses.append(loss_of(outputs, query.y))
        loss = torch.stack(losses).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return dict(zip(leaves, grads, strict=True)), loss.detach()


def random_params(network: ReferenceNetwork, seed: int = 0) -> dict[str, Tensor]:
    """Draws normal numbers for all parameters: no bias is zero, no gate is idle."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.5 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in network.named_parameters()
    }


def random_episodes(
    network: ReferenceNetwork,
    num_episodes: int = 3,
    *,
    num_steps: int = 4,
    regression: bool = False,
    num_levels: int = 1,
    padded: bool = False,
    every_class: bool = False,
    seed: int = 0,
) -> Episodes:
    """Episodes of 4 support and 5 query examples; padded ones hold NaN where nothing may look.

    With `every_class` no class lacks a support example; with `num_levels` there is one target for
    so many outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    outputs = network.head.out_features

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def examples(count: int) -> Examples:
        shape = (num_episodes, count)
        if hasattr(network, "embedding"):
            x = torch.randint(
                network.embedding.num_embeddings, (*shape, num_steps), generator=generator
            )
        else:
            x = normal(*shape, num_steps, network.num_features)
        y = torch.randint(outputs, shape, generator=generator)
        if every_class:
            y = torch.arange(count).remainder(outputs).expand(shape).clone()
        if regression:
            y = normal(*shape, outputs)[..., ::num_levels]
        if not padded:
            return Examples(x, y)
        lengths = torch.randint(1, num_steps + 1, shape, generator=generator)
        outside = torch.arange(num_steps) >= lengths[..., None]
        if x.is_floating_point():
            x[outside] = torch.nan
        return Examples(x, y, lengths)

    seeds = torch.arange(num_episodes) + seed
    return Episodes(examples(4), examples(5), seeds)


def crps_of(outputs: Tensor, y: Tensor, levels: tuple[float, ...] = (0.1, 0.5, 0.9)) -> Tensor:
    """Twice the mean pinball loss of one episode's sorted quantiles `[N, H Q]`, by loops."""
    losses = []
    for row, values in zip(outputs, y, strict=True):
        for step, value in enumerate(values):
            own = row[len(levels) * step : len(levels) * (step + 1)]
            for level, quantile in zip(levels, own[own.argsort()], strict=True):
                missed = value - quantile
                losses.append(level * missed if missed > 0 else (level - 1) * missed)
    return 2 * torch.stack(losses).mean()


def pairs(episodes: Episodes) -> list[Pair]:
    """Support and query set of each episode."""

    def single(examples: Examples, index: int) -> ExampleSet:
        lengths = None if examples.lengths is None else examples.lengths[index]
        return ExampleSet(examples.x[index], examples.y[index], lengths)

    return [
        (single(episodes.support, index), single(episodes.query, index))
        for index in range(len(episodes))
    ]


@dataclass(frozen=True)
class Poisoned(TaskDistribution):
    """Wraps a task distribution; its meta-training episodes `bad` hold NaN."""

    bad: frozenset[int] = frozenset()

    def episode(self, split: Split, index: int) -> Episode:
        episode = super().episode(split, index)
        if split != "train" or index not in self.bad:
            return episode
        assert episode.query_y.dtype.kind == "f", "only numbers can be NaN"
        return replace(episode, query_y=np.full_like(episode.query_y, np.nan))


def poisoned(tasks: TaskDistribution, bad: Iterable[int]) -> Poisoned:
    """Returns `tasks` with NaN in the meta-training episodes at the indices `bad`."""
    return Poisoned(**vars(tasks), bad=frozenset(bad))
