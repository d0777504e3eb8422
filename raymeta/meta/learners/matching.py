"""Matching networks (Vinyals et al. 2016, "Matching Networks for One Shot Learning").

    P(y | x) = Σ_i a(x, x_i) y_i,   a = softmax_i(scale cos(f(x), g(x_i)))      (equations 1 and 2)

A real target has the same mean with the same weights in place of a probability.  With full-context
embeddings g reads the whole support set with a bidirectional LSTM (appendix A.2), and f reads it
several times by attention (appendix A.1):

    g(x_i) = →h_i + ←h_i + g'(x_i)
    ĥ_k, c_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], c_{k-1}),   h_k = ĥ_k + f'(x)
    r_k = Σ_i softmax_i(h_k · g(x_i)) g(x_i),   f(x) = h_K

The LSTM reads the support in the order in which an episode has it: class after class.  A class
without a support example is never the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from raymeta.meta.embedding import Embedded, EmbeddingLearner, logarithm
from raymeta.meta.settings import MatchingSettings
from raymeta.nn.networks import (
    NetworkSpec,
    Params,
    expand_params,
    init_params,
    is_head,
    recurrent_features,
)

SCALE = "log_scale"
SUPPORT, QUERY = "support_lstm.", "query_lstm."


@dataclass(frozen=True, kw_only=True)
class Matching(MatchingSettings, EmbeddingLearner):
    """Matching networks; see `MatchingSettings`."""

    name: ClassVar[str] = "matching"

    def init_meta_params(self, params: Mapping[str, Tensor], seed: int = 0) -> Params:
        """The network's parameters without its head, the scale, and the LSTMs of the context."""
        meta_params = super().init_meta_params(params, seed)
        like = params["head.weight"]
        meta_params[SCALE] = logarithm(self.scale, like)
        if self.full_context:
            generator = torch.Generator().manual_seed(seed)
            size = like.shape[-1]
            for prefix, spec in ((SUPPORT, _support_reader(size)), (QUERY, _query_reader(size))):
                for name, value in init_params(spec, generator, like.dtype).items():
                    if not is_head(name):
                        meta_params[prefix + name] = value.to(like.device)
        return meta_params

    def answers(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """Logits of classes, or the mean of numbers, by attention over the support examples."""
        attention = self._log_attention(meta_params, embedded)
        if embedded.targets.is_floating_point():
            return attention.exp() @ embedded.targets
        # The logarithm of a sum over the class's examples; -inf leaves the others out.
        is_other = embedded.target_rows.transpose(1, 2).unsqueeze(1) == 0  # [E, 1, O, N]
        return attention.unsqueeze(2).masked_fill(is_other, -torch.inf).logsumexp(dim=-1)

    def example_weights(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """The attention a(x, x_i)."""
        return self._log_attention(meta_params, embedded).exp()

    def _log_attention(self, meta_params: Mapping[str, Tensor], embedded: Embedded) -> Tensor:
        """The logarithms of a(x, x_i), `[E, M, N]`."""
        support, query = embedded.support, embedded.query
        if self.full_context:
            support = _support_in_context(meta_params, support)
            query = _query_in_context(meta_params, query, support, self.read_steps)
        cosines = normalize(query, dim=-1) @ normalize(support, dim=-1).transpose(1, 2)
        return (meta_params[SCALE].exp() * cosines).log_softmax(dim=-1)


def _support_reader(size: int) -> NetworkSpec:
    return NetworkSpec(
        num_outputs=1, cell="lstm", num_features=size, hidden_size=size, bidirectional=True
    )


def _query_reader(size: int) -> NetworkSpec:
    """The LSTM that reads [f'(x), r]: the paper feeds r to the recurrent weights beside h."""
    return NetworkSpec(num_outputs=1, cell="lstm", num_features=2 * size, hidden_size=size)


def _own(meta_params: Mapping[str, Tensor], prefix: str) -> Params:
    return {k.removeprefix(prefix): v for k, v in meta_params.items() if k.startswith(prefix)}


def _support_in_context(meta_params: Mapping[str, Tensor], support: Tensor) -> Tensor:
    """The embeddings g of all support examples, `[E, N, F]`."""
    spec = _support_reader(support.shape[-1])
    params = expand_params(_own(meta_params, SUPPORT), 1)
    states, _ = recurrent_features(spec, params, support[None], None, None)  # [1, N, E, 2 F]
    forward, backward = states[0].transpose(0, 1).chunk(2, dim=-1)
    return forward + backward + support


def _query_in_context(
    meta_params: Mapping[str, Tensor], query: Tensor, support: Tensor, num_steps: int
) -> Tensor:
    """The embeddings f of all query examples, `[E, M, F]`."""
    weights = _own(meta_params, QUERY)
    flat = query.flatten(0, 1)
    hidden = read = cell = torch.zeros_like(flat)
    for _ in range(num_steps):
        found, cell = torch.lstm_cell(
            torch.cat([flat, read], dim=-1),
            (hidden, cell),
            weights["rnn.weight_ih_l0"],
            weights["rnn.weight_hh_l0"],
            weights["rnn.bias_ih_l0"],
            weights["rnn.bias_hh_l0"],
        )
        hidden = found + flat
        attention = (hidden.view_as(query) @ support.transpose(1, 2)).softmax(dim=-1)
        read = (attention @ support).flatten(0, 1)
    return hidden.view_as(query)
