"""The queue of candidates, with a proposer and a clock that the tests control."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from raymeta.errors import SearchError
from raymeta.search.candidates import FEW_SLOTS, MOST_FALLBACKS, MOST_STOCK, CandidateQueue
from raymeta.search.records import Proposal, Source, TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point


class Hands:
    """A proposer that proposes when the test says so, and a clock."""

    def __init__(self) -> None:
        self.requests: list[int] = []  # counts
        self.is_busy = False
        self.seconds = 0.0
        self._ready: list[Proposal] | None = None

    def request(self, count: int) -> None:
        assert not self.is_busy
        self.requests.append(count)
        self.is_busy = True

    def poll(self) -> list[Proposal] | None:
        ready, self._ready = self._ready, None
        if ready is not None:
            self.is_busy = False
        return ready

    def answer(self, *values: float, source: Source = "bo") -> None:
        """Makes the next poll return these proposals."""
        assert self.is_busy
        self._ready = [Proposal({"x": x}, source, "NanError: no fit") for x in values]

    def clock(self) -> float:
        return self.seconds


class Search:
    """A queue with its records, as the searcher uses it."""

    def __init__(
        self,
        *given: float,
        records: dict[str, TrialRecord] | None = None,
        num_wanted: int | None = None,
        **more: Any,
    ):
        self.hands, self.records = Hands(), records or {}
        self.given: list[Point] = [{"x": x} for x in given]
        settings = SearchSettings(objectives=(("score", "max"),), num_sobol=1, **more)
        self.queue = CandidateQueue(
            settings,
            self.records,
            self.given,
            self.hands,
            num_wanted=num_wanted,
            clock=self.hands.clock,
        )

    def suggest(self) -> float | None:
        """Returns the value of the next candidate; a trial of that name tries it."""
        candidate = self.queue.suggest()
        if candidate is None:
            return None
        trial_id = f"trial{len(self.records)}"
        self.records[trial_id] = TrialRecord(
            candidate.point, candidate.source, reason=candidate.reason
        )
        self.queue.start(trial_id)
        x: float = candidate.point["x"]
        return x

    def end(self, number: int, status: Any = "completed") -> None:
        self.records[f"trial{number}"].status = status
        self.queue.end(f"trial{number}")


def searched(trial_seconds: float, model_seconds: float, slots: int = 1) -> Search:
    """Makes a search with a model, trials and proposals of these durations, and no free slot."""
    search = Search(*range(slots + 1))
    for _ in range(slots):
        search.suggest()
    search.hands.seconds += trial_seconds
    search.end(0)
    assert search.suggest() == slots
    assert search.suggest() is None  # requests the first proposal
    search.hands.seconds += model_seconds
    search.hands.answer(*(100.0 + n for n in range(search.hands.requests[-1])))
    return search


def test_given_points_come_first_and_need_no_proposer() -> None:
    search = Search(1, 2)
    assert [search.suggest(), search.suggest()] == [1, 2]
    assert search.given == []


@pytest.mark.parametrize(("num_wanted", "requests"), [(None, [1]), (3, [1]), (2, [])])
def test_nothing_is_prepared_beyond_the_last_trial(
    num_wanted: int | None, requests: list[int]
) -> None:
    search = Search(1, 2, num_wanted=num_wanted, method="random")
    assert [search.suggest(), search.suggest()] == [1, 2]
    assert search.hands.requests == requests
    search.end(0)
    assert search.hands.requests == requests


def test_a_trial_more_than_was_expected_gets_a_candidate() -> None:
    search = Search(1, num_wanted=1)
    search.suggest()
    search.end(0)
    assert search.hands.requests == []
    assert search.suggest() is None
    search.hands.answer(3.0)
    assert search.suggest() == 3.0


def test_a_free_slot_waits_until_the_requested_candidate_is_ready() -> None:
    search = Search()
    assert search.suggest() is None
    assert search.suggest() is None
    assert search.hands.requests == [1]
    search.hands.answer(3.0)
    assert search.suggest() == 3.0


def test_no_proposals_mean_that_the_space_is_exhausted() -> None:
    search = Search()
    search.suggest()
    search.hands.answer()
    assert search.suggest() is None
    assert search.queue.is_exhausted
    search.suggest()
    assert search.hands.requests == [1]  # asks no more


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_points_that_depend_on_no_result_are_prepared_ahead(method: str) -> None:
    search = Search(method=method)
    search.suggest()
    search.hands.answer(1.0, source="sobol")
    search.suggest()
    assert search.hands.requests == [1, 1]


def test_a_fast_model_waits_for_the_running_trial_before_it_proposes() -> None:
    search = searched(trial_seconds=1000.0, model_seconds=1.0)
    assert search.suggest() == 100.0
    assert not search.hands.is_busy
    search.end(1)
    assert search.hands.is_busy  # requested as soon as a slot is free
    assert search.suggest() is None  # beside long trials, a fresh candidate is worth the wait


def test_a_slow_model_prepares_a_candidate_while_trials_run() -> None:
    search = searched(trial_seconds=1.0, model_seconds=10.0)
    assert search.suggest() == 100.0
    assert search.hands.is_busy
    search.hands.answer(200.0)
    search.end(1)
    assert search.suggest() == 200.0  # without the latest result, but at once


def test_a_slot_waits_for_a_fresh_candidate_up_to_a_limit() -> None:
    search = searched(trial_seconds=100.0, model_seconds=1.0)
    search.queue.suggest()  # collects the proposal for a trial that does not start
    assert search.suggest() is None
    search.hands.answer(200.0)
    search.end(1)  # the proposal does not know of this end
    assert search.suggest() is None
    search.hands.seconds += 17.0
    assert search.suggest() is None
    search.hands.seconds += 2.0  # a quarter of the mean duration of trials, 100 s and 1 s
    assert search.suggest() == 200.0


def test_many_slots_are_served_from_a_stock_that_is_renewed_when_half_of_it_is_left() -> None:
    slots = FEW_SLOTS + 3
    search = searched(trial_seconds=10.0, model_seconds=1.0, slots=slots)
    assert search.hands.requests == [slots]
    at_once = [search.suggest() for _ in range(slots // 2 + 1)]
    assert at_once == [100.0 + n for n in range(slots // 2 + 1)]
    search.hands.answer(200.0)
    search.suggest()
    assert search.hands.requests[-2] == 1
    assert search.hands.requests[-1] >= slots


def test_slots_that_are_free_at_once_find_a_stock_that_was_prepared_while_they_were_busy() -> None:
    slots = FEW_SLOTS + 5
    search, prepared = Search(*range(slots), method="random"), 0
    for number in range(slots):
        assert search.suggest() == number
    for _ in range(10):  # reports of running trials
        if search.hands.is_busy:
            count = search.hands.requests[-1]
            search.hands.answer(*(100.0 + prepared + n for n in range(count)))
            prepared += count
        search.queue.tend()
    assert len(search.hands.requests) < 5, "a full stock is not requested again and again"
    for number in range(slots):
        search.end(number)
    found = [search.suggest() for _ in range(slots)]
    assert None not in found
    assert len(set(found)) == slots


def test_the_last_trials_have_no_larger_stock_than_they_need() -> None:
    slots = FEW_SLOTS + 5
    search = Search(*range(slots), num_wanted=slots + 2, method="random")
    for _ in range(slots):
        search.suggest()
    for _ in range(10):
        if search.hands.is_busy:
            search.hands.answer(*(100.0 + n for n in range(search.hands.requests[-1])))
        search.queue.tend()
    assert max(search.hands.requests) == 2
    search.end(0)
    search.end(1)
    assert None not in (search.suggest(), search.suggest())


def test_a_stock_is_never_larger_than_its_limit() -> None:
    search = searched(trial_seconds=10.0, model_seconds=1.0, slots=2 * MOST_STOCK)
    assert max(search.hands.requests) == MOST_STOCK


def test_a_point_issued_after_a_request_is_not_issued_again_from_its_answer() -> None:
    search = Search()
    assert search.suggest() is None
    search.given += [{"x": 5.0}]
    assert search.suggest() == 5.0
    search.hands.answer(5.0)
    assert search.suggest() is None
    search.hands.answer(6.0)
    assert search.suggest() == 6.0


@pytest.mark.parametrize("slots", [1, FEW_SLOTS + 3])
def test_a_point_that_failed_is_not_issued_again(slots: int) -> None:
    search = searched(trial_seconds=10.0, model_seconds=100.0, slots=slots)
    search.queue.suggest()
    failed = {"x": 100.0 + 1}
    search.records["failed"] = TrialRecord(failed, "bo", "failed")
    found = []
    for _ in range(3 * slots):
        found.append(search.suggest())
        if search.hands.is_busy:
            search.hands.answer(101.0, 300.0 + len(found), 400.0 + len(found))
    assert 101.0 not in found
    assert any(x is not None and x >= 300.0 for x in found)


def test_a_lost_request_is_made_again() -> None:
    search = Search()
    search.suggest()
    search.hands.is_busy = False  # its process is gone
    search.suggest()
    assert search.hands.requests == [1, 1]


def test_a_fallback_is_counted_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    search = Search()
    with caplog.at_level(logging.WARNING):
        for x in (1.0, 2.0):
            search.suggest()
            search.hands.answer(x, source="fallback")
            assert search.suggest() == x
    assert search.queue.num_fallbacks == 2
    assert [r.source for r in search.records.values()] == ["fallback"] * 2
    assert {r.reason for r in search.records.values()} == {"NanError: no fit"}
    (message,) = caplog.messages
    assert "NanError: no fit" in message


def test_the_search_stops_with_the_reason_after_fallbacks_in_a_row() -> None:
    search = Search()
    for _ in range(2):  # a success in between begins the count anew
        for x in range(MOST_FALLBACKS - 1):
            search.suggest()
            search.hands.answer(x, source="fallback")
            search.suggest()
        search.suggest()
        search.hands.answer(9.0)
        search.suggest()
    search.suggest()
    search.hands.answer(*range(10, 10 + MOST_FALLBACKS), source="fallback")
    with pytest.raises(SearchError, match=r"failed 3 times in a row, .*NanError: no fit"):
        search.suggest()
