"""Adaptation by gradient steps as ONNX nodes: a `Scan` over the steps, gradients written out.

    φ_{s+1} = φ_s - α_s ∘ clip(∇_φ L_support(φ_s))

Shape legend: N support examples, F features, O outputs, C context parameters, S steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from raymeta.errors import DataError
from raymeta.inference.export.answers import head, prototypes, without_empty
from raymeta.inference.export.gradient import gradient
from raymeta.inference.export.network import (
    BIAS,
    WEIGHT,
    Pass,
    forward_pass,
    in_onnx_order,
    onnx_form,
)
from raymeta.inference.export.nodes import Body, Nodes
from raymeta.inference.export.preparation import RawInput
from raymeta.inference.trained import Trained
from raymeta.meta.gradient_learner import GradientLearner
from raymeta.meta.inner import is_rate
from raymeta.meta.learners.cavia import CONTEXT, CONTEXT_WEIGHT, Cavia
from raymeta.meta.learners.imaml import Imaml
from raymeta.meta.learners.maml import Maml
from raymeta.meta.learners.maml_plus_plus import MamlPlusPlus
from raymeta.meta.learners.meta_sgd import MetaSgd
from raymeta.meta.learners.proto_maml import ProtoMaml
from raymeta.meta.learners.reptile import Reptile
from raymeta.nn.networks import Params, is_head

_SERVED = (Maml, MetaSgd, MamlPlusPlus, ProtoMaml, Reptile, Imaml, Cavia)
# (what changes from step to step, stacked; what does not) by name
Rates = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


class Adaptation:
    """The steps of a learner on a support set, and the network at their end.

    Args:
        nodes: of the graph.
        trained: the learner and its network.
        network: the meta-parameters.
        support: the support's examples.
        rows: its targets `[N, O]`, one-hot rows of classes.
        num_outputs: O as int64 `[1]`, where the network has no outputs of its own for each way.

    Raises:
        DataError: the learner has no ONNX form.
    """

    def __init__(
        self,
        nodes: Nodes,
        trained: Trained,
        network: Params,
        support: RawInput,
        rows: str,
        num_outputs: str | None,
    ) -> None:
        learner = trained.recipe.learner
        if type(learner) not in _SERVED:
            raise DataError(
                f"learner {learner.name} cannot adapt within an ONNX graph: its steps have no ONNX "
                "form yet; export an adapted network"
            )
        assert isinstance(learner, GradientLearner)
        self._learner, self._spec, self._trained = learner, trained.recipe.spec, trained
        self._support, self._rows = support, rows
        own = {k: v.numpy() for k, v in network.items() if not is_rate(k)}
        self._start = {
            name: nodes.constant(value) for name, value in onnx_form(self._spec, own).items()
        }
        if isinstance(learner, Cavia):
            self._start[CONTEXT] = nodes.constant(np.zeros(learner.context_size))
            weights = [own[CONTEXT_WEIGHT + suffix] for suffix in self._spec.suffixes]
            self._context = nodes.constant(
                np.stack([in_onnx_order(self._spec, one) for one in weights])
            )  # [D, G H, C]
        self._fixed: Pass | None = None
        if isinstance(learner, ProtoMaml):
            self._start |= self._prototype_head(nodes)
        elif num_outputs is not None:
            for name in filter(is_head, list(self._start)):
                shape = [num_outputs]
                if name == WEIGHT:
                    shape.append(nodes.constant([self._spec.output_size], np.int64))
                wanted = nodes.op("Concat", *shape, axis=0)
                self._start[name] = nodes.op("Expand", self._start[name], wanted)
        self._adapted = [name for name in self._start if learner.adapts(_torch_name(name))]
        if all(map(is_head, self._adapted)):  # the features stay as they are
            self._fixed = forward_pass(nodes, self._spec, self._start, support.x, support.lengths)
        self.params = self._in_context(nodes, self._adapt(nodes, network))

    def _prototype_head(self, nodes: Nodes) -> dict[str, str]:
        """Proto-MAML's head: w_k = 2 c_k, b_k = -|c_k|²."""
        trace = forward_pass(nodes, self._spec, self._start, self._support.x, self._support.lengths)
        centres, counts = prototypes(nodes, trace.pooled, self._rows)
        squares = nodes.op("Neg", nodes.sum(nodes.op("Mul", centres, centres), 1))
        return {
            WEIGHT: nodes.op("Mul", centres, nodes.constant(2.0)),
            BIAS: without_empty(nodes, squares, counts),
        }

    def _adapt(self, nodes: Nodes, network: Params) -> dict[str, str]:
        num_steps = self._trained.recipe.num_steps
        stacked, same = self._rates(network, num_steps)
        body = Body(nodes, ["float"] * (len(self._adapted) + 1 + len(stacked)))
        states, rest = body.inputs[: len(self._adapted)], body.inputs[len(self._adapted) + 1 :]
        params = self._start | dict(zip(self._adapted, states, strict=True))
        inner = body.nodes
        rates = dict(zip(stacked, rest, strict=True))
        rates |= {name: inner.constant(value) for name, value in same.items()}
        grads = self._gradients(inner, params)
        if self._learner.inner_clip is not None:
            grads = _clipped(inner, grads, self._learner.inner_clip)
        after = []
        for name in self._adapted:
            step = inner.op("Mul", rates[name], grads[name])
            if isinstance(self._learner, Imaml):
                pull = inner.constant(self._learner.inner_lr * self._learner.proximity)
                away = inner.op("Sub", params[name], self._start[name])
                step = inner.op("Add", step, inner.op("Mul", pull, away))
            after.append(inner.op("Sub", params[name], step))
        body.ends_with(after, ["float"] * len(after))
        # The first sequence alone says how many steps there are.
        sequences = [np.zeros(num_steps), *stacked.values()]
        found = nodes.scan(
            body,
            [self._start[name] for name in self._adapted],
            [nodes.constant(value) for value in sequences],
            backwards=False,
        )
        return self._start | dict(zip(self._adapted, found, strict=True))

    def _in_context(self, nodes: Nodes, params: Mapping[str, str]) -> dict[str, str]:
        """The parameters with CAVIA's context in the first layer's bias."""
        if CONTEXT not in params:
            return dict(params)
        more = nodes.op("MatMul", self._context, params[CONTEXT])  # [D, G H]
        none = nodes.op("Mul", more, nodes.constant(0.0))
        bias = nodes.op("Add", params["B0"], nodes.op("Concat", more, none, axis=1))
        return {**params, "B0": bias}

    def _gradients(self, nodes: Nodes, params: Mapping[str, str]) -> dict[str, str]:
        """∇_φ L_support by every adapted parameter."""
        own = self._in_context(nodes, params)
        trace = self._fixed or forward_pass(
            nodes, self._spec, own, self._support.x, self._support.lengths
        )
        outputs = head(nodes, trace.pooled, own[WEIGHT], own[BIAS])
        if self._trained.is_classification:
            errors = nodes.op("Sub", nodes.op("Softmax", outputs, axis=1), self._rows)
            count = nodes.size(errors, 0)
        else:
            errors = nodes.op("Sub", outputs, self._rows)
            errors = nodes.op("Mul", errors, nodes.constant(2.0))
            count = nodes.reshape(nodes.op("Size", errors), 1)
        by_outputs = nodes.op("Div", errors, nodes.cast(count, "float"))
        grads = {
            WEIGHT: nodes.op("Gemm", by_outputs, trace.pooled, transA=1),
            BIAS: nodes.sum(by_outputs, 0),
        }
        if self._fixed is None:
            by_pooled = nodes.op("MatMul", by_outputs, own[WEIGHT])
            grads |= gradient(nodes, self._spec, own, trace, by_pooled)
        if CONTEXT in self._adapted:
            by_gates = nodes.ops("Split", grads["B0"], num_outputs=2, axis=1)[0]
            column = nodes.op("Unsqueeze", by_gates, nodes.constant([2], np.int64))
            grads[CONTEXT] = nodes.sum(nodes.op("Mul", self._context, column), 0, 1)
        return {name: grads[name] for name in self._adapted}

    def _rates(self, network: Params, num_steps: int) -> Rates:
        """α_s of every adapted parameter."""
        expanded = {name: value[None] for name, value in network.items()}
        by_step: list[dict[str, np.ndarray]] = []
        for step in range(num_steps):
            found: dict[str, np.ndarray] = {}
            for name, value in network.items():
                if is_rate(name) or not self._learner.adapts(name):
                    continue
                rate = self._learner.inner_rate(expanded, name, step)
                own = np.asarray(rate[0] if isinstance(rate, torch.Tensor) else rate)
                ones = value.shape if value.dim() == 1 and not is_head(name) else [1] * value.dim()
                found[name] = own if own.ndim else np.broadcast_to(own, ones)
            made = onnx_form(self._spec, found)
            for name in self._adapted:
                if name not in made:  # made for each episode: a context, a head of prototypes
                    made[name] = np.asarray(self._learner.inner_lr)
            by_step.append(made)
        first = by_step[0]
        same = {
            name: value
            for name, value in first.items()
            if all((value == other[name]).all() for other in by_step)
        }
        stacked = {
            name: np.stack([one[name] for one in by_step]) for name in first if name not in same
        }
        return stacked, same


def _torch_name(name: str) -> str:
    """A parameter of the network that an ONNX parameter is made of."""
    return f"rnn.weight_ih_l{name[1:]}" if name[0] in "WRB" else name


def _clipped(nodes: Nodes, grads: Mapping[str, str], max_norm: float) -> dict[str, str]:
    """The gradient with a norm of at most `max_norm`, all parameters together."""
    squares = []
    for value in grads.values():
        exact = nodes.reshape(nodes.cast(value, "double"), -1)
        squares.append(nodes.sum(nodes.op("Mul", exact, exact), 0))
    norm = nodes.op("Sqrt", squares[0] if len(squares) == 1 else nodes.op("Sum", *squares))
    tiny = nodes.constant(np.sqrt(np.finfo(np.float64).tiny), np.float64)
    limit = nodes.constant(max_norm, np.float64)
    ratio = nodes.op("Div", limit, nodes.op("Max", norm, tiny))
    scale = nodes.cast(nodes.op("Min", ratio, nodes.constant(1.0, np.float64)), "float")
    return {name: nodes.op("Mul", value, scale) for name, value in grads.items()}
