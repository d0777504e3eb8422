"""ONNX graphs under construction; this module alone knows the package `onnx`.

Values are called by their names, as in ONNX.  A body of a `Scan` may use the values around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

OPSET = 17  # of 2022, for runtimes on devices
IR_VERSION = 8
_TYPES = {
    "float": TensorProto.FLOAT,
    "double": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "string": TensorProto.STRING,
}
INT64_MAX = np.iinfo(np.int64).max


class Nodes:
    """The nodes of a graph, or of a body within `around`."""

    def __init__(self, around: Nodes | None = None) -> None:
        self.root: Nodes = self if around is None else around.root
        self.numbering: Iterator[int] = count() if around is None else around.numbering
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: list[Any] = []

    def input(self, name: str, kind: str, shape: Sequence[int | str] | None) -> str:
        """An input of the graph; a text in its shape names an axis of any length."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[kind], shape))
        return name

    def output(self, value: str, name: str, kind: str, shape: Sequence[int | str] | None) -> None:
        """Makes a value an output called `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, _TYPES[kind], shape))

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        """A tensor that never changes."""
        name = self.fresh("constant")
        array = np.asarray(value, dtype=kind)
        self.root.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The only output of a node; an empty name leaves an input out."""
        return self.ops(kind, *inputs, num_outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, num_outputs: int, **attributes: Any) -> tuple[str, ...]:
        """The outputs of a node."""
        names = tuple(self.fresh(kind) for _ in range(num_outputs))
        self._nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names

    def cast(self, value: str, kind: str) -> str:
        """The value as another type."""
        return self.op("Cast", value, to=_TYPES[kind])

    def reshape(self, value: str, *shape: int) -> str:
        """The value in a shape; 0 keeps an axis, -1 is what is left."""
        return self.op("Reshape", value, self.constant(shape, np.int64))

    def slice(self, value: str, start: int, end: int, axis: int) -> str:
        """A part of an axis; negative places count from the end, INT64_MAX is the end."""
        ends = (self.constant([place], np.int64) for place in (start, end, axis))
        return self.op("Slice", value, *ends)

    def take(self, value: str, place: int, axis: int) -> str:
        """One place of an axis, which is gone then."""
        return self.op("Gather", value, self.constant(place, np.int64), axis=axis)

    def sum(self, value: str, *axes: int, keep: bool = False) -> str:
        """The sum over axes."""
        return self.op("ReduceSum", value, self.constant(axes, np.int64), keepdims=int(keep))

    def size(self, value: str, axis: int) -> str:
        """The length of an axis, int64 `[1]`."""
        return self.slice(self.op("Shape", value), axis, axis + 1, 0)

    def numbers(self, end: str, kind: str = "int64") -> str:
        """0, 1 … up to `end` (int64 `[1]`), which is left out."""
        zero, one = self.constant(0, np.int64), self.constant(1, np.int64)
        found = self.op("Range", zero, self.reshape(end), one)
        return found if kind == "int64" else self.cast(found, kind)

    def within(self, codes: str, end: int, otherwise: int) -> str:
        """Codes from 0 up to `end`, which is left out, and `otherwise` in place of all others."""
        least = self.op("GreaterOrEqual", codes, self.constant(0, np.int64))
        most = self.op("Less", codes, self.constant(end, np.int64))
        is_within = self.op("And", least, most)
        return self.op("Where", is_within, codes, self.constant(otherwise, np.int64))

    def scan(
        self, body: Body, states: Sequence[str], sequences: Sequence[str], *, backwards: bool
    ) -> tuple[str, ...]:
        """Goes along the first axis of the sequences: the last states, then what is stacked."""
        num_stacked = len(body.nodes.outputs) - len(states)
        order = {"scan_output_directions": [int(backwards)] * num_stacked} if num_stacked else {}
        return self.ops(
            "Scan",
            *states,
            *sequences,
            num_outputs=len(states) + num_stacked,
            body=body.nodes.graph("body"),
            num_scan_inputs=len(sequences),
            scan_input_directions=[int(backwards)] * len(sequences),
            **order,
        )

    def model(self, notes: Mapping[str, str]) -> bytes:
        """The whole as the content of a file, checked by `onnx.checker`; `notes` are metadata."""
        made = helper.make_model(
            self.graph("raymeta"),
            producer_name="raymeta",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        helper.set_model_props(made, dict(notes))
        checker.check_model(made, full_check=True)
        content: bytes = made.SerializeToString()
        return content

    def graph(self, name: str) -> Any:
        """The nodes as a graph, or as the body of one."""
        return helper.make_graph(
            self._nodes, name, self._inputs, self.outputs, initializer=self.constants
        )

    def fresh(self, kind: str) -> str:
        """A name that no value has."""
        return f"{kind}_{next(self.numbering)}"


class Body:
    """The body of a `Scan`: its states and the parts of sequences come in, in this order."""

    def __init__(self, around: Nodes, kinds: Sequence[str]) -> None:
        self.nodes = Nodes(around)
        self.inputs = tuple(self.nodes.input(self.nodes.fresh("in"), k, None) for k in kinds)

    def ends_with(self, values: Sequence[str], kinds: Sequence[str]) -> None:
        """Names the states after the step, and what is stacked."""
        for value, kind in zip(values, kinds, strict=True):
            self.nodes.output(value, self.nodes.fresh("out"), kind, None)
