"""Fills missing numbers in, and reads the times of steps, as `raymeta.data.missing` in ONNX nodes.

All values are double.  Padding must be NaN, as what is missing is.

Shape legend: N examples, T time steps, C channels.
"""

from __future__ import annotations

import numpy as np

from raymeta.inference.export.nodes import Body, Nodes


def interpolated(nodes: Nodes, x: str, times: str) -> str:
    """Fills `x` `[N, T, C]` by lines in time (`[N, T, 1]`); at the ends by the nearest number."""
    before, start = _nearest(nodes, x, times, backwards=False)
    after, end = _nearest(nodes, x, times, backwards=True)
    width = nodes.op("Sub", end, start)
    is_between = nodes.op("Greater", width, nodes.constant(0, np.float64))  # not for NaN
    width = nodes.op("Where", is_between, width, nodes.constant(1, np.float64))
    share = nodes.op("Div", nodes.op("Sub", times, start), width)
    rise = nodes.op("Mul", share, nodes.op("Sub", after, before))
    nearest = nodes.op("Where", nodes.op("IsNaN", before), after, before)
    return nodes.op("Where", is_between, nodes.op("Add", before, rise), nearest)


def with_masks(nodes: Nodes, x: str, times: str) -> list[str]:
    """The last numbers, what was observed, and the times since then: three times `[N, T, C]`.

    `x` is `[N, T, C]`, `times` `[N, T, 1]`.
    """
    values, observed_at = _nearest(nodes, x, times, backwards=False)
    observed = nodes.cast(nodes.op("Not", nodes.op("IsNaN", x)), "double")
    # Before the first number the time counts from the first step.
    first = nodes.slice(times, 0, 1, 1)
    observed_at = nodes.op("Where", nodes.op("IsNaN", observed_at), first, observed_at)
    first = nodes.op("Expand", first, nodes.op("Shape", nodes.slice(x, 0, 1, 1)))
    before = nodes.op("Concat", first, nodes.slice(observed_at, 0, -1, 1), axis=1)
    return [values, observed, nodes.op("Sub", times, before)]


def time_differences(nodes: Nodes, times: str) -> str:
    """The times `[N, T, 1]` since the steps before; 0 at the first step."""
    first, earlier = nodes.slice(times, 0, 1, 1), nodes.slice(times, 0, -1, 1)
    return nodes.op("Sub", times, nodes.op("Concat", first, earlier, axis=1))


def padded_by(nodes: Nodes, x: str, lengths: str, value: float) -> str:
    """The numbers `[N, T, C]`, with a value for padding, which may hold anything."""
    steps = nodes.reshape(nodes.numbers(nodes.size(x, 1)), 1, -1, 1)
    is_valid = nodes.op("Less", steps, nodes.reshape(lengths, -1, 1, 1))
    return nodes.op("Where", is_valid, x, nodes.constant(value, np.float64))


def _nearest(nodes: Nodes, x: str, times: str, *, backwards: bool) -> tuple[str, str]:
    """The last number at or before each step (`backwards`: the next one), and its time.

    Both are `[N, T, C]`, NaN where there is none.
    """
    body = Body(nodes, ["double"] * 4)
    last, last_time, own, own_time = body.inputs
    is_gap = body.nodes.op("IsNaN", own)
    value = body.nodes.op("Where", is_gap, last, own)
    time = body.nodes.op("Where", is_gap, last_time, own_time)
    body.ends_with([value, time] * 2, ["double"] * 4)
    none = nodes.op("Mul", nodes.take(x, 0, 1), nodes.constant(np.nan, np.float64))
    sequences = [nodes.op("Transpose", value, perm=[1, 0, 2]) for value in (x, times)]
    found = nodes.scan(body, [none, none], sequences, backwards=backwards)[2:]
    values, at = (nodes.op("Transpose", value, perm=[1, 0, 2]) for value in found)
    return values, at
