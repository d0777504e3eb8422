"""Attributes an adapted network's answers to time steps, channels and support examples.

What is explained is the probability of a class, or a predicted value.  The baseline is the mean of
what the network reads in the support set.  Several networks' attributions are averaged, as their
answers are.

Shape legend: N examples, T time steps, C channels, D features, K classes, O outputs, S support
examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import Examples
from raymeta.errors import DataError, shown
from raymeta.inference.examples import RawExamples
from raymeta.inference.saliency import integrated_gradients, occlusion
from raymeta.inference.support import Support
from raymeta.inference.vectors import FloatNetwork
from raymeta.nn.networks import Params
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.levels import Levels
from raymeta.training.recipe import Recipe

Method = Literal["integrated_gradients", "occlusion"]
Baseline = Literal["support", "zeros"]
METHODS: tuple[Method, ...] = get_args(Method)
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
_AT_ONCE = 2**23  # numbers of a batch's states; bounds memory
_TOKENS = "token"  # the channel of texts


@dataclass(frozen=True)
class Attribution:
    """The contributions of each time step and channel to the answers to N examples.

    `values` float64 `[N, T, C]` speak for the answer where they are positive, and against it where
    they are negative; beyond an example's `lengths` `[N]` they are zero.  `channels` name C: what
    the network reads at a time step; of texts a token is one.  `x` `[N, T, C]` are the examples as
    their user has them where the network reads the channels of that, else what it reads, of a
    category the number of its level in training (-1 if unknown); for texts it is None, and `words`
    are the tokens of each.

    `targets` `[N]` are the classes whose probability is explained, or the numbers of the outputs of
    a regression.  `outputs` `[N]` are the answers, `baseline_outputs` `[N]` those to the baseline,
    both in float64 whatever the training's precision.  `attention` `[N, T]` are the weights of the
    time steps where the networks pool by attention; `nearest` `[N]` the place of the nearest
    support example, counted from 0, and `support_weights` `[N, S]` the nearness of all, where the
    learner compares examples with it.  `names` are what messages call the examples.
    """

    method: Method
    baseline: Baseline
    values: np.ndarray
    lengths: np.ndarray
    channels: tuple[str, ...]
    targets: np.ndarray
    outputs: np.ndarray
    baseline_outputs: np.ndarray
    names: tuple[str, ...]
    x: np.ndarray | None = None
    words: tuple[tuple[str, ...], ...] = ()
    attention: np.ndarray | None = None
    support_weights: np.ndarray | None = None
    is_classification: bool = True
    are_strokes: bool = False

    @property
    def residuals(self) -> np.ndarray:
        """The error of completeness, `[N]`; near zero for integrated gradients only."""
        return self.outputs - self.baseline_outputs - self.values.sum(axis=(1, 2))

    @property
    def nearest(self) -> np.ndarray | None:
        """The nearest support example of each, `[N]`."""
        return None if self.support_weights is None else self.support_weights.argmax(axis=1)


@dataclass(frozen=True)
class _Query:
    """Examples as one network reads them: vectors `[N, T, D]` and lengths `[N]`."""

    network: FloatNetwork
    vectors: Tensor
    lengths: Tensor
    num_classes: int | None

    def outputs(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Answers `[M, K]` or `[M, O]` to vectors of the examples of these rows."""
        most = max(1, _AT_ONCE // (vectors.shape[1] * self.network.size))
        parts = zip(torch.split(vectors, most), torch.split(rows, most), strict=True)
        return torch.cat(
            [self.network.outputs(x, self.lengths[own], self.num_classes) for x, own in parts]
        )


class Explainer:
    """Attributes the answers of networks that were adapted to a task.

    Args:
        recipe: of the networks.
        inputs: what their examples are.
        params: of each adapted network.
        labels: the classes; None for regression.
        support: what is known of the support set, if it is.
        temperature: that divides logits.
    """

    def __init__(
        self,
        recipe: Recipe,
        inputs: Inputs,
        params: Sequence[Params],
        labels: np.ndarray | None,
        support: Support | None,
        temperature: float = 1.0,
    ) -> None:
        self._inputs, self._labels, self._support = inputs, labels, support
        self._size = recipe.spec.input_size
        self._networks = [FloatNetwork(recipe, own, temperature) for own in params]

    def attribute(
        self,
        raw: RawExamples,
        examples: Examples,
        *,
        target: Any = None,
        method: Method = "integrated_gradients",
        baseline: Baseline = "support",
        window: int | None = None,
        num_nodes: int | None = None,
    ) -> Attribution:
        """Attributions of the answers to `raw`, which `examples` are once prepared.

        Options and errors are those of `Adapted.attribute`.
        """
        _check_options(method, baseline, window, num_nodes)
        baselines = self._baselines(baseline)
        queries = self._queries(examples)
        lengths, longest = queries[0].lengths, examples.x.shape[2]
        rows = torch.arange(len(raw))
        with torch.no_grad():
            outputs = _mean(query.outputs(query.vectors, rows) for query in queries)
            at_baseline = _mean(
                query.outputs(mean.expand_as(query.vectors), rows)
                for query, mean in zip(queries, baselines, strict=True)
            )
        _check_finite(outputs, raw.names)
        targets, named = targets_of(target, outputs, self._labels)
        is_text = self._inputs.text is not None
        channels, parts = zip(*self._channels(), strict=True)
        found = []
        for query, mean in zip(queries, baselines, strict=True):

            def answer(vectors: Tensor, own: Tensor, query: _Query = query) -> Tensor:
                return query.outputs(vectors, own).gather(1, targets[own][:, None])[:, 0]

            if method == "occlusion":
                width = window if window is not None else max(1, longest // 10)
                values = occlusion(
                    answer, query.vectors, mean, lengths, window=width, channels=parts
                )
            else:
                values = integrated_gradients(
                    answer, query.vectors, mean, num_nodes=num_nodes, names=raw.names
                )
                values = torch.stack([values[..., own].sum(dim=2) for own in parts], dim=2)
            found.append(values)
        chosen, words = targets[:, None], self._inputs.words
        return Attribution(
            method=method,
            baseline=baseline,
            values=_mean(found).numpy(),
            lengths=lengths.numpy(),
            channels=channels,
            targets=named,
            outputs=outputs.gather(1, chosen)[:, 0].numpy(),
            baseline_outputs=at_baseline.gather(1, chosen)[:, 0].numpy(),
            names=tuple(f"{self._inputs.sequence} {own}" for own in raw.ids) or tuple(raw.names),
            x=None if is_text else self._shown(raw, queries[0]),
            words=() if words is None else tuple(map(tuple, words(raw.x))),
            attention=_attention(queries),
            support_weights=self._support_weights(queries),
            is_classification=self._labels is not None,
            are_strokes=self._inputs.are_strokes,
        )

    def _queries(self, examples: Examples) -> list[_Query]:
        """The examples as each network reads them."""
        lengths = torch.full(examples.x.shape[1:2], examples.x.shape[2])
        if examples.lengths is not None:
            lengths = examples.lengths[0]
        num_classes = None if self._labels is None else len(self._labels)
        return [_Query(n, n.vectors(examples), lengths, num_classes) for n in self._networks]

    def _baselines(self, baseline: Baseline) -> list[Tensor]:
        """The baseline `[D]` of each network."""
        if baseline == "zeros":
            return [torch.zeros(self._size, dtype=torch.float64) for _ in self._networks]
        if self._support is None:
            raise DataError(
                "this adapted network does not know the mean of its support set, since an older "
                "raymeta wrote it; adapt again, or set the baseline to zeros (the mean of "
                "meta-training, where features are standardised)"
            )
        return list(self._support.means)

    def _channels(self) -> list[tuple[str, slice]]:
        """Lists the channels of a time step: their names, and their places among the D features."""
        if self._inputs.text is not None:
            return [(_TOKENS, slice(None))]
        names = list(self._inputs.features or self._inputs.channels)
        assert len(names) == self._size, "a source names what its networks read"
        found = [(name, slice(at, at + 1)) for at, name in enumerate(names)]
        if levels := self._inputs.levels:  # the last ones, and those of a category together
            ends = np.cumsum([len(entries) for entries in levels.values()])
            start = len(names) - int(ends[-1])
            parts = [
                (name, slice(start + int(end) - len(entries), start + int(end)))
                for (name, entries), end in zip(levels.items(), ends, strict=True)
            ]
            found = [*found[:start], *parts]
        return found

    def _shown(self, raw: RawExamples, query: _Query) -> np.ndarray:
        """The numbers `[N, T, C]` beside the attributions: in the user's units where they are."""
        found = query.vectors.numpy()
        lengths = query.lengths.tolist()
        if self._inputs.levels:
            return _with_levels(found, self._channels(), self._inputs.levels)
        if self._inputs.features or [len(x) for x in raw.x] != lengths:
            return found
        found = np.zeros_like(found)
        for row, (x, length) in enumerate(zip(raw.x, lengths, strict=True)):
            found[row, :length] = x
        return found

    @torch.no_grad()
    def _support_weights(self, queries: Sequence[_Query]) -> np.ndarray | None:
        """The mean nearness `[N, S]` of the support examples in their user's order."""
        if self._support is None:
            return None
        found = [query.network.support_weights(query.vectors, query.lengths) for query in queries]
        known = [weights for weights in found if weights is not None]
        if not known:
            return None
        weights = _mean(known).numpy()
        ordered = np.empty_like(weights)
        ordered[:, self._support.rows.numpy()] = weights
        return ordered


def _with_levels(
    x: np.ndarray, channels: Sequence[tuple[str, slice]], levels: Levels
) -> np.ndarray:
    """Vectors `[N, T, D]` with the number of a category's level, -1 if unknown: `[N, T, C]`."""
    return np.stack(
        [
            # Of a level that is unknown all inputs are zero, else that of the level is positive.
            np.where((own := x[..., part]).max(axis=-1) > 0, own.argmax(axis=-1), -1)
            if name in levels
            else x[..., part.start]
            for name, part in channels
        ],
        axis=-1,
    )


def targets_of(
    target: Any, outputs: Tensor, labels: np.ndarray | None
) -> tuple[Tensor, np.ndarray]:
    """The output that is explained of each example, int64 `[N]`, and what the user calls it.

    Args:
        target: None for the predicted class (of a regression, its first output); a class or the
            number of an output, counted from 0, for all examples; or one for each.
        outputs: `[N, K]` or `[N, O]`.
        labels: the classes; None for regression.

    Raises:
        DataError: a target is none of the classes or outputs.
    """
    num_examples = len(outputs)
    known = np.arange(outputs.shape[1]) if labels is None else labels
    if target is None:
        numbers = outputs.argmax(dim=1) if labels is not None else torch.zeros(num_examples).long()
        return numbers, known[numbers.numpy()]
    wanted = np.asarray(target)
    if wanted.ndim == 0:
        wanted = np.repeat(wanted[None], num_examples)
    if wanted.shape != (num_examples,):
        raise DataError(
            f"target must be one for all or one for each of the {num_examples} examples, but has "
            f"the shape {list(wanted.shape)}"
        )
    number_of = {label: number for number, label in enumerate(known.tolist())}
    for value in wanted.tolist():
        if value not in number_of or isinstance(value, bool):
            kind = "number of an output" if labels is None else "class"
            listed = ", ".join(map(shown, [*number_of][:10]))
            raise DataError(f"target must be a {kind} ({listed}), but got {shown(value)}")
    return torch.tensor([number_of[value] for value in wanted.tolist()]), wanted


def _check_options(method: str, baseline: str, window: int | None, num_nodes: int | None) -> None:
    """Refuses options that are none.

    Raises:
        DataError: naming the option, the rule and the value.
    """
    for name, value, allowed in (("method", method, METHODS), ("baseline", baseline, BASELINES)):
        if value not in allowed:
            raise DataError(f"{name} must be one of {', '.join(allowed)}, but got {shown(value)}")
    for name, number, of in (
        ("window", window, "occlusion"),
        ("num_nodes", num_nodes, "integrated_gradients"),
    ):
        if number is None:
            continue
        if method != of:
            raise DataError(f"{name} is for the method {of}, but the method is {method}")
        if type(number) is not int or number < 1:
            raise DataError(f"{name} must be a whole number of at least 1, but got {shown(number)}")


def _mean(parts: Iterable[Tensor]) -> Tensor:
    """The mean over the networks."""
    return torch.stack(list(parts)).mean(dim=0)


@torch.no_grad()
def _attention(queries: Sequence[_Query]) -> np.ndarray | None:
    """The mean weights `[N, T]` of the time steps; None without attention."""
    found = [query.network.attention(query.vectors, query.lengths) for query in queries]
    known = [weights for weights in found if weights is not None]
    return _mean(known).numpy() if known else None


def _check_finite(outputs: Tensor, names: Sequence[str]) -> None:
    is_finite = outputs.isfinite().all(dim=1)
    if not is_finite.all():
        raise DataError(
            f"{names[int(is_finite.int().argmin())]}: the network's answer is not finite; see that "
            "it is in the units of the training data"
        )
