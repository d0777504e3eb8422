"""The queue of candidates: decides when to request new ones and which one a free slot gets.

It uses neither Ray nor Ax: a `Proposer` prepares proposals elsewhere, and a clock measures the
durations of trials and proposals.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from raymeta.errors import SearchError
from raymeta.search.records import Proposal, TrialRecord
from raymeta.search.settings import SearchSettings, least_completed
from raymeta.search.space import Point

# Longest wait for a fresh candidate, as a fraction of a trial's duration divided by the number of
# slots.  Where the model takes longer, candidates are prepared ahead and may be one result behind.
PATIENCE = 0.25
# With more slots than this, one more result matters little and no slot waits: the queue keeps this
# many candidates in stock.  (Tune keeps one idle actor and ends the other actors that wait.)
FEW_SLOTS = 3
MOST_STOCK = 64  # the stock is proposed at once: a larger one would age more
MOST_FALLBACKS = 3  # fallbacks in a row that end the search
_SMOOTHING = 0.3  # weight of the latest duration in the running means

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A proposal, with what was known when it was requested.

    `num_ended` trials had ended and `num_issued` candidates had been issued by then.
    """

    proposal: Proposal
    num_ended: int
    num_issued: int

    @property
    def point(self) -> Point:
        """The proposed point."""
        return self.proposal.point


class Proposer(Protocol):
    """Prepares proposals in the background."""

    def request(self, count: int) -> None:
        """Starts to prepare `count` proposals; returns at once."""

    def poll(self) -> list[Proposal] | None:
        """The proposals requested last, empty if the space is exhausted; None if not ready."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is pending."""


class CandidateQueue:
    """Issues candidates to trials: `suggest`, then `start` and `end` for each trial.

    Args:
        settings: of the search.
        records: all trials of the search; the caller updates it.
        given: points to issue first; issued ones are removed.
        proposer: prepares all other points.
        is_exhausted: whether `given` holds the only points.
        num_wanted: trials that there will be; none is prepared ahead beyond the last one.  None if
            that is not known.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        settings: SearchSettings,
        records: Mapping[str, TrialRecord],
        given: list[Point],
        proposer: Proposer,
        *,
        is_exhausted: bool = False,
        num_wanted: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._records, self._given = settings, records, given
        self._proposer, self._clock = proposer, clock
        self.num_wanted = num_wanted
        self.is_exhausted = is_exhausted  # all points of a discrete space were tried
        self.num_passed_over = 0  # points known to fail that others replaced
        self.num_fallbacks = 0  # random points that replaced the model's
        self.gain: float | None = None  # the model's latest bound on what is still to gain
        self._fallbacks_in_a_row = 0
        self._failure: SearchError | None = None  # raised by the next `suggest`
        self._next: Candidate | None = None
        self._stock: list[Candidate] = []  # for slots that cannot wait for a newer one
        self._waiting_since: float | None = None
        self._requested_at: float | None = None  # the latest request
        self._requested = (0, 0)  # trials ended and candidates issued then
        self._issued: list[Point] = []
        self._num_ended = 0
        self._started_at: dict[str, float] = {}  # of running trials
        self._num_slots = 1  # the most trials that ran at once
        self._trial_seconds: float | None = None  # running means
        self._model_seconds: float | None = None

    # ------------------------------------------------------------------- the searcher's calls

    def suggest(self) -> Proposal | None:
        """Gets a point for a free slot; None if the slot must wait or the space is exhausted.

        Raises:
            SearchError: the model failed too often in a row.
        """
        if self._failure is not None:
            raise self._failure
        if self._given:
            return self._issue(Proposal(self._given.pop(0), "given"))
        self._collect()
        if self.is_exhausted:
            return None
        candidate = self._choose()
        if candidate is None:
            self._request()
            return None
        return self._issue(candidate.proposal)

    def start(self, trial_id: str) -> None:
        """Registers the trial of the candidate issued last; its record already exists."""
        self._started_at[trial_id] = self._clock()
        self._num_slots = max(self._num_slots, len(self._started_at))
        if self.prepares_ahead():
            self._request()

    def tend(self) -> None:
        """Collects what is ready and requests what is lacking, while every slot is busy.

        Trials that began together end together: their slots must find a stock then.  An error is
        kept for the next `suggest`: Tune takes errors from there alone.
        """
        if self._proposer.is_busy and not self._given and self._failure is None:
            try:
                self._collect()
            except SearchError as error:
                self._failure = error

    def end(self, trial_id: str) -> None:
        """Registers the end of a trial; its record has the status."""
        self._num_ended += 1
        started_at = self._started_at.pop(trial_id, None)
        if started_at is not None:
            self._trial_seconds = _mean(self._trial_seconds, self._clock() - started_at)
        if self._requested_at is not None and not self._has_all():
            self._request()  # a slot is free now, or will be soon

    def forget(self, trial_id: str) -> None:
        """Frees the slot of an abandoned trial without requesting a candidate."""
        self._num_ended += 1
        self._started_at.pop(trial_id, None)

    def prepares_ahead(self) -> bool:
        """Whether to request the next candidate before running trials have reported."""
        if self._given or self._has_all():
            return False
        if self._settings.method != "bo" or len(self._records) < self._settings.num_sobol:
            return True  # it depends on no result
        return self._num_slots > FEW_SLOTS or self._is_model_slow()

    def _has_all(self, num_ready: int = 0) -> bool:
        """Whether the last trial has begun, or one of the `num_ready` candidates is for it."""
        return self.num_wanted is not None and len(self._records) + num_ready >= self.num_wanted

    # ------------------------------------------------------------------- issuing

    def _issue(self, proposal: Proposal) -> Proposal:
        self._issued.append(proposal.point)
        self._waiting_since = None
        return proposal

    def _choose(self) -> Candidate | None:
        """Chooses the candidate for a free slot; None if the slot must wait."""
        if self._next is not None and not self._is_usable(self._next):
            self._next = None
        self._stock = [stocked for stocked in self._stock if self._is_usable(stocked)]
        candidate = self._next
        if candidate is not None and self._is_fresh_enough(candidate):
            self._next = None
            if self._stock and self._stock[0].num_issued != candidate.num_issued:
                del self._stock[0]  # the newer candidate takes its place
            return candidate
        return self._stock.pop(0) if self._stock else None

    def _is_usable(self, candidate: Candidate) -> bool:
        """Whether the point neither failed nor was issued since the request."""
        if candidate.point in self._issued[candidate.num_issued :]:
            return False
        failed = (r.point for r in self._records.values() if r.status == "failed")
        return candidate.point not in failed

    def _is_fresh_enough(self, candidate: Candidate) -> bool:
        """Whether to issue it even if a newer candidate could use more results."""
        if not self._is_behind(candidate):
            return True
        if self._num_slots > FEW_SLOTS or self._is_model_slow():
            return True
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        return self._clock() - self._waiting_since > self._patience_s()

    def _is_behind(self, candidate: Candidate) -> bool:
        """Whether a newer candidate could use more results; never before the model takes over."""
        return candidate.num_ended < self._num_ended and self._has_model()

    def _has_model(self) -> bool:
        """Whether the search is past its quasi-random points."""
        num_completed = sum(record.status == "completed" for record in self._records.values())
        num_sobol = self._settings.num_sobol
        is_past = len(self._records) >= num_sobol and num_completed >= least_completed(num_sobol)
        return self._settings.method == "bo" and is_past

    def _is_model_slow(self) -> bool:
        return self._model_seconds is not None and self._model_seconds > self._patience_s()

    def _patience_s(self) -> float:
        """How long a free slot waits for a fresh candidate."""
        return PATIENCE / self._num_slots * (self._trial_seconds or 0.0)

    # ------------------------------------------------------------------- requesting

    def _request(self) -> None:
        """Requests candidates where new ones are needed and none are being prepared."""
        if self._proposer.is_busy or self.is_exhausted:
            return
        now = (self._num_ended, len(self._issued))
        is_low = self._num_slots > FEW_SLOTS and self._is_stock_low()
        is_ready = self._next is not None and not self._is_behind(self._next)
        if is_ready and (self._requested == now or not is_low):
            return
        self._requested_at, self._requested = self._clock(), now
        count = self._full_stock() if is_low else 1
        if self.num_wanted is not None:
            count = max(1, min(count, self.num_wanted - len(self._records)))
        self._proposer.request(count)

    def _is_stock_low(self) -> bool:
        """Whether to renew the stock; half of it covers the time until new ones are ready."""
        if len(self._stock) <= self._full_stock() // 2:
            return True
        first = self._stock[0]
        is_uninformed = first.proposal.source != "bo" and self._is_behind(first)
        return is_uninformed or self._num_ended - first.num_ended >= self._num_slots

    def _full_stock(self) -> int:
        return min(self._num_slots, MOST_STOCK)

    def _collect(self) -> None:
        """Collects ready proposals."""
        proposals = self._proposer.poll()
        if proposals is None:
            return
        if not proposals:
            self.is_exhausted = True
            return
        self._count_fallbacks(proposals)
        self._tell_passed_over(proposals)
        if proposals[0].source == "bo" and self._requested_at is not None:
            seconds = (self._clock() - self._requested_at) / len(proposals)
            self._model_seconds = _mean(self._model_seconds, seconds)
        self.gain = proposals[0].gain
        found = [Candidate(proposal, *self._requested) for proposal in proposals]
        # These proposals ignore candidates issued meanwhile; the first ones are nearly the same
        # points.
        num_missed = len(self._issued) - self._requested[1]
        usable = [candidate for candidate in found if self._is_usable(candidate)]
        found = usable[max(0, num_missed - (len(found) - len(usable))) :]
        if not found:
            self._request()
            return
        self._next = found[0]
        self._stock = found[1:] or self._stock
        num_ready = 1 + len(self._stock)
        if self.prepares_ahead() and not self._has_all(num_ready):
            self._request()

    def _tell_passed_over(self, proposals: Sequence[Proposal]) -> None:
        """Logs the points known to fail, less often as their number grows."""
        for reason in filter(None, (proposal.passed_over for proposal in proposals)):
            self.num_passed_over += 1
            count = self.num_passed_over
            if count & (count - 1) == 0:  # 1, 2, 4, 8, …
                _log.warning(
                    "Another point was proposed in place of one that is known to fail (%d so far): "
                    "%s",
                    count,
                    reason,
                )

    def _count_fallbacks(self, proposals: Sequence[Proposal]) -> None:
        """Warns when the model first fails to propose; ends the search after several failures."""
        for proposal in proposals:
            if proposal.source != "fallback":
                self._fallbacks_in_a_row = 0
                continue
            self.num_fallbacks += 1
            self._fallbacks_in_a_row += 1
            if self.num_fallbacks == 1:
                _log.warning(
                    "The search's model failed, and a random point takes the place of its proposal "
                    "(source `fallback`); after %d failures in a row the search stops. Reason: %s",
                    MOST_FALLBACKS,
                    proposal.reason,
                )
            if self._fallbacks_in_a_row >= MOST_FALLBACKS:
                raise SearchError(
                    f"the search's model failed {MOST_FALLBACKS} times in a row, the last time "
                    f"with: {proposal.reason}. The finished trials are kept; choose another "
                    "`model` or `acquisition`, or method='random' to search without a model"
                )


def _mean(before: float | None, latest: float) -> float:
    """Updates a running mean."""
    return latest if before is None else before + _SMOOTHING * (latest - before)
