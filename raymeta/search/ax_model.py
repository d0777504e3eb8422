"""The Ax side of the search, which runs in a process of its own during a search."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ax.adapter.base import Adapter
from ax.api.client import Client
from ax.core.experiment import Experiment
from ax.exceptions.core import SearchSpaceExhausted
from ax.exceptions.generation_strategy import GenerationStrategyCompleted
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.utils.common.logger import set_ax_logger_levels
from botorch.exceptions.warnings import InputDataWarning
from torch import Tensor

from raymeta.acquisitions import BY_NAME
from raymeta.errors import SearchError
from raymeta.search.ax_parameters import FEASIBLE, AxSpace
from raymeta.search.ax_strategy import (
    ACQUISITION_SEARCH,
    AX_SEEDS,
    QUICK_SEARCH,
    fitted_adapter,
    model_node,
    show_failures,
    strategy_of,
)
from raymeta.search.curves import estimates
from raymeta.search.feasibility import likelier_to_succeed, nearest_allowed, successes
from raymeta.search.gain import gain_bound
from raymeta.search.library_errors import brief, is_raised_here
from raymeta.search.records import Proposal, Source, TrialRecord, noise_known
from raymeta.search.seconds import SecondsModel, known_seconds
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, Space
from raymeta.search.transfer import SourceModel, best_points
from raymeta.search.tried_points import TriedPoints

_LABEL_SEM = 0.05  # of success; inferred, it would explain away single failures
_REFUSED = "refused "  # points known to fail
_MOST_REFUSED = 2  # proposals of the model before a point near the last one is drawn
_AHEAD = "ahead "  # trial_id prefix of proposals not yet issued to a trial
_MANY_AT_ONCE = 16  # candidates, of which each is worth less care, since slots wait for them


class AxModel:
    """An Ax experiment and its generation strategy: Sobol points, then Bayesian optimisation.

    By default the model is a `CategoricalGP` with the reported noise, and the acquisition function
    noisy expected improvement in its log form (Ament et al. 2023), for several objectives that of
    the dominated hypervolume.  A power transform makes values nearly normal (Yeo and Johnson 2000):
    a Gaussian process copes badly with a few huge values.  Records are its only input: `propose`
    updates Ax with the records that changed.
    """

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        earlier: Sequence[TrialRecord] = (),
        why_not: Callable[[Point], str] | None = None,
        sources: Sequence[Sequence[TrialRecord]] = (),
    ) -> None:
        set_ax_logger_levels(logging.ERROR)
        self._space, self._settings, self._why_not = space, settings, why_not
        self.ax_space = AxSpace(space, settings)
        self._tried = TriedPoints(space)
        self._records = {f"earlier {i}": record for i, record in enumerate(earlier)}
        self._open: tuple[int, Point] | None = None  # a proposal not yet issued
        self._acquisition_search = dict(ACQUISITION_SEARCH)  # Ax reads it at each proposal
        self._sources = sources
        self._starts = best_points(sources, settings)
        self._seconds: SecondsModel | None = None  # of the trials known so far
        self._start_over()

    def propose(self, changes: Mapping[str, TrialRecord]) -> Proposal | None:
        """Proposes a point, given all finished and running trials.

        Returns:
            None when every point of a discrete space has been tried.  If a library fails to fit or
            optimise the model: a random point with the source `fallback` and the reason.

        Raises:
            SearchError: all points found are known to fail.
        """
        self.learn(changes)
        proposal = self._propose()
        if self._why_not is None or proposal is None:
            return proposal
        reasons = []
        while reason := self._why_not(proposal.point):
            reasons.append(reason)
            if proposal.source != "bo" or len(reasons) > _MOST_REFUSED:
                break
            # Tell the model that it failed: that moves the next proposal away.
            refused = TrialRecord(proposal.point, proposal.source, "failed", reason=reason)
            self.learn({f"{_REFUSED}{len(self._records)}": refused})
            again = self._propose()
            if again is None:
                return None
            proposal = again
        if not reasons:
            return proposal
        if reason:
            self._discard()
            point = nearest_allowed(
                self._space, proposal.point, self._tried, self._rng, self._why_not
            )
            proposal = replace(proposal, point=point)
        return replace(proposal, passed_over=reasons[0])

    def _propose(self) -> Proposal | None:
        self._seconds = None
        if self._tried.are_all:
            return None
        if self._settings.method == "random":
            return self._draw()
        if len(self._records) < self._settings.num_sobol:
            for point in self._starts:
                if point not in self._tried:
                    return Proposal(point, "earlier")
        try:
            self._refresh_estimates()
            self._refresh_feasibility()
            with warnings.catch_warnings():
                # The power transform standardises by 1/n, and BoTorch checks by 1/(n - 1).
                warnings.simplefilter("ignore", InputDataWarning)
                ((index, values),) = self._client.get_next_trials(max_trials=1).items()
                proposed = self.ax_space.from_ax(values)
                point = self._space.tidied(proposed)
                self._open = (index, point)
                table = self._client.summarize(trial_indices=[index])
                source: Source = "bo" if table["generation_node"].iloc[0] == "MBM" else "sobol"
                gain = self._gain() if source == "bo" else None
        except (SearchSpaceExhausted, GenerationStrategyCompleted) as error:
            return self._draw(reason=brief(error, self.ax_space.own_text))
        except Exception as error:  # four libraries raise errors of any kind when a fit fails
            if is_raised_here(error):
                raise
            self._discard()
            return self._draw("fallback", brief(error, self.ax_space.own_text))
        likelier = self._likelier(point) if source == "bo" else None
        if likelier is not None:
            self._discard()
            point = likelier
        elif point != proposed:
            self._discard()  # tell Ax the rounded point that is tried
            point = self._tried.made_feasible(point)
        if self._tried.is_discrete and point in self._tried:
            self._discard()
            neighbour = self._tried.untried_neighbour(point)
            if neighbour is None:
                return self._draw(reason="Ax proposed a point that was tried before")
            point = neighbour
        return Proposal(point, source, gain=gain)

    def propose_several(self, changes: Mapping[str, TrialRecord], count: int) -> list[Proposal]:
        """Proposes points for several trials at once, each given the ones before.

        Returns:
            Fewer than `count` if the space is exhausted or the model fails; a failure comes last,
            since further proposals would fail too.
        """
        quick = count >= _MANY_AT_ONCE
        self._acquisition_search.update(QUICK_SEARCH if quick else ACQUISITION_SEARCH)
        found: list[Proposal] = []
        while len(found) < count:
            proposal = self.propose(changes)
            if proposal is None:
                break
            found.append(proposal)
            pending = TrialRecord(proposal.point, proposal.source)
            changes = {f"{_AHEAD}{len(found)}": pending} if count > 1 else {}
            if proposal.source == "fallback":
                break
        if count > 1:
            # They may never be tried: do not treat them as pending in later proposals.
            self.learn(
                {
                    f"{_AHEAD}{number}": TrialRecord(proposal.point, proposal.source, "failed")
                    for number, proposal in enumerate(found, 1)
                }
            )
            for number in range(1, len(found) + 1):
                self._tried.forget(self._records.pop(f"{_AHEAD}{number}").point)
                del self._indices[f"{_AHEAD}{number}"]
        return found

    def learn(self, changes: Mapping[str, TrialRecord]) -> None:
        """Updates Ax with changed records; forgets a proposal that was not issued."""
        reopened = False
        for trial_id, record in changes.items():
            before = self._records.get(trial_id)
            reopened |= before is not None and before.status not in ("running", record.status)
            self._records[trial_id] = record
        # Ax neither reopens a trial nor has both known and unknown noise in one metric.
        if reopened or self._noise_known != noise_known(self._records, self._settings.metrics):
            self._start_over()
            return
        for trial_id, record in changes.items():
            self._tell(trial_id, record)
        self._discard()

    def statuses(self) -> dict[str, str]:
        """Ax's own status of every trial, lower case, by Tune's trial_id."""
        if not self._indices:
            return {}
        table = self._client.summarize().set_index("trial_index")["trial_status"]
        return {
            trial_id: str(table.loc[index]).lower() for trial_id, index in self._indices.items()
        }

    def fitted(self) -> tuple[Experiment, Adapter]:
        """Gets Ax's experiment, and its model fitted to all records.

        Raises:
            SearchError: the search has no model (Sobol, random), or a library cannot fit it.
        """
        if (node := model_node(self._new_strategy())) is None:
            raise SearchError(f"method {self._settings.method} has no model")
        experiment = self._client._experiment  # noqa: SLF001
        try:
            self._refresh_estimates()
            node._fit(experiment)  # noqa: SLF001
            return experiment, node.generator_specs[0].fitted_adapter
        except Exception as error:  # the same four libraries
            if is_raised_here(error):
                raise
            raise SearchError(
                f"no model can be fitted to these trials: {brief(error, self.ax_space.own_text)}"
            ) from error

    # ------------------------------------------------------------------- within

    def _start_over(self) -> None:
        """Starts a new Ax experiment with all records."""
        settings, ax_space = self._settings, self.ax_space
        self._client = Client(random_seed=settings.seed % AX_SEEDS)
        self._client.configure_experiment(
            ax_space.parameters, parameter_constraints=ax_space.constraints or None
        )
        self._client.configure_optimization(
            ax_space.objective, outcome_constraints=ax_space.outcome_constraints or None
        )
        self._generation_strategy = self._new_strategy()
        self._client.set_generation_strategy(self._generation_strategy)
        self._is_failing = False  # whether Ax knows of failed trials
        self._told_feasible: set[str] = set()
        self._rng = np.random.default_rng((settings.seed, len(self._records)))
        self._indices: dict[str, int] = {}  # Ax's trial_index by Tune's trial_id
        self._open = None
        self._estimates: dict[str, dict[str, tuple[float, float]]] = {}  # of stopped trials
        self._tried.clear()
        self._noise_known = noise_known(self._records, self._settings.metrics)
        for trial_id, record in self._records.items():
            self._tell(trial_id, record)

    def _new_strategy(self) -> GenerationStrategy:
        return strategy_of(
            self._space,
            self._settings,
            len(self._records),
            self._acquisition_search,
            self._log_seconds(),
            self._source_models() if self._sources else None,
        )

    def _tell(self, trial_id: str, record: TrialRecord) -> None:
        """Brings Ax's trial up to date with a record."""
        index = self._indices.get(trial_id)
        if index is None:
            if self._open is not None and self._open[1] == record.point:
                index, self._open = self._open[0], None
            else:
                index = self._client.attach_trial(self.ax_space.to_ax(record.point))
            self._indices[trial_id] = index
            self._tried.add(record.point)
        elif self._client._experiment.trials[index].status.is_terminal:  # noqa: SLF001
            return
        match record.status:
            case "running":
                pass
            case "completed":
                finals = {m: c[-1][1:] for m, c in record.curves(self._settings.metrics).items()}
                self._client.attach_data(index, self._data(finals))
                self._client.complete_trial(index)
            case "early_stopped":
                # Under a name of its own: the optimised metric gets an estimate.
                seen = {
                    f"{self.ax_space.metrics[m]}_when_stopped": c[-1][1]
                    for m, c in record.curves(self._settings.metrics).items()
                }
                self._client.attach_data(index, seen)
                self._client.mark_trial_early_stopped(index)
            case "failed":
                self._client.mark_trial_failed(index)
            case "abandoned":
                self._client.mark_trial_abandoned(index)

    def _refresh_estimates(self) -> None:
        """Tells Ax the estimated final values of stopped trials, where there are any."""
        if self._settings.curves == "ignore":
            return
        found = estimates(self._records, self._settings.metrics, self._noise_known)
        for trial_id, estimate in found.items():
            if estimate != self._estimates.get(trial_id):
                self._client.attach_data(self._indices[trial_id], self._data(estimate))
                self._estimates[trial_id] = estimate

    def _refresh_feasibility(self) -> None:
        """Tells Ax of failed trials by a bounded metric, from the first failure on.

        The acquisition function multiplies by the probability of feasibility (Gardner et al. 2014),
        here that of a Gaussian process on 0 and 1.
        """
        known = self._successes()
        if not 0 < sum(known.values()) < len(known):
            return
        if (known_as := BY_NAME.get(self._settings.acquisition)) and not known_as.takes_failures:
            return
        if not self._is_failing:
            self._is_failing = True
            bounds = [*self.ax_space.outcome_constraints, self.ax_space.feasibility_constraint]
            self._client.configure_optimization(self.ax_space.objective, outcome_constraints=bounds)
            show_failures(self._generation_strategy, self.ax_space)
        for trial_id, value in known.items():
            if trial_id not in self._told_feasible:
                self._client.attach_data(self._indices[trial_id], {FEASIBLE: (value, _LABEL_SEM)})
                self._told_feasible.add(trial_id)

    def _successes(self) -> dict[str, float]:
        """Maps each trial to 1 if it gave a value, and 0 if it failed."""
        return successes({i: r for i, r in self._records.items() if not i.startswith(_AHEAD)})

    def _likelier(self, point: Point) -> Point | None:
        """Finds a point to replace one that is likely to fail; None if there is none."""
        labels = [(self._records[i].point, value) for i, value in self._successes().items()]
        return likelier_to_succeed(self._space, labels, point, self._tried, self._rng)

    def _gain(self) -> float | None:
        """Computes the model's bound on the remaining gain if the search may end by it."""
        if self._settings.stop_when_gain_below is None:
            return None
        bound = gain_bound(fitted_adapter(self._generation_strategy), self._acquisition_search)
        return bound if math.isfinite(bound) else None

    def _log_seconds(self) -> Callable[[Tensor], Tensor]:
        """Predicts the log duration of points in seconds from all trials known so far."""

        def log_seconds(points: Tensor) -> Tensor:
            if self._seconds is None:
                with torch.enable_grad():
                    self._seconds = self._fitted_seconds()
            return self._seconds(points)

        return log_seconds

    def _fitted_seconds(self) -> SecondsModel:
        known = known_seconds(self._records, self._settings.max_steps)
        points = {i: self.ax_space.to_ax(self._records[i].point) for i in known}
        return SecondsModel(fitted_adapter(self._generation_strategy), known, points)

    def _source_models(self) -> Callable[[], list[SourceModel]]:
        """Gets the models of earlier searches, fitted at first use."""
        found: list[SourceModel] = []

        def models() -> list[SourceModel]:
            for records in self._sources[len(found) :]:
                source = AxModel(self._space, replace(self._settings, method="bo"))
                source.learn({str(number): record for number, record in enumerate(records)})
                found.append(SourceModel(source.fitted()[1].generator.surrogate.model))
            return found

        return models

    def _data(self, values: Mapping[str, tuple[float, float | None]]) -> dict[str, Any]:
        """Converts an observation for Ax, with its standard error if all trials have one."""
        return {
            self.ax_space.metrics[metric]: (mean, sem) if metric in self._noise_known else mean
            for metric, (mean, sem) in values.items()
        }

    def _discard(self) -> None:
        """Marks a point that is not tried as `failed`: Ax treats any other status as pending."""
        if self._open is not None:
            self._client.mark_trial_failed(self._open[0], "was not tried")
            self._open = None

    def _draw(self, source: Source = "random", reason: str = "") -> Proposal | None:
        """Draws a random point; in a discrete space an untried one, or None."""
        point = self._tried.draw_untried(self._rng)
        return None if point is None else Proposal(point, source, reason)
