"""The whole meta-gradient as one CUDA graph: one launch instead of thousands of small ones.

A graph replays the same kernels on the same memory, so there is one for every shape of episodes;
data that comes in ever new shapes, such as sentences, is better served without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from raymeta.meta.maml import Kind, Maml, MetaGradient, episode_masks, masked_meta_gradient
from raymeta.models import NetworkSpec
from raymeta.tasks.episodes import Episodes, Examples

MAX_GRAPHS = 8  # each keeps the memory of a whole meta-gradient
_WARM_UPS = 3  # what libraries set up at their first calls must not be captured


class GraphedMetaGradient:
    """`raymeta.meta.maml.meta_gradient` for tensors on a GPU.

    Shapes are captured at their first call, the first MAX_GRAPHS of them; others run as ever.
    """

    def __init__(self) -> None:
        self._captured: dict[object, _Captured] = {}

    def __call__(
        self,
        maml: Maml,
        spec: NetworkSpec,
        kind: Kind,
        meta_params: Mapping[str, Tensor],
        episodes: Episodes,
        *,
        graph_steps: int | None = None,
    ) -> MetaGradient:
        """As `meta_gradient`."""
        inputs = _inputs(spec, meta_params, episodes)
        shapes = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        key = (maml, spec, kind, graph_steps, shapes)
        if key not in self._captured:
            if len(self._captured) == MAX_GRAPHS:
                return _run(maml, spec, kind, inputs, graph_steps)
            self._captured[key] = _Captured(maml, spec, kind, inputs, graph_steps)
        return self._captured[key].replay(inputs)


class _Captured:
    """A graph with the memory that it reads and writes."""

    def __init__(
        self,
        maml: Maml,
        spec: NetworkSpec,
        kind: Kind,
        inputs: Mapping[str, Tensor],
        graph_steps: int | None,
    ) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                _run(maml, spec, kind, self._inputs, graph_steps)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = _run(maml, spec, kind, self._inputs, graph_steps)

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
    """All tensors that a meta-gradient is a function of, by name."""
    inputs = {f"params.{name}": value for name, value in meta_params.items()}
    for part, examples in (("support", episodes.support), ("query", episodes.query)):
        inputs |= {f"{part}.x": examples.x, f"{part}.y": examples.y}
        if examples.lengths is not None:
            inputs[f"{part}.lengths"] = examples.lengths
    masks = episode_masks(spec, meta_params, episodes.seeds) or []
    return inputs | {f"masks.{number}": mask for number, mask in enumerate(masks)}


def _run(
    maml: Maml,
    spec: NetworkSpec,
    kind: Kind,
    inputs: Mapping[str, Tensor],
    graph_steps: int | None,
) -> MetaGradient:
    """The meta-gradient from what `_inputs` gave."""

    def examples(part: str) -> Examples:
        return Examples(inputs[f"{part}.x"], inputs[f"{part}.y"], inputs.get(f"{part}.lengths"))

    def of(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}

    return masked_meta_gradient(
        maml,
        spec,
        kind,
        of("params."),
        examples("support"),
        examples("query"),
        list(of("masks.").values()) or None,
        graph_steps=graph_steps,
    )
