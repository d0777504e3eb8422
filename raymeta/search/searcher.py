"""A Ray Tune searcher over Ax that never fits a model on Tune's event loop.

`suggest` issues a candidate from the queue, or None, after which Tune asks again; Ax prepares the
candidates in a process of its own.  The searcher's records are the whole state of the search: after
a lost Ax process or a restore from disk, Ax is told all of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from raymeta.errors import RunError, SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.ray_patches import correct_trial_count
from raymeta.search.ax_process import AxProcess, session_id
from raymeta.search.candidates import CandidateQueue
from raymeta.search.constraints import listed
from raymeta.search.objectives import (
    metric_names,
    objectives_of,
    refuse_other_objective,
    settings_from,
)
from raymeta.search.records import TrialRecord
from raymeta.search.saved import (
    STATE_VERSION,
    SavedSearch,
    means_of_groups,
    read_state,
    tune_trials,
    write_state,
)
from raymeta.search.searched import (
    as_tune_space,
    complete_space,
    given_points,
    points_in,
    refuse_overlap,
    restored_settings,
    same_space,
    usable_sources,
)
from raymeta.search.settings import Mode, SearchSettings
from raymeta.search.space import Point, Space
from raymeta.search.stopping import stop_rule
from raymeta.search.trials import Trials
from raymeta.search.tune_call import tune_call
from raymeta.search.tune_space import TuneSpace, tune_space


class AxSearcher(Searcher):
    """Bayesian optimisation of any Tune trainable.

    `AxSearcher(num_sobol=6)` takes space, metric and mode from the Tuner.

    Args:
        space: the search space: a `Space`, a list of parameters, or a `param_space` of Ray Tune;
            None for the one that the Tuner is given.
        settings: of the search; `metric` and `mode` may supply its `objectives`.
        metric: what to optimise, as trainables report it; several for a Pareto front; or None, as
            `mode`, for the Tuner's.
        mode: `min` or `max`, one for all metrics or one for each.
        constraints: linear ones between parameters, as `x + 2 * y <= 3`; a `Space` has its own.
        points_to_evaluate: points to try first, such as another search's `result.config`.
        earlier: trials of an earlier search to learn from.
        sources: trials of earlier searches, one sequence for each. Their models are the prior of
            this search's model, weighted by how well they rank its own trials.  Of both, trials
            outside the space are left out.
        why_not: returns why a point will fail, such as for lack of memory, or an empty text.  It is
            called in another process.
        keywords: settings by their names in `SearchSettings`, instead of `settings`.

    Raises:
        SearchError: an argument breaks a rule.
    """

    def __init__(
        self,
        space: Space | Sequence[Parameter] | Mapping[str, Any] | None = None,
        settings: SearchSettings | None = None,
        *,
        metric: str | Sequence[str] | None = None,
        mode: Mode | Sequence[Mode] | None = None,
        constraints: Sequence[str] = (),
        points_to_evaluate: Sequence[Mapping[str, Any]] | None = (),
        earlier: Sequence[TrialRecord] = (),
        sources: Sequence[Sequence[TrialRecord]] = (),
        why_not: Callable[[Point], str] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__()
        self.settings = settings_from(settings, keywords)
        every = {field.name for field in fields(SearchSettings)}
        self._own_settings = set(keywords) if settings is None else every
        self._metrics = metric_names(metric)
        self._modes = mode
        self._constraints = listed("constraints", constraints)
        self._given = given_points(points_to_evaluate)  # to be tried first
        self._earlier, self._sources, self._why_not = list(earlier), sources, why_not
        self._space: TuneSpace | None = None
        self._is_space_from_tuner = False
        self._trials = Trials()
        self.ended_by = ""  # the stop rule that ended the search, in words
        self._max_concurrent: int | None = None
        self._begin_process()
        if self.settings.objectives:
            self._metric, self._mode = self.settings.objectives[0]
        elif self._metrics and self._modes is not None:
            self._set_objectives()
        if space is not None:
            self._space = as_tune_space(space, self._constraints)
            self._given = points_in(self._space, self._given)

    def _begin_process(self) -> None:
        """Resets per-process state."""
        self._ax: AxProcess | None = None
        self._queue: CandidateQueue | None = None
        self._session: str | None = None
        self._failure: RunError | SearchError | None = None  # raised by the next `suggest`
        self._is_not_restored = False
        self._has_param_space = False
        self._num_before = 0  # trials that the Tuner does not count

    @property
    def records(self) -> dict[str, TrialRecord]:
        """All trials by Tune's trial_id, in order of suggestion."""
        return self._trials.records

    @property
    def space(self) -> Space | None:
        """The search space; None while the Tuner has not given it."""
        return None if self._space is None else self._space.space

    # ------------------------------------------------------------------- Tune's calls, in order

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **_: Any
    ) -> bool:
        """Takes from the Tuner what the constructor was not given.

        Raises:
            SearchError: it contradicts the searcher's own arguments.
        """
        self._has_param_space = True
        self._abandon_running("the Tuner that ran it is gone")
        self._num_before = len(self.records)
        if self._queue is not None:
            self._queue.num_wanted = None  # it was the other Tuner's
        self._trials.mistake = None
        self._set_tuner_objective(metric, mode)
        call = tune_call()
        hidden = call.hidden if call else None
        if self._space is not None and not self._is_space_from_tuner:  # it has the constraints
            refuse_overlap(self._space, tune_space(config, [], hidden))
            return True
        offered = tune_space(config, self._constraints, hidden)
        if self._space is None:
            self._given = points_in(offered, self._given)
        self._space, self._is_space_from_tuner = same_space(self._space, offered), True
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Limits running trials here: Tune's own limiter would hide the ends of resumed trials."""
        self._max_concurrent = max_concurrent
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A point to try, None while one is being prepared, FINISHED when the search is over.

        Raises:
            SearchError: the search cannot begin or go on.
            RunError: the restored state is damaged.
        """
        if failure := self._failure or self._trials.mistake:
            raise failure
        queue = self._queue_of_this_session()
        if self._max_concurrent is not None and self._trials.num_running >= self._max_concurrent:
            return None
        proposal = None if self._is_over(queue) else queue.suggest()
        if self._is_over(queue):  # the queue may have learnt so meanwhile
            return Searcher.FINISHED
        if proposal is None:
            return Searcher.FINISHED if queue.is_exhausted else None
        assert self._space is not None
        assert self._ax is not None
        self._trials.begin(trial_id, proposal)
        self._ax.changed(trial_id)
        queue.start(trial_id)
        return self._space.config(proposal.point)

    def _is_over(self, queue: CandidateQueue) -> bool:
        """Whether a stop rule has ended the search."""
        self.ended_by = self.ended_by or stop_rule(self.settings, self._trials.spent_s, queue.gain)
        return bool(self.ended_by)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Adds an intermediate result to the trial's curve."""
        is_news = self._trials.report(trial_id, result, self._space, self.settings)
        if self._ax is not None and self._queue is not None:
            if is_news:
                self._ax.changed(trial_id)
            self._queue.tend()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends a trial as completed, early-stopped, failed, or abandoned without a usable value."""
        if not self._trials.end(trial_id, result, self._space, self.settings, error=error):
            return
        if self._ax is not None and self._queue is not None:
            self._ax.changed(trial_id)
            self._queue.end(trial_id)

    # ------------------------------------------------------------------- state

    def save(self, checkpoint_path: str) -> None:
        """Writes the state of the search as JSON.

        Raises:
            RunError, SearchError: restoring failed, and saving would replace what is there.
        """
        if self._failure is not None and self._is_not_restored:
            raise self._failure
        state = SavedSearch(
            self._given, self.records, self._space, self.settings, ended_by=self.ended_by
        )
        write_state(Path(checkpoint_path), state)

    def restore(self, checkpoint_path: str) -> None:
        """Reads what `save` wrote, and corrects it by Tune's state in the same folder.

        Tune copies its files one by one, in no fixed order. After a kill in between, this state may
        hold a trial that Tune will never start or lack an end that Tune knows, and Tune's counter
        may be off by one. `suggest` raises any error: after one here Tune would begin anew.
        """
        path = Path(checkpoint_path)
        has_param_space = self._has_param_space
        self._begin_process()
        self._has_param_space = has_param_space
        try:
            state = read_state(path)
            self._given, self._trials = state.given, Trials(state.records)
            self.ended_by = state.ended_by
            self._restore_search(path, state)
            self._follow_tune(path.parent)
        except (RunError, SearchError) as error:
            self._failure, self._is_not_restored = error, True

    def continue_from(
        self,
        records: Mapping[str, TrialRecord],
        points_to_evaluate: Sequence[Mapping[str, Any]],
        spent_s: float = 0.0,
    ) -> None:
        """Continues a search whose ended trials are known; called before the first `suggest`.

        Args:
            records: the ended trials by trial_id.
            points_to_evaluate: points to try first.
            spent_s: seconds that the search has taken, interrupted trials included.
        """
        self._trials = Trials(dict(records), spent_s=spent_s)
        self._given = [dict(point) for point in points_to_evaluate]

    def run_again(self, trial_id: str, record: TrialRecord) -> dict[str, Any]:
        """Continues an interrupted trial; returns its configuration."""
        # First: for a search of one trial without a space, this is the only point.
        self._trials.begin_again(trial_id, record)
        queue = self._queue_of_this_session()
        assert self._space is not None
        assert self._ax is not None
        self._ax.changed(trial_id)
        queue.start(trial_id)
        return self._space.config(record.point)

    def statuses(self) -> dict[str, str]:
        """Ax's own status of every trial, by Tune's trial_id; waits for Ax."""
        self._queue_of_this_session()
        assert self._ax is not None
        return self._ax.statuses()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the Ax process, which cannot be pickled."""
        per_process = dict.fromkeys(("_ax", "_queue", "_session", "_failure"))
        return self.__dict__ | per_process | {"_version": STATE_VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the searcher in another process.

        Raises:
            RunError: another version of raymeta pickled it.
        """
        if state.get("_version") != STATE_VERSION:
            raise RunError(
                "another version of raymeta began this search; go on with that version, or start a "
                "new search (search.warm_start learns from the finished trials)"
            )
        self.__dict__.update(state)
        self._begin_process()

    # ------------------------------------------------------------------- what is searched

    def _set_objectives(self) -> None:
        assert self._modes is not None
        objectives = objectives_of(self._metrics, self._modes)
        self.settings = replace(self.settings, objectives=objectives)
        self._metric, self._mode = objectives[0]  # as Tune asks for them

    def _set_tuner_objective(self, metric: str | None, mode: str | None) -> None:
        """Takes metric and mode from the Tuner, or checks that they agree with the searcher's."""
        if not self.settings.objectives:
            if metric is not None and not self._metrics:
                self._metrics = [metric]
            if mode is not None and self._modes is None:
                self._modes = mode  # type: ignore[assignment]
            if self._metrics and self._modes is not None:
                self._set_objectives()
        refuse_other_objective(self.settings.objectives, metric, mode)

    # ------------------------------------------------------------------- sessions

    def _queue_of_this_session(self) -> CandidateQueue:
        """The queue of candidates, new for a new Ray session."""
        if self._queue is not None and self._session == session_id():
            return self._queue
        if self._session is not None and self._session != session_id():
            self._abandon_running("its Ray session is over")
        call = tune_call()
        if call is not None:
            self._set_tuner_objective(call.metric, call.mode)
        space = complete_space(
            self._space,
            self.settings,
            has_objects=self._has_param_space,
            has_points=bool(self._given or self.records),
        )
        earlier = [r for r in self._earlier if r.curve and space.contains(r.point)]
        sources = usable_sources(self._sources, space, self.settings)
        self._session = session_id()
        self._trials.begin_session()
        self._ax = AxProcess(space, self.settings, self.records, earlier, self._why_not, sources)
        self._queue = CandidateQueue(
            self.settings,
            self.records,
            self._given,
            self._ax,
            is_exhausted=not space.parameters,
            num_wanted=None if call is None else self._num_before + call.num_samples,
        )
        return self._queue

    def _abandon_running(self, reason: str) -> None:
        """Ends the trials that no longer run."""
        for trial_id in self._trials.abandon_running(reason):
            if self._ax is not None and self._queue is not None:
                self._ax.changed(trial_id)
                self._queue.forget(trial_id)

    def _restore_search(self, path: Path, state: SavedSearch) -> None:
        """Takes space and settings from the saved search, or checks that they match it."""
        if state.space is None or state.settings is None:
            return  # of raymeta 0.1
        if self._space is None:
            self._space, self._is_space_from_tuner = state.space, state.space.is_nested
        elif self._space.space != state.space.space:
            raise SearchError(
                f"{path} belongs to a search of another space; restore it with the space that it "
                "began with"
            )
        has_objectives = bool(self.settings.objectives)
        self.settings = restored_settings(path, state.settings, self.settings, self._own_settings)
        if not has_objectives:
            self._metrics = [metric for metric, _ in self.settings.objectives]
            self._modes = [mode for _, mode in self.settings.objectives]
            self._set_objectives()

    def _follow_tune(self, experiment_dir: Path) -> None:
        """Corrects the records by Tune's state."""
        trials = tune_trials(experiment_dir)
        if trials is None:
            return
        correct_trial_count(self, len(trials))
        for trial_id in [i for i, r in self.records.items() if r.status == "running"]:
            if trial_id not in trials:
                del self.records[trial_id]
        if (means := means_of_groups(experiment_dir)) is not None:
            # The Repeater handles the ends of single trials.
            for trial_id, mean in means.items():
                self.on_trial_complete(trial_id, {} if mean is None else {self._metric: mean})
            return
        for trial_id, (status, last_result) in trials.items():
            record = self.records.get(trial_id)
            if record is not None and record.status != "running":
                continue
            if status == "TERMINATED":
                self.on_trial_complete(trial_id, last_result)
            elif status == "ERROR":
                self.on_trial_result(trial_id, last_result)
                self.on_trial_complete(trial_id, error=True)
