"""Runs Ax in a process of its own, so that no model is fitted on Tune's event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raymeta.errors import SearchError
from raymeta.search.records import Proposal, TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Space

_MAX_LOSSES = 3  # losses of the process in a row that end the search
# A process that hangs never answers, and Ray does not notice it.  So an answer is due within a
# multiple of the longest so far, which grows with the trials; the least of it is what the first one
# takes on a machine with far too much to do.
_LEAST_DEADLINE_S, _DEADLINE_MULTIPLE = 600.0, 10

_log = logging.getLogger(__name__)


def session_id() -> str:
    """A unique name of the Ray session that this driver is connected to."""
    context = ray.get_runtime_context()
    return f"{context.get_node_id()} {context.get_job_id()}"


class AxProcess:
    """A `Proposer` that keeps an `AxModel` in a Ray actor up to date with the records.

    Each call to the actor carries the records that changed since the last call.  The records are
    the whole state, so a new actor with all records replaces a lost one.

    Args:
        space: the search space.
        settings: of the search.
        records: all trials of the search; the caller changes them and calls `changed`.
        more: further arguments of `AxModel`.
    """

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        records: Mapping[str, TrialRecord],
        *more: Any,
    ) -> None:
        self._arguments = (space, settings, *more)
        self._records = records
        self._unsent = set(records)
        self._actor: Any = None
        self._pending: Any = None  # a Ray reference
        self._asked_at = self._longest_s = 0.0
        self._num_losses = 0  # in a row

    def changed(self, trial_id: str) -> None:
        """Sends this trial's record with the next call."""
        self._unsent.add(trial_id)

    @property
    def is_busy(self) -> bool:
        """Whether proposals are being prepared."""
        return self._pending is not None

    def request(self, count: int) -> None:
        """Starts to prepare `count` proposals; returns at once."""
        self._pending = self._call("propose_several", self._changes(), count)
        self._asked_at = time.monotonic()

    def poll(self) -> list[Proposal] | None:
        """Gets the proposals requested last, empty if the space is exhausted; None if not ready.

        Raises:
            SearchError: Ax refuses the search, or its process was lost too often.
        """
        if self._pending is None or not self._is_answered():
            return None
        pending, self._pending = self._pending, None
        try:
            proposals: list[Proposal] = ray.get(pending)
        except RayTaskError as error:
            raise SearchError(f"Ax cannot go on with this search: {error.cause}") from error
        except RayError as error:  # its process or its node is gone
            self._actor, self._unsent = None, set(self._records)
            self._num_losses += 1
            if self._num_losses > _MAX_LOSSES:
                raise SearchError(
                    f"Ax's process was lost {self._num_losses} times in a row: {error}"
                ) from error
            return None
        self._num_losses = 0
        self._longest_s = max(self._longest_s, time.monotonic() - self._asked_at)
        return proposals

    def statuses(self) -> dict[str, str]:
        """Waits for Ax's own status of every trial, by Tune's trial_id."""
        self._call("learn", self._changes())
        statuses: dict[str, str] = ray.get(self._call("statuses"))
        return {trial_id: word for trial_id, word in statuses.items() if trial_id in self._records}

    def _is_answered(self) -> bool:
        """Whether the pending call has ended; ends the process if that takes too long."""
        if ray.wait([self._pending], timeout=0)[0]:
            return True
        deadline_s = max(_LEAST_DEADLINE_S, _DEADLINE_MULTIPLE * self._longest_s)
        if time.monotonic() - self._asked_at > deadline_s and self._actor is not None:
            _log.warning("Ax's process has not answered for %.0f s; a new one starts", deadline_s)
            ray.kill(self._actor)  # the call ends with an error soon, as of any lost process
            self._asked_at = time.monotonic()
        return False

    def _changes(self) -> dict[str, TrialRecord]:
        """Takes the records that changed since the last call."""
        changes = {i: record for i, record in self._records.items() if i in self._unsent}
        self._unsent.clear()
        return changes

    def _call(self, method: str, *args: Any) -> Any:
        """Calls the actor, starting it if necessary; returns a Ray reference."""
        if self._actor is None:
            self._actor = ray.remote(_AxActor).options(num_cpus=0).remote(*self._arguments)
        return self._actor.call.remote(method, *args)


class _AxActor:
    """Runs an `AxModel` in a Ray actor: Ax is imported there and nowhere else."""

    def __init__(self, *args: Any) -> None:
        self._args = args
        self._model: Any = None

    def call(self, method: str, *args: Any) -> Any:
        # Not in the constructor, where an error would look like a lost actor.
        if self._model is None:
            import torch  # noqa: PLC0415

            from raymeta.search.ax_model import AxModel  # noqa: PLC0415  (seconds to import)

            # On busy cores a second thread makes a fit many times slower, not faster.
            torch.set_num_threads(1)
            self._model = AxModel(*self._args)
        return getattr(self._model, method)(*args)
