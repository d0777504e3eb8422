"""A Ray Tune searcher over Ax that never fits a model on Tune's event loop.

Ax lives in an actor.  `suggest` returns a candidate that the actor has prepared, or None, upon
which Tune asks again; everything else is a message that nobody waits for.  The searcher's own
records are the whole state: a lost actor, and a search restored from disk, replay them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeGuard

import ray
from ray.exceptions import RayActorError
from ray.tune.result import TRAINING_ITERATION
from ray.tune.search import Searcher

from raymeta.errors import RunError
from raymeta.search.records import Source, Status, TrialRecord
from raymeta.search.space import Parameter, Point

STATE_VERSION = 1


class _AxProcess:
    """Runs an `AxModel` in a Ray actor; Ax is imported there and nowhere else."""

    def __init__(self, *args: Any) -> None:
        from raymeta.search.ax_model import AxModel  # noqa: PLC0415  (seconds to import)

        self._model = AxModel(*args)

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._model, method)(*args)


class AxSearcher(Searcher):
    """Bayesian optimisation of any Tune trainable.

    Args:
        parameters: the search space.
        metric: what to optimise; trainables report it in their results.
        mode: `min` or `max`.
        sem_metric: where trainables report the metric's standard error; without one, or where it
            is missing, Ax infers the noise.
        step_metric: what trainables report as their progress.
        max_steps: the budget in `step_metric`; a trial that ends below it was stopped early.  None
            takes every regular end for complete.
        num_sobol: quasi-random trials before the model takes over, given points included.
        seed: of the Sobol sequence and of the model's optimisation.
        points_to_evaluate: points to try first.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        metric: str,
        mode: Literal["min", "max"],
        sem_metric: str | None = None,
        step_metric: str = TRAINING_ITERATION,
        max_steps: int | None = None,
        num_sobol: int = 5,
        seed: int = 0,
        points_to_evaluate: Sequence[Point] = (),
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self._parameters = list(parameters)
        self._sem_metric = sem_metric
        self._step_metric = step_metric
        self._max_steps = max_steps
        self._num_sobol = num_sobol
        self._seed = seed
        self._given = [dict(point) for point in points_to_evaluate]
        self.records: dict[str, TrialRecord] = {}  # by Tune's trial_id, in order of suggestion
        self._actor: Any = None
        self._pending: Any = None  # the candidate being prepared

    # ------------------------------------------------------------------- Tune's calls, in order

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A point to try, None while one is being prepared, FINISHED when all have been tried."""
        if self._given:
            point = self._given.pop(0)
            self._remember(trial_id, point, "given")
            self._tell("attach", trial_id, point)
            self._prepare_start_point()
            return dict(point)
        if self._pending is None:
            self._pending = self._ask("propose")
        ready, _ = ray.wait([self._pending], timeout=0)
        if not ready:
            return None
        future, self._pending = self._pending, None
        try:
            proposal = ray.get(future)
        except RayActorError:
            self._actor = None  # rebuilt from the records at the next message
            return None
        if proposal is None:
            return Searcher.FINISHED
        index, point, source = proposal
        self._remember(trial_id, point, source)
        self._tell("adopt", trial_id, index)
        self._prepare_start_point()
        return dict(point)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Takes up an intermediate result."""
        record = self.records.get(trial_id)
        if record is not None and record.status == "running":
            self._observe(trial_id, record, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ends a trial as what it was: completed, early-stopped, failed, or abandoned if NaN."""
        record = self.records.get(trial_id)
        if record is None or record.status != "running":
            return
        if result is not None and not error:
            self._observe(trial_id, record, result)
        record.status = self._final_status(record, result, error)
        self._tell("finish", trial_id, record.status)

    # ------------------------------------------------------------------- state

    def save(self, checkpoint_path: str) -> None:
        """Writes the records as JSON."""
        state = {
            "version": STATE_VERSION,
            "given": self._given,
            "records": {trial_id: asdict(record) for trial_id, record in self.records.items()},
        }
        Path(checkpoint_path).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Reads what `save` wrote; Ax relearns it at the next call."""
        state = _read_state(Path(checkpoint_path))
        self._given = state["given"]
        self.records = _records(state)
        self._actor = self._pending = None

    def statuses(self) -> dict[str, str]:
        """Ax's own word on every trial, by Tune's trial_id; waits for Ax."""
        statuses: dict[str, str] = ray.get(self._ask("statuses"))
        return statuses

    def __getstate__(self) -> dict[str, Any]:
        """Without the handles, which mean nothing in another session."""
        return self.__dict__ | {"_actor": None, "_pending": None}

    # ------------------------------------------------------------------- within

    def _remember(self, trial_id: str, point: Point, source: Source) -> None:
        self.records[trial_id] = TrialRecord(dict(point), source)

    def _prepare_start_point(self) -> None:
        """Start points depend on no result, so the next is prepared while trials run."""
        if not self._parameters:
            return  # a space of one point, which was given
        if self._pending is None and not self._given and len(self.records) < self._num_sobol:
            self._pending = self._ask("propose")

    def _observe(self, trial_id: str, record: TrialRecord, result: dict[str, Any]) -> None:
        value, step = result.get(self.metric), result.get(self._step_metric)
        if not _is_finite(value) or not _is_finite(step):
            return
        if record.curve and step <= record.curve[-1][0]:
            return  # told before: Tune's last result, or a retry on its way back
        sem = result.get(self._sem_metric) if self._sem_metric else None
        observation = (int(step), float(value), float(sem) if _is_finite(sem) else None)
        record.curve.append(observation)
        self._tell("report", trial_id, *observation)

    def _final_status(
        self, record: TrialRecord, result: dict[str, Any] | None, error: bool
    ) -> Status:
        if error:
            return "failed"
        if result is None or not _is_finite(result.get(self.metric)):
            return "abandoned"
        steps = result.get(self._step_metric)
        if self._max_steps is not None and (not _is_finite(steps) or steps < self._max_steps):
            return "early_stopped" if record.curve else "abandoned"
        return "completed" if record.curve else "abandoned"

    def _tell(self, method: str, *args: Any) -> None:
        """Sends Ax a message about a trial, without waiting.

        To an actor yet to be started there is nothing to say: it will read the records.
        """
        if self._actor is not None:
            self._actor.call.remote(method, *args)

    def _ask(self, method: str) -> Any:
        """Sends Ax a question; the answer as a Ray reference.  Starts the actor if need be."""
        if self._actor is None:
            self._actor = (
                ray.remote(_AxProcess)
                .options(num_cpus=0)
                .remote(
                    self._parameters,
                    self.metric,
                    self.mode,
                    self._num_sobol,
                    self._seed,
                    self.records,
                )
            )
        return self._actor.call.remote(method)


def saved_records(experiment_dir: Path) -> dict[str, TrialRecord]:
    """The trials of a search from the folder Tune keeps its state in, by Tune's trial_id."""
    files = sorted(experiment_dir.glob(Searcher.CKPT_FILE_TMPL.format("*")))
    return _records(_read_state(files[-1])) if files else {}


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if state["version"] != STATE_VERSION:
        raise RunError(
            f"{path}: searcher state of version {state['version']}, but this raymeta reads "
            f"version {STATE_VERSION}; use the raymeta that wrote it"
        )
    return state


def _records(state: dict[str, Any]) -> dict[str, TrialRecord]:
    return {
        trial_id: TrialRecord(
            point=record["point"],
            source=record["source"],
            status=record["status"],
            curve=[(step, mean, sem) for step, mean, sem in record["curve"]],
        )
        for trial_id, record in state["records"].items()
    }


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
