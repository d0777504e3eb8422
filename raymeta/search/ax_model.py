"""The Ax side of the search; while trials run, it does so in a process of its own."""

from __future__ import annotations

import logging
import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ax.adapter.base import Adapter
from ax.adapter.torch import TorchAdapter
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
from raymeta.search.ax_strategy import model_node, show_failures, strategy_of
from raymeta.search.curves import final_values
from raymeta.search.feasibility import likelier_to_succeed, successes
from raymeta.search.gain import gain_bound
from raymeta.search.records import Proposal, Source, TrialRecord
from raymeta.search.seconds import SecondsModel, seconds_of
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, Space
from raymeta.search.tried_points import TriedPoints

_LABEL_SEM = 0.05  # of success and failure; inferred, noise would explain single failures away
_AHEAD = "ahead "  # of proposals that no trial has taken up yet
_LONGEST_REASON = 300  # characters of a library's message
# More starts than these found no better points, only later.
_ACQUISITION_SEARCH = {"num_restarts": 4, "raw_samples": 256}
# Of many candidates at once each is worth less care, and slots wait for them; with dozens of
# pending points every start takes long.
_MANY_AT_ONCE = 16
_QUICK_SEARCH = {"num_restarts": 1, "raw_samples": 64}


class AxModel:
    """An Ax experiment and its generation strategy: Sobol points, then Bayesian optimisation.

    By default the model is a `CategoricalGP` with the reported noise, and the acquisition function
    noisy expected improvement in its log form (Ament et al. 2023), for several objectives that of
    the dominated hypervolume.  Values are made as normal as a power transform can make them (Yeo
    and Johnson 2000): a Gaussian process takes a few huge values badly.  All that it knows it is
    told as records: `propose` brings Ax up to date with those that have changed.
    """

    def __init__(
        self, space: Space, settings: SearchSettings, earlier: Sequence[TrialRecord] = ()
    ) -> None:
        set_ax_logger_levels(logging.ERROR)
        self._space, self._settings = space, settings
        self.ax_space = AxSpace(space, settings)
        self._tried = TriedPoints(space)
        self._records = {f"earlier {i}": record for i, record in enumerate(earlier)}
        self._open: tuple[int, Point] | None = None  # a proposal, until it is taken up
        self._acquisition_search = dict(_ACQUISITION_SEARCH)  # Ax reads it at each proposal
        self._seconds: SecondsModel | None = None  # of the trials known by now
        self._start_over()

    # ------------------------------------------------------------------- the searcher's calls

    def propose(self, changes: Mapping[str, TrialRecord]) -> Proposal | None:
        """Proposes a point, given all finished and running trials.

        Returns:
            None when every point of a discrete space has been tried.  Where a library fails to fit
            or optimise the model, a random point whose source is `fallback`, with the reason.
        """
        self.learn(changes)
        self._seconds = None
        if self._tried.are_all:
            return None
        if self._settings.method == "random":
            return self._draw()
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
            return self._draw(reason=self._brief(error))
        except Exception as error:  # four libraries raise whatever they like when a fit fails
            if _is_raised_here(error):
                raise
            self._discard()
            return self._draw("fallback", self._brief(error))
        likelier = self._likelier(point) if source == "bo" else None
        if likelier is not None:
            self._discard()
            point = likelier
        elif point != proposed:
            self._discard()  # Ax is told of the point that is tried, not of the one before rounding
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
            Fewer than `count` when the space is exhausted or the model fails: the failure is the
            last of them, since the rest would fail alike.
        """
        quick = count >= _MANY_AT_ONCE
        self._acquisition_search.update(_QUICK_SEARCH if quick else _ACQUISITION_SEARCH)
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
            # Nobody knows whether they will be tried: to what comes next, they are not pending.
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
        """Takes up what has changed; a proposal that no trial has taken up is forgotten."""
        reopened = False
        for trial_id, record in changes.items():
            before = self._records.get(trial_id)
            reopened |= before is not None and before.status not in ("running", record.status)
            self._records[trial_id] = record
        # Ax neither reopens a trial nor has both known and unknown noise in one metric.
        if reopened or self._noise_known != self._knows_noise():
            self._start_over()
            return
        for trial_id, record in changes.items():
            self._tell(trial_id, record)
        self._discard()

    def statuses(self) -> dict[str, str]:
        """Ax's own word on every trial, lower case, by Tune's trial_id."""
        if not self._indices:
            return {}
        table = self._client.summarize().set_index("trial_index")["trial_status"]
        return {
            trial_id: str(table.loc[index]).lower() for trial_id, index in self._indices.items()
        }

    def fitted(self) -> tuple[Experiment, Adapter]:
        """Ax's experiment, and its model fitted to all that is known.

        Raises:
            SearchError: there is no model (Sobol, random), or a library cannot fit it.
        """
        node = model_node(self._new_strategy())
        if node is None:
            raise SearchError(f"method {self._settings.method} has no model")
        experiment = self._client._experiment  # noqa: SLF001
        try:
            self._refresh_estimates()
            node._fit(experiment)  # noqa: SLF001
            return experiment, node.generator_specs[0].fitted_adapter
        except Exception as error:  # as in `propose`
            if _is_raised_here(error):
                raise
            raise SearchError(
                f"no model can be fitted to these trials: {self._brief(error)}"
            ) from error

    # ------------------------------------------------------------------- within

    def _start_over(self) -> None:
        """A new Ax experiment with all records."""
        settings, ax_space = self._settings, self.ax_space
        self._client = Client(random_seed=settings.seed)
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
        self._noise_known = self._knows_noise()
        for trial_id, record in self._records.items():
            self._tell(trial_id, record)

    def _new_strategy(self) -> GenerationStrategy:
        return strategy_of(
            self._space,
            self._settings,
            len(self._records),
            self._acquisition_search,
            self._log_seconds(),
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
                finals = {m: c[-1][1:] for m, c in self._curves(record).items()}
                self._client.attach_data(index, self._data(finals))
                self._client.complete_trial(index)
            case "early_stopped":
                # As what it is, beside the metric that is optimised: that one gets an estimate.
                seen = {
                    f"{self.ax_space.metrics[m]}_when_stopped": c[-1][1]
                    for m, c in self._curves(record).items()
                }
                self._client.attach_data(index, seen)
                self._client.mark_trial_early_stopped(index)
            case "failed":
                self._client.mark_trial_failed(index)
            case "abandoned":
                self._client.mark_trial_abandoned(index)

    def _refresh_estimates(self) -> None:
        """Tells Ax what stopped trials would have come to, as far as the others show it by now."""
        if self._settings.curves == "ignore":
            return
        stopped = [i for i, record in self._records.items() if record.status == "early_stopped"]
        if not stopped:
            return
        finished = [i for i, record in self._records.items() if record.status == "completed"]
        by_metric = {}
        for number, metric in enumerate(self._settings.metrics):
            curves = {i: r.curve_of(number, metric) for i, r in self._records.items()}
            found = final_values(curves, finished, stopped)
            if metric not in self._noise_known:
                # Without noise of its own, an estimate must not be vaguer than the differences
                # between trials.
                ends = [curves[i][-1][1] for i in finished]
                spread = float(np.std(ends)) if len(ends) > 1 else 0.0
                found = {i: (mean, std) for i, (mean, std) in found.items() if std <= spread}
            by_metric[metric] = found
        for trial_id in stopped:
            if all(trial_id in found for found in by_metric.values()):
                estimate = {metric: found[trial_id] for metric, found in by_metric.items()}
                if estimate != self._estimates.get(trial_id):
                    self._client.attach_data(self._indices[trial_id], self._data(estimate))
                    self._estimates[trial_id] = estimate

    def _refresh_feasibility(self) -> None:
        """Tells Ax where trials have failed, as a bounded metric; nothing before the first failure.

        The acquisition function multiplies by the probability of feasibility (Gardner et al. 2014),
        here that of a Gaussian process on 0 and 1.
        """
        known = self._successes()
        if not 0 < sum(known.values()) < len(known):
            return
        acquisition = BY_NAME.get(self._settings.acquisition)
        if acquisition is not None and not acquisition.takes_failures:
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
        """By trial, 1 where it gave a value and 0 where it failed."""
        return successes({i: r for i, r in self._records.items() if not i.startswith(_AHEAD)})

    def _likelier(self, point: Point) -> Point | None:
        """A point to try in place of one that is likely to fail; None where there is none."""
        labels = [(self._records[i].point, value) for i, value in self._successes().items()]
        return likelier_to_succeed(self._space, labels, point, self._tried, self._rng)

    def _gain(self) -> float | None:
        """The model's bound on what is still to gain, where the search may end by it."""
        if self._settings.stop_when_gain_below is None:
            return None
        bound = gain_bound(self._adapter(), self._acquisition_search)
        return bound if math.isfinite(bound) else None

    def _log_seconds(self) -> Callable[[Tensor], Tensor]:
        """The expected logarithms of the seconds of points, from all trials known by then."""

        def log_seconds(points: Tensor) -> Tensor:
            if self._seconds is None:
                with torch.enable_grad():
                    self._seconds = self._fitted_seconds()
            return self._seconds(points)

        return log_seconds

    def _fitted_seconds(self) -> SecondsModel:
        known = {
            trial_id: seconds
            for trial_id, record in self._records.items()
            if (seconds := seconds_of(record, self._settings.max_steps)) is not None
        }
        points = {
            trial_id: self.ax_space.to_ax(self._records[trial_id].point) for trial_id in known
        }
        return SecondsModel(self._adapter(), known, points)

    def _adapter(self) -> TorchAdapter:
        """Ax's model, as it was last fitted."""
        node = model_node(self._generation_strategy)
        assert node is not None
        adapter = node.generator_specs[0].fitted_adapter
        assert isinstance(adapter, TorchAdapter)
        return adapter

    def _curves(self, record: TrialRecord) -> dict[str, list[tuple[int, float, float | None]]]:
        return {m: record.curve_of(n, m) for n, m in enumerate(self._settings.metrics)}

    def _data(self, values: Mapping[str, tuple[float, float | None]]) -> dict[str, Any]:
        """As Ax takes it: with the standard error where all trials have one."""
        return {
            self.ax_space.metrics[metric]: (mean, sem) if metric in self._noise_known else mean
            for metric, (mean, sem) in values.items()
        }

    def _knows_noise(self) -> set[str]:
        """The metrics whose standard error every completed trial has reported."""
        completed = [r for r in self._records.values() if r.status == "completed"]
        return {
            metric
            for number, metric in enumerate(self._settings.metrics)
            if completed and all(r.curve_of(number, metric)[-1][2] is not None for r in completed)
        }

    def _discard(self) -> None:
        """A point that nobody tries is not pending: of Ax's endings, `failed` alone says so."""
        if self._open is not None:
            self._client.mark_trial_failed(self._open[0], "was not tried")
            self._open = None

    def _draw(self, source: Source = "random", reason: str = "") -> Proposal | None:
        """Draws a random point; from a discrete space an untried one, None if there is none."""
        point = self._tried.draw_untried(self._rng)
        return None if point is None else Proposal(point, source, reason)

    def _brief(self, error: BaseException) -> str:
        """The kind of an error and the start of its message, on one line and in our names."""
        text = self.ax_space.own_text(" ".join(f"{type(error).__name__}: {error}".split()))
        return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"


def _is_raised_here(error: BaseException) -> bool:
    """Whether raymeta's own code raised it: then it is a bug, not a fit that failed."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("raymeta.")
