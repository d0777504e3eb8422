"""The settings of a search: objectives, model, acquisition function, limits."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from raymeta.acquisitions import AUTO, BY_NAME
from raymeta.errors import SearchError, shown
from raymeta.search.constraints import NUMBER, listed
from raymeta.sections import NUM_SEEDS

Mode = Literal["min", "max"]
Model = Literal["auto", "gp", "gp-ensemble", "saas"]
Method = Literal["bo", "sobol", "random"]
CurveUse = Literal["extrapolate", "ignore"]
_ALLOWED = {
    "method": get_args(Method),
    "model": get_args(Model),
    "acquisition": (AUTO, *BY_NAME),
    "curves": get_args(CurveUse),
}

FEWEST_OF_SOURCE = 4  # completed trials of an earlier search that a model of it needs
_BOUND = re.compile(rf"(.*\S)\s*(<=|>=)\s*([+-]?{NUMBER})\s*", re.DOTALL)


def least_completed(num_sobol: int) -> int:
    """The number of completed trials that the first model needs."""
    return max(1, num_sobol // 3)  # early stopping may leave few


def _is_positive(value: object) -> bool:
    """Whether a value is a finite number > 0."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value < math.inf


@dataclass(frozen=True)
class OutcomeBound:
    """A bound on a reported metric, such as `latency <= 0.1`."""

    text: str
    metric: str
    relation: str
    value: float

    @classmethod
    def parse(cls, text: str, metrics: Sequence[str] = ()) -> OutcomeBound:
        """Reads a bound; the metric's name may have any characters.

        Raises:
            SearchError: it is not of this form.
        """
        found = _BOUND.fullmatch(text)
        if found is None or not math.isfinite(float(found[3])):
            raise SearchError(
                f"the outcome constraint '{text}' must be a bound on one metric, such as "
                "'latency <= 0.1' or 'accuracy >= 0.5'"
            )
        written = found[1].strip()
        metric = next((name for name in metrics if name.strip() == written), written)
        return cls(text, metric, found[2], float(found[3]))


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What a search optimises, how it proposes points, and how it reads the trials' results.

    Attributes:
        objectives: each metric to optimise, as trainables report it, with its mode; several for a
            Pareto front.
        outcome_constraints: bounds on reported metrics, such as `latency <= 0.1`; a bound on an
            objective is its worst value of interest (the reference point).
        method: `bo` (Bayesian optimisation), `sobol` (quasi-random) or `random`.
        model: `gp`, `gp-ensemble` (averaged over its hyperparameters), `saas` (sparse axis-aligned
            subspaces), or `auto`: saas from 20 parameters on, otherwise gp.
        acquisition: the acquisition function; `auto` takes noisy expected improvement in its log
            form, or that of the hypervolume.
        num_sobol: quasi-random trials before the model takes over, given points included.
        seed: of the Sobol sequence and of the model's optimisation.
        device: where the model is fitted.
        curves: how the model uses trials that were stopped early: `extrapolate` estimates their
            final values with their uncertainty; `ignore` leaves them out.
        step_metric: the metric in which trainables report their progress.
        max_steps: the budget in `step_metric`; a trial that ends below it was stopped early. With
            None every trial that ends regularly is complete.
        budget_s: seconds after which no new trial starts, over all sessions; None for no limit.
            Tune's own `num_samples` limits the trials beside it: what is reached first ends the
            search.
        stop_when_gain_below: the search ends when the model's bound on what is still to gain (see
            `raymeta.search.gain`) falls below this, in the units of the objective; None to make all
            trials.
        sem_suffix: trainables report the standard error of metric `m` as `m` + this; where it is
            missing, Ax infers the noise.
    """

    objectives: tuple[tuple[str, Mode], ...] = ()
    outcome_constraints: tuple[str, ...] = ()
    method: Method = "bo"
    model: Model = "auto"
    acquisition: str = AUTO
    num_sobol: int = 5
    seed: int = 0
    device: str = "cpu"
    curves: CurveUse = "extrapolate"
    step_metric: str = "training_iteration"
    max_steps: int | None = None
    budget_s: float | None = None
    stop_when_gain_below: float | None = None
    sem_suffix: str = "_sem"

    def __post_init__(self) -> None:
        """Checks every setting.

        Raises:
            SearchError: a setting has no such value, or two settings contradict each other.
        """
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise SearchError(
                    f"{name} must be one of {', '.join(allowed)}, but got {getattr(self, name)!r}"
                )
        listed("outcome_constraints", self.outcome_constraints)
        for name in ("step_metric", "sem_suffix"):
            if not isinstance(getattr(self, name), str):
                raise SearchError(f"{name} must be a text, but got {getattr(self, name)!r}")
        is_whole = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if not is_whole or not 0 <= self.seed < NUM_SEEDS:
            raise SearchError(
                f"seed must be a whole number >= 0 and < 2**64, but got {shown(self.seed)}"
            )
        for name in ("num_sobol", "max_steps"):
            number = getattr(self, name)
            is_whole = isinstance(number, int) and not isinstance(number, bool) and number > 0
            if not is_whole and (name, number) != ("max_steps", None):
                raise SearchError(f"{name} must be a whole number > 0, but got {number!r}")
        for name in ("budget_s", "stop_when_gain_below"):
            limit = getattr(self, name)
            if limit is not None and not _is_positive(limit):
                raise SearchError(f"{name} must be a number > 0, but got {limit!r}")
        if self.stop_when_gain_below is not None and self.method != "bo":
            raise SearchError(
                f"stop_when_gain_below needs the model of method bo, but method is {self.method}; "
                "leave one of them out"
            )
        if self.stop_when_gain_below is not None and len(self.objectives) > 1:
            raise SearchError(
                "stop_when_gain_below is for one objective, but there are "
                f"{len(self.objectives)}; leave it out, or limit the time by budget_s"
            )
        names = [name for name, _ in self.objectives]
        for name in names:
            if names.count(name) > 1:
                raise SearchError(f"the metric {name} is twice among the objectives")
        acquisition = BY_NAME.get(self.acquisition)
        if (
            self.objectives
            and acquisition is not None
            and acquisition.is_multi_objective == self.is_single
        ):
            raise SearchError(
                f"acquisition {self.acquisition} is for "
                f"{'several objectives' if acquisition.is_multi_objective else 'one objective'}, "
                f"but there "
                f"{'is one' if self.is_single else f'are {len(self.objectives)}'}; 'auto' takes "
                "the right one"
            )

        modes = dict(self.objectives)
        for bound in self.outcome_bounds:
            mode = modes.get(bound.metric)
            if mode is not None and self.is_single:
                raise SearchError(
                    f"the outcome constraint '{bound.text}' bounds the only objective; give bounds "
                    "on other metrics, or several objectives"
                )
            if mode is not None and bound.relation != (">=" if mode == "max" else "<="):
                raise SearchError(
                    f"the outcome constraint '{bound.text}' must be the worst value of interest: "
                    f"write '>=' for an objective to be maximised and '<=' for one to be minimised"
                )

    @property
    def is_single(self) -> bool:
        """Whether there is one objective."""
        return len(self.objectives) == 1

    @property
    def outcome_bounds(self) -> tuple[OutcomeBound, ...]:
        """The outcome constraints, read."""
        names = [name for name, _ in self.objectives]
        return tuple(OutcomeBound.parse(text, names) for text in self.outcome_constraints)

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics in use: the objectives, then those that are only bounded."""
        names = [name for name, _ in self.objectives]
        return tuple(dict.fromkeys([*names, *(bound.metric for bound in self.outcome_bounds)]))
