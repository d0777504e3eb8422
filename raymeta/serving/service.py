"""Answers requests, without HTTP and without Ray."""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from raymeta.errors import DataError, DataWarning, RaymetaError
from raymeta.inference.adapted import Adapted
from raymeta.inference.answers import answers_of
from raymeta.inference.examples import needed_columns
from raymeta.inference.model import Model
from raymeta.serving.bodies import (
    ARROW,
    JSON,
    Predicted,
    RequestError,
    answer_of,
    answer_of_many,
    check_total,
    coverage_of,
    examples_of,
    media_type,
    parts_of,
)
from raymeta.serving.settings import Limits
from raymeta.serving.tasks import MOST_OPEN, KeptTasks, end_of, ids_of_batch

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: status, media type and body."""

    status: int
    kind: str
    body: bytes


@dataclass(kw_only=True)
class Answering:
    """Every public method answers; none raises what a client or a disk got wrong."""

    limits: Limits
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _answered(self, work: Callable[[], Answer]) -> Answer:
        """Runs `work` alone and returns its answer: the numerics fill a core by themselves."""
        with self._lock:
            try:
                return work()
            except RequestError as error:
                return error_answer(str(error), error.status)
            except DataError as error:
                return error_answer(str(error), 400)
            except (RaymetaError, OSError) as error:  # of the server's own files: not for strangers
                _LOG.error("a task could not be kept or read: %s", type(error).__name__)
                return error_answer("the server could not keep or read its tasks; try again", 503)


@dataclass(kw_only=True)
class Service(Answering):
    """Adapts a model to tasks and predicts with them."""

    model: Model
    tasks: KeptTasks

    def adapt(self, task_id: str, body: bytes, content_type: str | None) -> Answer:
        """Adapts to the support examples in a body, and keeps the task under its id.

        To be asked twice for one id does no harm: the second answer is that of the first.
        """

        def work() -> Answer:
            self.tasks.check_room({task_id})
            kind = media_type(content_type, "Content-Type")
            inputs = self.model.trained.inputs
            raw = examples_of(body, kind, inputs, self.limits, with_targets=True)
            with told() as messages:
                adapted = self.model.adapt_to(raw)
            self.tasks.keep(task_id, adapted)
            found = {**_facts(task_id, adapted), "num_examples": len(raw), "warnings": messages}
            return json_answer(found, 201)

        return self._answered(work)

    def adapt_many(self, first_id: str, body: bytes, content_type: str | None) -> Answer:
        """Adapts to the support examples of many tasks in a body, and keeps all of them or none.

        Their ids are made of `first_id`, so that to be asked twice does no harm.
        """

        def work() -> Answer:
            kind = media_type(content_type, "Content-Type")
            parts = parts_of(body, kind, self.limits, with_targets=True)
            raws, count = [], 0
            for part in parts:
                with part.named():
                    inputs = self.model.trained.inputs
                    raws.append(part.examples(inputs, self.limits, with_targets=True))
                count += len(raws[-1])
                check_total(count, part, self.limits)
            ids = ids_of_batch(first_id, len(raws))
            self.tasks.check_room(set(ids))
            with told() as messages:
                adapted = self.model.adapt_many((raw, None) for raw in raws)
            try:
                for task_id, own in zip(ids, adapted, strict=True):
                    self.tasks.keep(task_id, own)
            except (RaymetaError, OSError):
                self.tasks.forget(ids)
                raise
            found = [
                {
                    **({} if part.task is None else {"task": part.task}),
                    **_facts(task_id, own),
                    "num_examples": len(raw),
                }
                for part, task_id, own, raw in zip(parts, ids, adapted, raws, strict=True)
            ]
            return json_answer({"tasks": found, "warnings": messages}, 201)

        return self._answered(work)

    def predict(
        self,
        task_id: str,
        body: bytes,
        content_type: str | None,
        accept: str | None,
        coverage: str | None = None,
    ) -> Answer:
        """Predicts the examples in a body, with a coverage also their sets or intervals."""

        def work() -> Answer:
            adapted = self.tasks.get(task_id)
            kind = media_type(accept, "Accept")
            sent = media_type(content_type, "Content-Type")
            wanted = coverage_of(coverage)
            inputs = adapted.trained.inputs
            raw = examples_of(body, sent, inputs, self.limits, with_targets=False)
            (answers,) = answers_of([adapted.question(raw)], with_scales=wanted is not None)
            found = Predicted(task_id, raw, inputs, answers)
            return Answer(200, kind, answer_of(found, kind, wanted))

        return self._answered(work)

    def predict_many(
        self,
        body: bytes,
        content_type: str | None,
        accept: str | None,
        coverage: str | None = None,
    ) -> Answer:
        """Predicts the examples of many tasks in a body, in their order: all of them or none.

        Tasks whose networks can run together are answered by one network call; see `answers_of`.
        """

        def work() -> Answer:
            kind = media_type(accept, "Accept")
            sent = media_type(content_type, "Content-Type")
            wanted = coverage_of(coverage)
            parts = parts_of(body, sent, self.limits, with_targets=False)
            found = list[Predicted]()
            count = 0
            for start in range(0, len(parts), MOST_OPEN):  # networks in memory at once
                asked = []
                for part in parts[start : start + MOST_OPEN]:
                    with part.named():
                        adapted = self.tasks.get(part.task or "")
                        inputs = adapted.trained.inputs
                        raw = part.examples(inputs, self.limits, with_targets=False)
                    count += len(raw)
                    check_total(count, part, self.limits)
                    asked.append((part, adapted.question(raw, f"{part.name}: ")))
                questions = [question for _, question in asked]
                answers = answers_of(questions, with_scales=wanted is not None)
                found += [
                    Predicted(part.task or "", question.raw, question.trained.inputs, own)
                    for (part, question), own in zip(asked, answers, strict=True)
                ]
            return Answer(200, kind, answer_of_many(found, kind, self.limits, wanted))

        return self._answered(work)

    def refusal(self) -> Answer:
        """Answers a request that this network cannot serve."""
        message = "this network makes no forecasts; adapt it to a task by POST /tasks"
        return error_answer(message, 404)

    def task(self, task_id: str) -> Answer:
        """Describes a kept task."""
        return self._answered(lambda: json_answer(_facts(task_id, self.tasks.get(task_id))))

    def delete(self, task_id: str) -> Answer:
        """Removes a task."""

        def work() -> Answer:
            self.tasks.delete(task_id)
            return Answer(204, JSON, b"")

        return self._answered(work)

    def describe(self) -> Answer:
        """Describes the examples that the model expects, and the limits of requests."""

        def work() -> Answer:
            trained = self.model.trained
            inputs = trained.inputs
            found = {
                "experiment": trained.experiment.name,
                "problem": trained.recipe.problem.name,
                "learner": trained.experiment.learner,
                "channels": list(inputs.channels),
                "categories": {name: list(levels) for name, levels in inputs.levels.items()},
                "text": inputs.text is not None,
                "columns": needed_columns(inputs, with_targets=True),
                "target": inputs.target,
                "classes": list(inputs.classes),
                "num_ways": trained.recipe.spec.num_outputs if trained.is_classification else None,
                "num_shots": trained.experiment.tasks.num_shots,
                "networks": len(self.model.networks),
                "media_types": [JSON, ARROW],
                "limits": {**self.limits.model_dump(), "tasks": self.tasks.most},
            }
            return json_answer(found)

        return self._answered(work)


def _facts(task_id: str, adapted: Adapted) -> dict[str, Any]:
    labels, familiarity = adapted.labels, adapted.familiarity
    end = end_of(task_id)
    assert end is not None, "the task was found"
    return {
        "id": task_id,
        "classes": None if labels is None else labels.tolist(),
        "familiarity": None
        if familiarity is None
        else {**familiarity.to_json(), "is_unlike_training": familiarity.is_unlike_training},
        "expires": datetime.fromtimestamp(end, UTC).isoformat(timespec="seconds"),
    }


@contextmanager
def told() -> Iterator[list[str]]:
    """Collects the warnings of data, each once, at its end."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DataWarning)
        yield messages
    found = (str(w.message) for w in told if issubclass(w.category, DataWarning))
    messages += dict.fromkeys(found)


def error_answer(message: str, status: int) -> Answer:
    """Makes the answer that states a mistake."""
    return json_answer({"error": message}, status)


def json_answer(found: dict[str, Any], status: int = 200) -> Answer:
    """Makes an answer of plain values."""
    return Answer(status, JSON, json.dumps(found, ensure_ascii=False).encode())
