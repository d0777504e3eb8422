"""A search ends by its time, or when little is left to gain; its trials keep the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray.tune.search import Searcher

from raymeta.errors import SearchError
from raymeta.experiment.schema import Search
from raymeta.report.words import trial_lines
from raymeta.run_folder import Run
from raymeta.search import AxSearcher, Parameter, searcher
from raymeta.search.records import Proposal, TrialRecord
from raymeta.search.settings import Mode, SearchSettings
from raymeta.search.stopping import stop_rule
from raymeta.search.trial_log import TrialLog, logged_trials
from raymeta.search.trials import Trials
from raymeta.search.tuner import num_new_trials
from tests.search.helpers import tiny_experiment

SCORE: tuple[tuple[str, Mode], ...] = (("score", "max"),)


class Time:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Stands in for Ax's process: it always has a proposal, and a bound on the remaining gain."""

    gains: tuple[float, ...] = ()

    def __init__(self, *_: Any) -> None:
        self.is_busy = False
        self._count = 0

    def changed(self, trial_id: str) -> None:
        pass

    def request(self, count: int) -> None:  # noqa: ARG002
        self.is_busy = True

    def poll(self) -> list[Proposal] | None:
        if not self.is_busy:
            return None
        self.is_busy = False
        self._count += 1
        gain = self.gains[min(self._count, len(self.gains)) - 1] if self.gains else None
        return [Proposal({"x": self._count / 100}, "bo", gain=gain)]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher, "session_id", lambda: "this one")
    monkeypatch.setattr(searcher, "AxProcess", Model)


def new_searcher(time: Time, **settings: Any) -> AxSearcher:
    space = [Parameter(name="x", low=0, high=1)]
    found = AxSearcher(space, metric="score", mode="max", num_sobol=1, **settings)
    found._trials = Trials(clock=time)
    return found


def try_one(found: AxSearcher, trial_id: str, time: Time, seconds: float) -> Any:
    """Runs a trial of a stated length; returns what the searcher answered before it."""
    config = found.suggest(trial_id) or found.suggest(trial_id)
    if config != Searcher.FINISHED:
        time.now += seconds
        found.on_trial_complete(trial_id, {"score": 0.5, "training_iteration": 1})
    return config


def statuses(found: AxSearcher) -> list[str]:
    return [record.status for record in found.records.values()]


def test_no_rule_ends_a_search_that_has_none() -> None:
    assert stop_rule(SearchSettings(objectives=SCORE), 1e9, 0.0) == ""


def test_a_rule_ends_a_search_at_its_limit_and_says_so() -> None:
    timed = SearchSettings(objectives=SCORE, budget_s=60)
    assert stop_rule(timed, 59.9, None) == ""
    assert stop_rule(timed, 60.0, None) == "budget_s: 60 s were spent"
    patient = SearchSettings(objectives=SCORE, stop_when_gain_below=0.01)
    assert stop_rule(patient, 1e9, None) == ""
    assert stop_rule(patient, 1e9, 0.01) == ""
    found = stop_rule(patient, 0, 0.0042)
    assert "score has at most 0.0042 to gain, which is less than 0.01" in found


def test_no_trial_starts_after_the_budget_and_running_ones_are_left_alone() -> None:
    time = Time()
    found = new_searcher(time, budget_s=60)
    assert isinstance(found.suggest("long") or found.suggest("long"), dict)
    for number in range(2):
        assert isinstance(try_one(found, f"t{number}", time, 25), dict)
    time.now += 20
    assert found.suggest("late") == Searcher.FINISHED
    assert found.ended_by == "budget_s: 60 s were spent"
    assert statuses(found)[0] == "running"
    found.on_trial_complete("long", {"score": 0.7, "training_iteration": 1})
    assert statuses(found)[0] == "completed"
    assert (found.records["long"].began_s, found.records["long"].latest_s) == (0, 70)


def test_a_restored_search_counts_the_time_before_and_stays_ended(tmp_path: Path) -> None:
    time = Time()
    first = new_searcher(time, budget_s=60)
    try_one(first, "a", time, 25)
    first.save(str(tmp_path / "state"))
    second = new_searcher(Time(), budget_s=60)
    second.restore(str(tmp_path / "state"))
    later = Time()
    second._trials = Trials(second.records, clock=later)
    later.now += 1e6  # between the sessions, which nobody counts
    try_one(second, "b", later, 30)
    assert second.records["b"].began_s == 25
    try_one(second, "c", later, 30)
    assert second.suggest("d") == Searcher.FINISHED
    second.save(str(tmp_path / "state"))
    third = new_searcher(Time())
    third.restore(str(tmp_path / "state"))
    assert third.suggest("e") == Searcher.FINISHED
    assert third.ended_by == second.ended_by


def test_an_interrupted_trial_counts_though_it_runs_again() -> None:
    found = new_searcher(Time(), budget_s=60)
    interrupted = TrialRecord({"x": 0.5}, "bo", "running", [(1, 0.1, None)], latest_s=59.0)
    found.continue_from({}, [], spent_s=59.0)
    found._trials = Trials({}, spent_s=59.0, clock=(time := Time()))
    found.run_again("a", interrupted)
    time.now += 2
    assert found.suggest("b") == Searcher.FINISHED


def test_the_bound_that_a_trial_was_proposed_with_is_kept_and_ends_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Model, "gains", (0.5, 0.05, 0.005))
    time = Time()
    found = new_searcher(time, stop_when_gain_below=0.01)
    answers = [try_one(found, f"t{number}", time, 1) for number in range(3)]
    assert answers[-1] == Searcher.FINISHED
    assert [record.gain for record in found.records.values()] == [0.5, 0.05]
    assert found.ended_by.startswith("stop_when_gain_below")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget_s": 0}, "budget_s must be a number > 0"),
        ({"budget_s": float("inf")}, "budget_s must be a number > 0"),
        ({"stop_when_gain_below": True}, "stop_when_gain_below must be a number > 0"),
        ({"stop_when_gain_below": 0.1, "method": "sobol"}, "needs the model of method bo"),
        (
            {"stop_when_gain_below": 0.1, "objectives": (*SCORE, ("seconds", "min"))},
            "is for one objective",
        ),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        SearchSettings(**({"objectives": SCORE} | settings))


@pytest.mark.parametrize("wrong", [{"method": "random"}, {"against": "num_parameters"}])
def test_an_experiment_file_is_held_to_the_same(wrong: dict[str, Any]) -> None:
    assert Search.model_validate({"stop_when_gain_below": 0.1}).stop_when_gain_below == 0.1
    assert Search.model_validate({"budget_s": 60, **wrong}).budget_s == 60
    with pytest.raises(ValidationError, match=r"must be .* beside `stop_when_gain_below`"):
        Search.model_validate({"stop_when_gain_below": 0.1, **wrong})


def test_a_run_that_has_ended_by_a_rule_begins_no_trial_and_tells_of_it(tmp_path: Path) -> None:
    experiment = tiny_experiment("search.space.maml.inner_lr={low: 0.01, high: 1}")
    run = Run.create(tmp_path, experiment)
    log = TrialLog(run)
    log.set("a", TrialRecord({"maml.inner_lr": 0.1}, "given", began_s=1, latest_s=1))
    log.report(
        "a", TrialRecord({}, "given", curve=[(1, 0.5, None)], began_s=1, latest_s=7, gain=None)
    )
    trials = logged_trials(run)
    assert trials.records["a"].latest_s == 7  # as an interrupted run is found
    assert num_new_trials(experiment, run, trials) == experiment.search.num_trials - 1
    log.end("budget_s: 7 s were spent")
    trials = logged_trials(run)
    assert num_new_trials(experiment, run, trials) == 0
    assert ("the search has ended by budget_s: 7 s were spent", "") in trial_lines(trials)
