"""The kinds of recurrent cells, and what the passes of a layer leave behind.

Shape legend: E episodes, T time steps, N examples, H hidden units.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Cell = Literal["rnn", "gru", "lstm"]

NUM_GATES: dict[Cell, int] = {"rnn": 1, "gru": 3, "lstm": 4}
# Adjoints with a source: those of all q, and of a GRU's new-gate input or an LSTM's cell state.
NUM_SOURCES: dict[Cell, int] = {"rnn": 1, "gru": 4, "lstm": 5}


class Trace(NamedTuple):
    """The values of a forward pass: states h_0 … h_T, activated gates, and an extra of the cell.

    `extra` are the recurrent products of a GRU's new gate `[E, T, N, H]`, or an LSTM's cell states
    c_0 … c_T `[E, T + 1, N, H]`.  An RNN's gates are its states.
    """

    states: Tensor
    gates: Tensor | None
    extra: Tensor | None


class Adjoint(NamedTuple):
    """Adjoints of h, q, an LSTM's c and a GRU's inputs; other cells' inputs have that of q."""

    h: Tensor
    q: Tensor
    c: Tensor | None
    inputs: Tensor | None
