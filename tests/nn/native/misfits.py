"""Calls compiled code with arguments that do not fit; as a program, since a miss may crash it.

Prints one JSON object: the case -> the type and text of the error, or "returned".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from raymeta.nn import torch_scans
from raymeta.nn.cells import NUM_GATES, NUM_SOURCES, Cell
from raymeta.nn.native import library, scans
from raymeta.nn.networks import NetworkSpec, Params, expand_params, forward, init_params
from raymeta.nn.recurrence import product, recurrence

Case = tuple[str, Callable[[], object]]
SIZES = (2, 3, 4, 5)  # episodes, steps, examples, hidden units


def tensor(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def misfits(value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Changes a tensor in every way that compiled code would not notice."""
    for axis, size in enumerate(value.shape):
        yield f"axis {axis} one longer", torch.cat([value, value.narrow(axis, 0, 1)], dim=axis)
        yield f"axis {axis} one shorter", value.narrow(axis, 0, size - 1)
        yield f"axis {axis} empty", value.narrow(axis, 0, 0)
    yield "an axis more", value.unsqueeze(0)
    yield "an axis less", value[0]
    yield "integers", value.to(torch.int64)
    yield "other precision", value.to(torch.float32)
    yield "another device", value.to("meta")


def layer_arguments(cell: Cell) -> dict[str, dict[str, Any]]:
    """Makes arguments that fit, for every compiled scan."""
    episodes, steps, examples, hidden = SIZES
    width = NUM_GATES[cell] * hidden
    inputs, weight = tensor(episodes, steps, examples, width), tensor(episodes, hidden, width)
    bias, valid = tensor(episodes, width), torch.ones(episodes, steps, examples).bool()
    states = tensor(episodes, steps, examples, hidden)
    sources = tensor(episodes, steps, examples, NUM_SOURCES[cell] * hidden)
    trace = scans.run(cell, inputs, weight, bias, valid)
    adjoint = scans.adjoint(cell, trace, weight, valid, states, sources)
    return {
        "run": {"inputs": inputs, "weight": weight, "bias": bias, "valid": valid},
        "adjoint": {
            "trace": trace,
            "weight": weight,
            "valid": valid,
            "grad_states": states,
            "sources": sources,
        },
        "double_backward": {
            "trace": trace,
            "adjoint": adjoint,
            "weight": weight,
            "valid": valid,
            "u_inputs": inputs,
            "u_weight": weight,
            "u_bias": bias,
        },
    }


def scan_cases(cell: Cell) -> Iterator[Case]:
    for scan, fitting in layer_arguments(cell).items():
        function = partial(getattr(scans, scan), cell)
        for name, value in fitting.items():
            if isinstance(value, Tensor):
                for change, misfit in misfits(value):
                    yield f"{scan} {name}: {change}", partial(function, **fitting | {name: misfit})
                continue
            for field, part in value._asdict().items():
                where = f"{scan} {name}.{field}"
                if (name, field) == ("adjoint", "inputs"):
                    continue  # `double_backward` has no use for it
                if part is None:
                    changed = value._replace(**{field: torch.zeros(1)})
                    yield f"{where}: given", partial(function, **fitting | {name: changed})
                    continue
                changes: list[tuple[str, Tensor | None]] = [*misfits(part), ("None", None)]
                changes.append(
                    ("not contiguous", part.transpose(0, 3).contiguous().transpose(0, 3))
                )
                for change, other in changes:
                    if field == "h" and change == "None":
                        continue  # an Adjoint always has one
                    changed = value._replace(**{field: other})
                    yield f"{where}: {change}", partial(function, **fitting | {name: changed})


def product_cases() -> Iterator[Case]:
    left, right = tensor(2, 3, 4), tensor(2, 4, 5)
    for name, function in (("multiply", scans.multiply), ("product", product)):
        for change, misfit in misfits(left):
            if change.startswith("axis 1"):
                continue  # any number of rows fits
            yield f"{name} left: {change}", partial(function, misfit, right)
        for change, misfit in misfits(right):
            if not change.startswith("axis 2"):  # any number of columns fits
                yield f"{name} right: {change}", partial(function, left, misfit)


def recurrence_cases(cell: Cell) -> Iterator[Case]:
    fitting = layer_arguments(cell)["run"]
    function = partial(recurrence, cell)
    for name, value in fitting.items():
        for change, misfit in misfits(value):
            yield f"recurrence {name}: {change}", partial(function, **fitting | {name: misfit})


def forward_cases(cell: Cell) -> Iterator[Case]:
    numbers = NetworkSpec(num_outputs=3, num_features=5, hidden_size=4, cell=cell)
    text = NetworkSpec(
        num_outputs=3, vocabulary_size=7, embedding_size=3, hidden_size=4, cell=cell, pooling="mean"
    )
    x, tokens = tensor(2, 4, 6, 5).float(), torch.ones(2, 4, 6, dtype=torch.int64)
    lengths = torch.full((2, 4), 6)

    def call(spec: NetworkSpec, x: Tensor, lengths: Tensor | None = None) -> Callable[[], object]:
        params = expand_params(init_params(spec, torch.Generator().manual_seed(0)), 2)
        return partial(forward, spec, params, x, lengths)

    def named(name: str, case: Callable[[], object]) -> Case:
        return f"forward {name}", case

    for features in (1, 3, 4, 6, 1_000_000):
        wide = torch.zeros(1, 1, 1, 1).expand(2, 1, 1, features)
        yield named(f"{features} features for 5", call(numbers, wide, lengths[:, :1] // 6))
    for change, misfit in misfits(x):
        if change[:6] in {"axis 1", "axis 2"} and "empty" not in change:
            continue  # any number of examples and steps fits
        if change == "other precision":
            continue  # is cast
        yield named(f"x: {change}", call(numbers, misfit))
    yield named("tokens for features", call(numbers, tokens))
    yield named("features for tokens", call(text, x))
    for change, bad in (("too large", 7), ("far too large", 10**12), ("negative", -1)):
        damaged = tokens.clone()
        damaged[0, 0, 0] = bad
        yield named(f"tokens {change}", call(text, damaged))
        damaged = tokens.clone()
        damaged[1, 3, 5] = bad
        yield named(f"last tokens {change}", call(text, damaged))
    yield named("tokens int32", call(text, tokens.int()))
    yield named("tokens float", call(text, tokens.float()))
    for spec, data in ((numbers, x), (text, tokens)):
        for pooling in ("last", "mean", "attention"):
            spec = replace(spec, pooling=pooling)  # noqa: PLW2901
            where = f"{pooling} {data.dtype}"
            for bad in (0, -1, 7, 10**9):
                damaged = lengths.clone()
                damaged[1, 2] = bad
                yield named(f"length {bad} of 6 {where}", call(spec, data, damaged))
            yield named(f"lengths float {where}", call(spec, data, lengths.float()))
            yield named(f"lengths of one episode {where}", call(spec, data, lengths[:1]))
            yield named(f"lengths of one example {where}", call(spec, data, lengths[:, :1]))
    yield from parameter_cases(numbers, x)
    yield from parameter_cases(replace(numbers, bidirectional=True, num_layers=2), x)
    yield from parameter_cases(text, tokens)


def parameter_cases(spec: NetworkSpec, x: Tensor) -> Iterator[Case]:
    """Makes networks with the parameters of another network."""
    params: Params = expand_params(init_params(spec, torch.Generator().manual_seed(0)), 2)
    where = "text" if spec.num_features is None else f"{spec.num_layers} layers"
    for name, value in params.items():
        for change, misfit in misfits(value):
            if change == "other precision":
                if not name.startswith("rnn."):
                    continue  # torch's own operations say it
                misfit = value.double()  # noqa: PLW2901
            elif change in {"integers", "another device"}:
                continue  # likewise
                yield (
                    f"forward {where} {name}: {change}",
                    partial(forward, spec, params | {name: misfit}, x),
                )
        without = {key: value for key, value in params.items() if key != name}
        yield f"forward {where} {name}: missing", partial(forward, spec, without, x)
    for changes in ({"hidden_size": 3}, {"hidden_size": 5}, {"num_layers": 3}, {"num_outputs": 2}):
        other = replace(spec, **changes)  # type: ignore[arg-type]
        yield f"forward {where} other {changes}", partial(forward, other, params, x)
    for cell in get_args(Cell):
        if cell != spec.cell:
            yield (
                f"forward {where} other cell {cell}",
                partial(forward, replace(spec, cell=cell), params, x),
            )


def main(cell: Cell) -> None:
    native = library() is not None
    if not native:  # what fits is then made by torch's operations
        scans.run, scans.adjoint, scans.double_backward = (
            torch_scans.run,
            torch_scans.adjoint,
            torch_scans.double_backward,
        )
    results = {}
    cases = [*recurrence_cases(cell), *forward_cases(cell)]
    if native:
        cases += [*scan_cases(cell), *product_cases()]
    for name, case in cases:
        assert name not in results, name
        try:
            case()
        except Exception as error:  # noqa: BLE001  (any but ValueError is for the test to refuse)
            results[name] = [type(error).__name__, str(error)]
        else:
            results[name] = ["returned", ""]
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])  # type: ignore[arg-type]
