"""A Ray Tune searcher over Ax that never fits a model on Tune's event loop.

Ax lives in an actor.  `suggest` returns a candidate that the actor has prepared, or None, upon
which Tune asks again.  A question to the actor carries the records that have changed since the last
one; the searcher's records are the whole state, so a lost actor, and a search restored from disk,
are told all of them anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ray
from ray.exceptions import RayError, RayTaskError
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search import Searcher

from raymeta.errors import SearchError
from raymeta.search.records import Curve, Source, Status, TrialRecord
from raymeta.search.saved import correct_count, read_state, tune_trials, write_state
from raymeta.search.settings import (
    Acquisition,
    CurveUse,
    Method,
    Mode,
    Model,
    SearchSettings,
    least_completed,
)
from raymeta.search.space import Parameter, Point, Space
from raymeta.search.tune_space import joined, nested, tune_space

# With few slots, a free one waits for a candidate that knows of the latest results as long as this
# share of a trial, divided by the number of slots.  Where the model takes longer, candidates are
# prepared ahead, and may be a result behind.
PATIENCE = 0.25
# With more slots than this, one result more matters little, and none waits: a stock of as many
# candidates is kept.  Of actors that wait together, Tune keeps one and ends the others.
FEW_SLOTS = 3
MOST_STOCK = 64  # they come together, so that more of them would be of an older model
_MOST_LOSSES = 3  # of the actor, before the search gives up
_SMOOTHING = 0.3  # weight of the latest duration in the running means


class _AxProcess:
    """Runs an `AxModel` in a Ray actor; Ax is imported there and nowhere else."""

    def __init__(self, *args: Any) -> None:
        self._args = args
        self._model: Any = None

    def call(self, method: str, *args: Any) -> Any:
        # Not in the constructor: what fails there looks like a lost actor, not like an error.
        if self._model is None:
            import torch  # noqa: PLC0415

            from raymeta.search.ax_model import AxModel  # noqa: PLC0415  (seconds to import)

            # On busy cores a second thread makes a fit many times slower, not faster.
            torch.set_num_threads(1)
            self._model = AxModel(*self._args)
        return getattr(self._model, method)(*args)


@dataclass
class _Candidate:
    """A point to try.

    When it was asked for, `news` trials had ended and `handed` candidates had been handed out.
    """

    point: Point
    source: Source
    news: int
    handed: int


class AxSearcher(Searcher):
    """Bayesian optimisation of any Tune trainable.

    Args:
        space: the search space: ours, a list of parameters, or a `param_space` of Ray Tune; None
            for the one that the Tuner is given.
        metric: what to optimise, as trainables report it; several for a Pareto front.
        mode: `min` or `max`, one for all or one for each.
        constraints: linear ones between parameters, such as `x + 2 * y <= 3`.
        outcome_constraints: bounds on reported metrics, such as `latency <= 0.1`; one on an
            objective is the worst value of it that is of interest (the reference point).
        sem_suffix: trainables report the standard error of metric `m` as `m` + this; where it is
            missing, Ax infers the noise.
        step_metric: what trainables report as their progress.
        max_steps: the budget in `step_metric`; a trial that ends below it was stopped early.  None
            takes every regular end for complete.
        curves: what becomes of trials that were stopped early: `extrapolate` estimates what they
            would have come to, with its uncertainty; `ignore` leaves their values out.
        method: `bo`, `sobol` (quasi-random) or `random`.
        model: `gp`, `saas` (sparse axis-aligned subspaces), or `auto`: saas from 20 parameters on.
        acquisition: by name; `auto` takes noisy expected improvement in its log form, or that of
            the hypervolume.
        num_sobol: quasi-random trials before the model takes over, given points included.
        seed: of the Sobol sequence and of the model's optimisation.
        device: where the model is fitted.
        points_to_evaluate: points to try first.
        earlier: trials of an earlier search, to learn from; those outside the space are left out.
    """

    def __init__(
        self,
        space: Space | Sequence[Parameter] | Mapping[str, Any] | None = None,
        *,
        metric: str | Sequence[str] | None = None,
        mode: Mode | Sequence[Mode] | None = None,
        constraints: Sequence[str] = (),
        outcome_constraints: Sequence[str] = (),
        sem_suffix: str = "_sem",
        step_metric: str = TRAINING_ITERATION,
        max_steps: int | None = None,
        curves: CurveUse = "extrapolate",
        method: Method = "bo",
        model: Model = "auto",
        acquisition: Acquisition = "auto",
        num_sobol: int = 5,
        seed: int = 0,
        device: str = "cpu",
        points_to_evaluate: Sequence[Mapping[str, Any]] = (),
        earlier: Sequence[TrialRecord] = (),
    ) -> None:
        metrics = [metric] if isinstance(metric, str) else list(metric or [])
        super().__init__()
        self._metrics, self._modes = metrics, mode
        self._settings = {
            "outcome_constraints": tuple(outcome_constraints),
            "method": method,
            "model": model,
            "acquisition": acquisition,
            "num_sobol": num_sobol,
            "seed": seed,
            "device": device,
            "curves": curves,
        }
        self._constraints = tuple(constraints)
        self._sem_suffix = sem_suffix
        self._step_metric = step_metric
        self._max_steps = max_steps
        self._points_to_evaluate = [dict(point) for point in points_to_evaluate]
        self._earlier = list(earlier)
        self._space: Space | None = None
        self._constants: dict[str, Any] = {}
        self._from_tune = False
        if space is not None:
            self._take_space(space)
        self.settings = SearchSettings(objectives=())
        if metrics and mode is not None:
            self._take_objectives()
        self.records: dict[str, TrialRecord] = {}  # by Tune's trial_id, in order of suggestion
        self._max_concurrent: int | None = None
        self._begin_session()

    def _begin_session(self) -> None:
        """Sets what means nothing in another process: handles, times, and what Ax has been told."""
        self._actor: Any = None
        self._pending: Any = None  # the candidate being prepared
        self._asked_at, self._asked_news = 0.0, 0  # of it
        self._asked_handed = 0
        self._handed = 0  # candidates handed out
        self._slots = 1  # the most trials that ran at once
        self._candidate: _Candidate | None = None  # one that is ready
        self._stock: list[_Candidate] = []  # for slots that would wait too long for a newer one
        self._waiting_since: float | None = None  # for a better one
        self._is_finished = False
        self._losses = 0  # of the actor, in a row
        self._unsent = set(self.records)  # trials of which Ax does not know the latest
        self._news = 0  # trials that have ended
        self._started: dict[str, float] = {}  # when running trials began
        self._trial_seconds: float | None = None  # running means
        self._model_seconds: float | None = None

    # ------------------------------------------------------------------- Tune's calls, in order

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **_: Any
    ) -> bool:
        """Takes from the Tuner what the constructor was not given."""
        if metric is not None and not self._metrics:
            self._metrics = [metric]
        if mode is not None and self._modes is None:
            self._modes = mode  # type: ignore[assignment]
        if self._metrics and self._modes is not None and not self.settings.objectives:
            self._take_objectives()
        if self._space is None and config:
            self._take_space(config)
        return bool(self._space is not None and self.settings.objectives)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Limits running trials here: Tune's own limiter keeps back the ends of resumed ones."""
        self._max_concurrent = max_concurrent
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A point to try, None while one is being prepared, FINISHED when all have been tried."""
        if self._space is None or not self.settings.objectives:
            raise SearchError(
                "AxSearcher needs a search space, a metric and a mode, from its own arguments or "
                "from the Tuner's param_space and TuneConfig"
            )
        self._collect()
        running = sum(record.status == "running" for record in self.records.values())
        if self._max_concurrent is not None and running >= self._max_concurrent:
            return None
        if self._points_to_evaluate:
            point: Point = self._points_to_evaluate.pop(0)
            return self._hand_out(trial_id, _Candidate(point, "given", self._news, self._handed))
        if self._is_finished:
            return Searcher.FINISHED
        candidate = self._chosen()
        if candidate is None:
            self._ask_for_candidate()
            return None
        return self._hand_out(trial_id, candidate)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes up an intermediate result."""
        record = self._record_of_a_running_trial(trial_id, result)
        if record is not None:
            self._observe(trial_id, record, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends a trial as what it was: completed, early-stopped, failed, or abandoned if NaN."""
        record = self._record_of_a_running_trial(trial_id, result)
        if record is None:
            return
        if result is not None and not error:
            self._observe(trial_id, record, result)
        record.status = self._final_status(record, result, error)
        self._unsent.add(trial_id)
        self._news += 1
        began = self._started.pop(trial_id, None)
        if began is not None:
            self._trial_seconds = _mean(self._trial_seconds, time.monotonic() - began)
        if self._actor is not None and not self._is_finished:
            self._ask_for_candidate()  # a slot is free now, or soon will be

    # ------------------------------------------------------------------- state

    def save(self, checkpoint_path: str) -> None:
        """Writes the records as JSON."""
        write_state(Path(checkpoint_path), self._points_to_evaluate, self.records)

    def restore(self, checkpoint_path: str) -> None:
        """Reads what `save` wrote, and goes by Tune's own state beside it; Ax relearns it all.

        Tune copies its files one by one, in no certain order.  After a kill in between, ours may
        hold a trial that Tune does not know and will never begin, or may not have heard of an end
        that Tune knows; and Tune's count of the trials may be one off.
        """
        path = Path(checkpoint_path)
        self._points_to_evaluate, self.records = read_state(path)
        self._begin_session()
        trials = tune_trials(path.parent)
        if trials is None:
            return
        correct_count(self, len(trials))
        for trial_id in [i for i, r in self.records.items() if r.status == "running"]:
            if trial_id not in trials:
                del self.records[trial_id]
        for trial_id, (status, last_result) in trials.items():
            record = self.records.get(trial_id)
            if status in ("TERMINATED", "ERROR") and (record is None or record.status == "running"):
                self.on_trial_complete(trial_id, last_result, error=status == "ERROR")
        self._unsent = set(self.records)

    def statuses(self) -> dict[str, str]:
        """Ax's own word on every trial, by Tune's trial_id; waits for Ax."""
        self._ask("learn", self._changes())
        statuses: dict[str, str] = ray.get(self._ask("statuses"))
        return {trial_id: word for trial_id, word in statuses.items() if trial_id in self.records}

    def __getstate__(self) -> dict[str, Any]:
        """Without the handles, which cannot be pickled."""
        return self.__dict__ | {"_actor": None, "_pending": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In another process, or by a later version with more to remember."""
        self.__dict__.update(state)
        self._begin_session()

    # ------------------------------------------------------------------- candidates

    def _hand_out(self, trial_id: str, candidate: _Candidate) -> dict[str, Any]:
        self.records[trial_id] = TrialRecord(dict(candidate.point), candidate.source)
        self._unsent.add(trial_id)
        self._started[trial_id] = time.monotonic()
        self._waiting_since = None
        self._handed += 1
        self._slots = max(self._slots, len(self._started))
        if self._prepares_ahead():
            self._ask_for_candidate()
        point = {**self._constants, **candidate.point}
        return nested(point) if self._from_tune else point

    def _prepares_ahead(self) -> bool:
        """Whether the next candidate is worth preparing before the results of running trials."""
        assert self._space is not None
        if not self._space.parameters or self._points_to_evaluate:
            return False
        if self.settings.method != "bo" or len(self.records) < self.settings.num_sobol:
            return True  # it depends on no result
        return self._slots > FEW_SLOTS or self._model_takes_long()

    def _has_model(self) -> bool:
        """Whether Ax is past its quasi-random points."""
        completed = sum(record.status == "completed" for record in self.records.values())
        num_sobol = self.settings.num_sobol
        enough = len(self.records) >= num_sobol and completed >= least_completed(num_sobol)
        return self.settings.method == "bo" and enough

    def _model_takes_long(self) -> bool:
        return self._model_seconds is not None and self._model_seconds > self._patience()

    def _patience(self) -> float:
        """How many seconds a free slot waits."""
        return PATIENCE / self._slots * (self._trial_seconds or 0.0)

    def _chosen(self) -> _Candidate | None:
        """The candidate for a free slot; None if it is to wait."""
        candidate = self._candidate
        if candidate is not None and self._is_good_enough(candidate):
            self._candidate = None
            if self._stock and self._stock[0].handed != candidate.handed:
                del self._stock[0]  # in its place stands the newer one
            return candidate
        tried = [record.point for record in self.records.values()] if self._stock else []
        self._stock = [stocked for stocked in self._stock if stocked.point not in tried]
        return self._stock.pop(0) if self._stock else None

    def _is_good_enough(self, candidate: _Candidate) -> bool:
        """Whether to try it, though a newer one might know of more results."""
        if not self._is_behind(candidate):
            return True
        if self._slots > FEW_SLOTS or self._model_takes_long():
            return True
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        return time.monotonic() - self._waiting_since > self._patience()

    def _is_behind(self, candidate: _Candidate) -> bool:
        """Whether a newer one would know of more; before there is a model, none does."""
        return candidate.news < self._news and self._has_model()

    def _is_stock_low(self) -> bool:
        """Whether to renew it; half of it is left for the time that this takes."""
        if len(self._stock) <= self._full_stock() // 2:
            return True
        first = self._stock[0]
        is_guess = first.source != "bo" and self._is_behind(first)
        return is_guess or self._news - first.news >= self._slots

    def _full_stock(self) -> int:
        """How many candidates it holds when it is full."""
        return min(self._slots, MOST_STOCK)

    def _ask_for_candidate(self) -> None:
        if self._pending is not None or self._is_finished:
            return
        is_low = self._slots > FEW_SLOTS and self._is_stock_low()
        is_ready = self._candidate is not None and not self._is_behind(self._candidate)
        is_answered = (self._asked_news, self._asked_handed) == (self._news, self._handed)
        if is_ready and (is_answered or not is_low):
            return
        count = self._full_stock() if is_low else 1
        self._asked_at, self._asked_news = time.monotonic(), self._news
        self._asked_handed = self._handed
        self._pending = self._ask("propose_several", self._changes(), count)

    def _collect(self) -> None:
        """Takes up the candidates that have been prepared, if they have."""
        if self._pending is None:
            return
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready:
            return
        future, self._pending = self._pending, None
        try:
            proposals = ray.get(future)
        except RayTaskError as error:
            raise SearchError(f"Ax cannot go on with this search: {error.cause}") from error
        except RayError as error:  # its process, or its node, is gone
            self._forget_ax()
            self._losses += 1
            if self._losses > _MOST_LOSSES:
                raise SearchError(f"Ax's process was lost {self._losses} times: {error}") from error
            return
        self._losses = 0
        if not proposals:
            self._is_finished = True
            return
        when = self._asked_news, self._asked_handed
        found = [_Candidate(point, source, *when) for point, source in proposals]
        if found[0].source == "bo":
            took = (time.monotonic() - self._asked_at) / len(found)
            self._model_seconds = _mean(self._model_seconds, took)
        # They know nothing of those handed out meanwhile, which stand where the first would stand.
        missed = self._handed - self._asked_handed
        recent = (
            [record.point for record in list(self.records.values())[-missed:]] if missed else []
        )
        others = [candidate for candidate in found if candidate.point not in recent]
        found = others[max(0, missed - (len(found) - len(others))) :]
        if not found:
            self._ask_for_candidate()
            return
        self._candidate = found[0]
        self._stock = found[1:] or self._stock
        if self._prepares_ahead():
            self._ask_for_candidate()

    # ------------------------------------------------------------------- records

    def _record_of_a_running_trial(
        self, trial_id: str, result: Mapping[str, Any] | None
    ) -> TrialRecord | None:
        """None if the trial is unknown or over.

        A failed trial that Tune has news of runs again: `resume_errored` goes on with it.  One that
        Tune knows and we do not was begun just before a crash, our state being a moment older.
        """
        record = self.records.get(trial_id)
        config = (result or {}).get("config")
        if record is None and isinstance(config, Mapping) and self._space is not None:
            names = {parameter.name for parameter in self._space.parameters}
            values = joined(config) if self._from_tune else dict(config)
            point = {name: value for name, value in values.items() if name in names}
            if self._space.contains(point):
                record = self.records[trial_id] = TrialRecord(point, "given")
                self._unsent.add(trial_id)
        if record is not None and record.status == "failed":
            record.status = "running"
            self._unsent.add(trial_id)
        return record if record is not None and record.status == "running" else None

    def _observe(self, trial_id: str, record: TrialRecord, result: dict[str, Any]) -> None:
        result = _plain_numbers(result)
        step = result.get(self._step_metric)
        values = [result.get(metric) for metric in self.settings.metrics]
        if not _is_finite(step) or not all(_is_finite(value) for value in values):
            return
        if record.curve and step <= record.curve[-1][0]:
            return  # told before: Tune's last result, or a retry on its way back
        for number, metric in enumerate(self.settings.metrics):
            sem = result.get(metric + self._sem_suffix)
            mean = float(result[metric])
            curve: Curve = record.curve if number == 0 else record.others.setdefault(metric, [])
            curve.append((int(step), mean, float(sem) if _is_finite(sem) else None))
        self._unsent.add(trial_id)

    def _final_status(
        self, record: TrialRecord, result: dict[str, Any] | None, error: bool
    ) -> Status:
        if error:
            return "failed"
        metrics = self.settings.metrics
        result = None if result is None else _plain_numbers(result)
        if result is None or not all(_is_finite(result.get(metric)) for metric in metrics):
            return "abandoned"
        steps = result.get(self._step_metric)
        if self._max_steps is not None and (not _is_finite(steps) or steps < self._max_steps):
            return "early_stopped" if record.curve else "abandoned"
        return "completed" if record.curve else "abandoned"

    # ------------------------------------------------------------------- Ax and settings

    def _changes(self) -> dict[str, TrialRecord]:
        """The records that Ax has not seen as they are now."""
        changes = {i: self.records[i] for i in self.records if i in self._unsent}
        self._unsent.clear()
        return changes

    def _ask(self, method: str, *args: Any) -> Any:
        """Sends Ax a question; the answer as a Ray reference.  Starts the actor if need be."""
        if self._actor is None:
            assert self._space is not None
            earlier = [r for r in self._earlier if r.curve and self._space.contains(r.point)]
            self._actor = (
                ray.remote(_AxProcess)
                .options(num_cpus=0)
                .remote(self._space, self.settings, earlier)
            )
        return self._actor.call.remote(method, *args)

    def _forget_ax(self) -> None:
        """As before the first question: Ax is told everything anew at the next one."""
        self._actor = self._pending = self._candidate = self._waiting_since = None
        self._stock = []
        self._unsent = set(self.records)

    def _take_space(self, space: Space | Sequence[Parameter] | Mapping[str, Any]) -> None:
        if isinstance(space, Space):
            self._space = space
        elif isinstance(space, Mapping):
            self._space, self._constants = tune_space(space, self._constraints)
            self._from_tune = True
            self._points_to_evaluate = [joined(point) for point in self._points_to_evaluate]
        else:
            self._space = Space(tuple(space), self._constraints)
        for point in self._points_to_evaluate:
            point |= {
                k: v.item() for k, v in point.items() if hasattr(v, "item")
            }  # numpy's scalars
            if not self._space.contains(point):
                raise SearchError(
                    f"points_to_evaluate: {point} is no point of the search space, which has "
                    f"{', '.join(p.name for p in self._space.parameters)}"
                )

    def _take_objectives(self) -> None:
        modes = self._modes
        listed = [modes] * len(self._metrics) if isinstance(modes, str) else list(modes or [])
        if len(listed) != len(self._metrics) or not set(listed) <= {"min", "max"}:
            raise SearchError(
                f"mode must be 'min' or 'max', one for all metrics or one for each, but got {modes}"
                f" for {', '.join(self._metrics)}"
            )
        self._metric, self._mode = self._metrics[0], listed[0]  # as Tune asks for them
        objectives = tuple(zip(self._metrics, listed, strict=True))
        self.settings = SearchSettings(objectives=objectives, **self._settings)  # type: ignore[arg-type]


def _mean(before: float | None, latest: float) -> float:
    """A running mean."""
    return latest if before is None else before + _SMOOTHING * (latest - before)


def _plain_numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """Scalars of numpy and torch as Python's own."""

    def plain(value: Any) -> Any:
        return value.item() if getattr(value, "shape", None) == () else value

    return {name: plain(value) for name, value in result.items()}


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
