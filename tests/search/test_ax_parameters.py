"""Search spaces and metrics in Ax's terms: names, wide ranges, narrow ranges."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from typing import Any

import pytest

from raymeta.experiment.parameter import MOST_CHOICES, Parameter
from raymeta.search.ax_model import AxModel
from raymeta.search.ax_parameters import MOST_LISTED, AxParameter, AxSpace
from raymeta.search.records import Curve, TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, Space

SINGLE = SearchSettings(objectives=(("loss", "min"),))
BILLION = 10**9


def sources_of_search(
    space: Space, settings: SearchSettings, count: int = 6, others: tuple[str, ...] = ()
) -> tuple[list[str], list[Point]]:
    """Runs a few trials whose value grows with the numbers in a point."""
    model = AxModel(space, settings)
    sources: list[str] = []
    points: list[Point] = []
    changes: dict[str, TrialRecord] = {}
    for number in range(count):
        proposal = model.propose(changes)
        assert proposal is not None, (number, sources)
        assert space.contains(proposal.point)
        numbers = [v for v in proposal.point.values() if isinstance(v, int | float)]
        value = sum(math.asinh(number) for number in numbers)
        extra: dict[str, Curve] = {name: [(1, -value, None)] for name in others}
        record = TrialRecord(
            proposal.point, proposal.source, "completed", [(1, value, None)], extra
        )
        changes = {str(number): record}
        sources.append(proposal.source + proposal.reason)
        points.append(proposal.point)
    return sources, points


# ------------------------------------------------------------------- names

METRICS = ["metrics/mAP50-95(B)", "f-score", "test", "beta", "acc%", "val loss", "Größe", "it's"]
METRICS += ['"q"', "a<=b", "1st", "lambda", "x**2", "m0", "raymeta_m000", "{x}", "\\d", "a, -b"]


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_may_have_any_name(name: str) -> None:
    settings = SearchSettings(objectives=((name, "min"),), num_sobol=2)
    space = Space((Parameter(name="x", low=0, high=1),))
    sources, points = sources_of_search(space, settings, 4)
    assert sources == ["sobol", "sobol", "bo", "bo"]
    assert min(point["x"] for point in points[2:]) < min(point["x"] for point in points[:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_a_bounded_metric_and_a_second_objective_may_have_any_name(name: str) -> None:
    space = Space((Parameter(name="x", low=0, high=1),))
    settings = SearchSettings(
        objectives=(("gain", "max"), (name, "max")),
        outcome_constraints=(f"{name} >= -0.8", "cost-$ <= 1e3"),
        num_sobol=2,
    )
    assert settings.metrics == ("gain", name, "cost-$")
    sources, _ = sources_of_search(space, settings, 3, (name, "cost-$"))
    assert sources == ["sobol", "sobol", "bo"]


PARAMETERS = ["alpha", "beta", "f-score", "learning rate", "lambda", "E", "2nd", "Größe", "a*b"]
PARAMETERS += ["x <= y", "it's", "raymeta_p1", "m0", "-", "in", "a/b.c", "1e5"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("method", ["bo", "random"])
def test_a_parameter_may_have_any_name_in_constraints_too(name: str, method: Any) -> None:
    parameters = (Parameter(name=name, low=0, high=1), Parameter(name="zeta", low=0, high=1))
    space = Space(parameters, (f"{name} + 2 * zeta <= 1",))
    (constraint,) = space.linear_constraints
    assert constraint.weights == {name: 1, "zeta": 2}
    settings = SearchSettings(objectives=(("loss", "max"),), num_sobol=2, method=method)
    sources, points = sources_of_search(space, settings, 4)
    assert sources == (["sobol"] * 2 + ["bo"] * 2 if method == "bo" else ["random"] * 4)
    assert all(point[name] + 2 * point["zeta"] <= 1 + 1e-6 for point in points)


def test_texts_of_ax_are_given_in_own_names() -> None:
    parameters = tuple(Parameter(name=f"n{i}", low=0, high=1) for i in range(12))
    names = AxSpace(Space(parameters), SINGLE)
    text = f"{names.parameter('n1')}, {names.parameter('n11')}: {names.metrics['loss']}_mean"
    assert names.own_text(text) == "n1, n11: loss_mean"
    assert names.own_text("raymeta_p99 and p1") == "raymeta_p99 and p1"


# ------------------------------------------------------------------- wide ranges


def wide(**limits: Any) -> Parameter:
    return Parameter(name="n", **{"low": 1, "high": BILLION, "integer": True, **limits})


WIDE = {
    "int": [wide()],
    "log": [wide(log=True)],
    "beyond floats": [wide(high=10**18, low=-(10**18))],
    "beyond int64": [wide(high=10**30, log=True)],
    "steps": [wide(low=0, step=5)],
    "log steps": [wide(low=5, step=5, log=True)],
    "real steps": [Parameter(name="n", low=0, high=1, step=1e-9)],
    "just too many": [wide(high=MOST_LISTED + 1)],
    "many small": [Parameter(name=f"n{i}", low=1, high=50, integer=True) for i in range(12)],
    "many choices": [Parameter(name=f"c{i}", choices=tuple("abcd")) for i in range(14)],
    "two": [wide(), Parameter(name="x", low=0, high=1), Parameter(name="c", choices=("a", "b"))],
    "conditional": [
        Parameter(name="c", choices=("a", "b")),
        wide(when=("c", ("a",))),
        Parameter(name="x", low=0, high=1),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bo", "sobol", "random"])
@pytest.mark.parametrize("kind", WIDE)
def test_work_does_not_grow_with_the_size_of_a_range(kind: str, method: Any) -> None:
    settings = SearchSettings(objectives=(("loss", "max"),), num_sobol=3, method=method)
    sources_of_search(Space((Parameter(name="x", low=0, high=1),)), settings, 4)  # imports
    tracemalloc.start()
    try:
        sources, points = sources_of_search(Space(tuple(WIDE[kind])), settings, 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6
    assert sources == (["sobol"] * 3 + ["bo"] * 2 if method == "bo" else [method] * 5)
    assert len({tuple(point.items()) for point in points}) == 5


LIMITED = """
import resource, sys
from pathlib import Path
from ray import tune
from raymeta.search.ax_model import AxModel
from raymeta.search.records import TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.tune_space import tune_space
import torch
torch.set_num_threads(1)
def search(domain, settings):
    space = tune_space({"n": domain, "x": tune.uniform(0, 1)}).space
    model, changes, sources = AxModel(space, settings), {}, []
    for number in range(5):
        proposal = model.propose(changes)
        sources.append(proposal.source)
        curve = [(1, proposal.point["x"], None)]
        changes = {str(number): TrialRecord(proposal.point, proposal.source, "completed", curve)}
    return sources
settings = SearchSettings(objectives=(("loss", "min"),), num_sobol=3)
search(tune.uniform(0, 1), settings)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300_000_000,) * 2)
for domain in (tune.randint(1, 10**7), tune.randint(1, 10**9), tune.lograndint(1, 10**7),
               tune.lograndint(1, 10**15), tune.qrandint(0, 10**9, 2)):
    assert search(domain, settings) == ["sobol"] * 3 + ["bo"] * 2, domain.domain_str
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_wide_ranges_of_tune_are_searched_in_little_memory() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("log", [False, True])
def test_the_best_of_a_wide_range_is_found(log: bool) -> None:
    parameter = wide(high=10**6, log=log)
    best = 10**3 if log else 300_000
    space = Space((parameter,))
    model = AxModel(space, SearchSettings(objectives=(("loss", "min"),), num_sobol=5))
    changes: dict[str, TrialRecord] = {}
    losses = []
    for number in range(15):
        proposal = model.propose(changes)
        assert proposal is not None
        n = proposal.point["n"]
        losses.append(abs(math.log10(n / best)) / 6 if log else abs(n - best) / 1e6)
        changes = {
            str(number): TrialRecord(proposal.point, "bo", "completed", [(1, losses[-1], None)])
        }
    assert min(losses) < 0.01


@pytest.mark.slow
def test_at_the_end_of_a_wide_range_the_model_still_proposes_untried_points() -> None:
    """Several of Ax's real numbers round to the same whole one."""
    settings = SearchSettings(objectives=(("loss", "max"),), num_sobol=3)
    sources, points = sources_of_search(Space((wide(high=5000),)), settings, 9)
    assert sources == ["sobol"] * 3 + ["bo"] * 6
    assert len({point["n"] for point in points}) == 9


def test_small_ranges_are_listed_as_ever() -> None:
    config = AxParameter("p", wide(high=MOST_LISTED)).config
    assert (config.parameter_type, config.bounds) == ("int", (1, MOST_LISTED))


@pytest.mark.slow
def test_rounding_wide_whole_numbers_breaks_no_constraint() -> None:
    parameters = (wide(low=0, high=2000), Parameter(name="k", low=0, high=3000, integer=True))
    space = Space(parameters, ("n + k <= 1500",))
    for method in ("bo", "random"):
        settings = SearchSettings(objectives=(("loss", "max"),), num_sobol=2, method=method)
        _, points = sources_of_search(space, settings, 6)  # each is checked to lie in the space
        assert len({tuple(point.items()) for point in points}) == 6


# ------------------------------------------------------------------- narrow ranges

NARROW = [
    {"low": 1e-8, "high": 1e-5, "log": True},
    {"low": 1e-300, "high": 1e-290, "log": True},
    {"low": 1e-320, "high": 1e-310},
    {"low": 0, "high": 1e-7},
    {"low": -1e-12, "high": 1e-12},
    {"low": 1, "high": 1.000001},
    {"low": 1e-9, "high": 1e-7, "step": 1e-9},
    {"low": 1e-9, "high": 5e-9, "step": 1e-9},
    {"low": -1e300, "high": 1e300},
    {"low": 1e-300, "high": 1e300, "log": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("limits", NARROW, ids=str)
@pytest.mark.parametrize("method", ["bo", "sobol", "random"])
def test_narrow_and_huge_ranges_are_searched(limits: dict[str, Any], method: Any) -> None:
    parameter = Parameter(name="x", **limits)
    settings = SearchSettings(objectives=(("loss", "max"),), num_sobol=3, method=method)
    sources, points = sources_of_search(Space((parameter,)), settings, 5)
    assert sources == (["sobol"] * 3 + ["bo"] * 2 if method == "bo" else [method] * 5)
    assert len({point["x"] for point in points}) == 5


@pytest.mark.slow
def test_a_huge_range_is_searched_beside_a_small_one() -> None:
    space = Space((Parameter(name="x", low=0, high=1), Parameter(name="y", low=-1e300, high=1e300)))
    settings = SearchSettings(objectives=(("loss", "max"),), num_sobol=3)
    sources, _ = sources_of_search(space, settings, 5)
    assert sources == ["sobol"] * 3 + ["bo"] * 2


@pytest.mark.slow
def test_a_narrow_range_may_be_constrained() -> None:
    parameters = (Parameter(name="a", low=0, high=1e-7), Parameter(name="b", low=1, high=2))
    space = Space(parameters, ("1e7 * a + b <= 1.5",))
    for method in ("bo", "sobol", "random"):
        settings = SearchSettings(objectives=(("loss", "max"),), num_sobol=2, method=method)
        sources, points = sources_of_search(space, settings, 4)
        assert all(1e7 * point["a"] + point["b"] <= 1.5 + 1e-6 for point in points)
        assert not [source for source in sources if "fallback" in source]


# ------------------------------------------------------------------- choices

CHOICES: list[tuple[Any, ...]] = [
    (0, 0.5, 1),
    (1e-9, 1e-8, 1e-7),
    ("only",),
    (1, 2),
    (True,),
    tuple(range(MOST_CHOICES)),
    (-5, 10**12),
    (2**53 - 2, 2**53 - 1, 2**53),
    (1.0, 1.0000000000000002, 3.0),
    ("a b", "", "ü", "raymeta_p0"),
]


@pytest.mark.slow
@pytest.mark.parametrize("choices", CHOICES, ids=lambda choices: str(choices)[:30])
def test_choices_come_back_as_they_were_given(choices: tuple[Any, ...]) -> None:
    space = Space((Parameter(name="c", choices=choices), Parameter(name="x", low=0, high=1)))
    settings = SearchSettings(objectives=(("loss", "max"),), num_sobol=3)
    sources, points = sources_of_search(space, settings, 5)
    assert sources == ["sobol"] * 3 + ["bo"] * 2
    for point in points:
        assert any(point["c"] is c or repr(point["c"]) == repr(c) for c in choices)
