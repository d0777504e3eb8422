"""The whole meta-gradient as one CUDA graph: one launch instead of thousands of small ones.

A graph replays the same kernels on the same memory, so every shape of episodes needs its own.
Leave it off for data of ever new shapes, such as sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from raymeta.episodes import Episodes, Examples
from raymeta.meta.gradient import MetaGradient
from raymeta.meta.inner import episode_masks
from raymeta.meta.learner import Learner
from raymeta.nn.networks import NetworkSpec
from raymeta.problem import Problem

MAX_GRAPHS = 8  # each keeps the memory of a whole meta-gradient
_WARM_UPS = 3  # libraries set things up at their first calls, which must not be captured


class GraphedMetaGradient:
    """`Learner.meta_gradient` for tensors on a GPU.

    The first MAX_GRAPHS shapes are captured, each at its first call; others run without a graph.
    """

    def __init__(self) -> None:
        self._captured: dict[object, _Captured] = {}

    def __call__(
        self,
        learner: Learner,
        spec: NetworkSpec,
        problem: Problem,
        meta_params: Mapping[str, Tensor],
        episodes: Episodes,
        *,
        graph_steps: int | None = None,
    ) -> MetaGradient:
        """Computes `Learner.meta_gradient`, from a captured graph where there is one."""
        inputs = _inputs(spec, meta_params, episodes)
        shapes = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        key = (learner, spec, problem, graph_steps, shapes)
        if key not in self._captured:
            if len(self._captured) == MAX_GRAPHS:
                return _run(learner, spec, problem, inputs, graph_steps)
            self._captured[key] = _Captured(learner, spec, problem, inputs, graph_steps)
        return self._captured[key].replay(inputs)


class _Captured:
    """A captured graph, its inputs and its result."""

    def __init__(
        self,
        learner: Learner,
        spec: NetworkSpec,
        problem: Problem,
        inputs: Mapping[str, Tensor],
        graph_steps: int | None,
    ) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                _run(learner, spec, problem, self._inputs, graph_steps)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = _run(learner, spec, problem, self._inputs, graph_steps)

    def replay(self, inputs: Mapping[str, Tensor]) -> MetaGradient:
        """The result for other values of the same shapes."""
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        return replace(
            self._result,
            grads={name: value.clone() for name, value in self._result.grads.items()},
            loss=self._result.loss.clone(),
            score=self._result.score.clone(),
        )


def _inputs(
    spec: NetworkSpec, meta_params: Mapping[str, Tensor], episodes: Episodes
) -> dict[str, Tensor]:
    """All tensors that a meta-gradient depends on, by name."""
    inputs = {f"params.{name}": value for name, value in meta_params.items()}
    for part, examples in (("support", episodes.support), ("query", episodes.query)):
        inputs |= {f"{part}.x": examples.x, f"{part}.y": examples.y}
        if examples.lengths is not None:
            inputs[f"{part}.lengths"] = examples.lengths
    masks = episode_masks(spec, meta_params, episodes.seeds) or []
    return inputs | {f"masks.{number}": mask for number, mask in enumerate(masks)}


def _run(
    learner: Learner,
    spec: NetworkSpec,
    problem: Problem,
    inputs: Mapping[str, Tensor],
    graph_steps: int | None,
) -> MetaGradient:
    """The meta-gradient of the tensors of `_inputs`."""

    def examples(part: str) -> Examples:
        return Examples(inputs[f"{part}.x"], inputs[f"{part}.y"], inputs.get(f"{part}.lengths"))

    def of(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}

    return learner.masked_meta_gradient(
        spec,
        problem,
        of("params."),
        examples("support"),
        examples("query"),
        list(of("masks.").values()) or None,
        graph_steps=graph_steps,
    )
