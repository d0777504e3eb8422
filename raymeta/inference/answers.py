"""What adapted networks answer for examples: those of one task, or of many tasks at once.

Shape legend: R networks, E tasks, N examples, K classes, O outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import Examples, batch_of
from raymeta.errors import DataError
from raymeta.evaluation.calibration import Calibration, joint_scale
from raymeta.inference.examples import RawExamples
from raymeta.inference.trained import Trained
from raymeta.nn.networks import Params

_CHUNK = 256  # examples answered at once; bounds memory, never changes an answer


@dataclass(frozen=True)
class Question:
    """Examples, and the adapted networks of a task that answer for them.

    `labels` `[K]` are the task's classes; None for regression.  `name` begins messages.
    """

    trained: Trained
    params: tuple[Params, ...]
    labels: np.ndarray | None
    calibration: Calibration
    raw: RawExamples
    name: str = ""


@dataclass(frozen=True)
class Answers:
    """The answers for N examples of a task.

    `outputs` float64 are the mean answers of its networks: probabilities `[N, K]` of its `labels`
    `[K]`, or values `[N, O]` in their user's unit.  `scales` `[N, O]` are what residuals are
    measured in: the deviation that the learner expects, where it does and was asked for it.
    """

    outputs: Tensor
    labels: np.ndarray | None
    calibration: Calibration
    scales: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The class of each example `[N]`, or its value `[N]` (`[N, O]` of several outputs)."""
        outputs = self.outputs.numpy()
        if self.labels is not None:
            return self.labels[outputs.argmax(axis=1)]
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def members(self, coverage: float) -> np.ndarray:
        """Whether a class is in the prediction set, `[N, K]`; see `Adapted.predict_set`.

        Raises:
            DataError: the network's run was not calibrated.
        """
        return 1 - self.outputs.numpy() <= self.calibration.threshold(coverage)

    def interval(self, coverage: float) -> tuple[np.ndarray, np.ndarray]:
        """The ends of intervals, `[N]` or `[N, O]` each; see `Adapted.predict_interval`.

        Raises:
            DataError: the network's run was not calibrated.
        """
        radius = self.calibration.radius(coverage) * self.scales  # [N, O]
        middle = self.outputs.numpy()
        ends = middle - radius, middle + radius
        lower, upper = (end[:, 0] if end.shape[1] == 1 else end for end in ends)
        return lower, upper


@dataclass(frozen=True)
class _Part:
    """Some examples of a question, prepared as a batch of one episode."""

    place: int  # of the question
    question: Question
    query: Examples


def answers_of(questions: Sequence[Question], *, with_scales: bool = False) -> list[Answers]:
    """Answers questions in as few network calls as there are kinds of them, up to a size.

    Tasks are answered together if their networks have one architecture and learner, what all tasks
    of a learner share is the same, and they have as many examples.  Which are answered together
    changes no answer beyond rounding.

    Args:
        questions: of any number of tasks.
        with_scales: also find the scales of regressions, for intervals.

    Raises:
        DataError: naming the question and the example, if it cannot be prepared or its answer is
            not finite.
    """
    parts = [part for place, one in enumerate(questions) for part in _parts(place, one)]
    found = dict[int, tuple[Tensor, np.ndarray | None]]()
    for together in _together(parts):
        own = [parts[number] for number in together]
        found |= zip(together, _answered(own, with_scales=with_scales), strict=True)
    gathered = defaultdict[int, list[tuple[Tensor, np.ndarray | None]]](list)
    for number, part in enumerate(parts):  # in the order of each question's examples
        gathered[part.place].append(found[number])
    return [_whole(question, gathered[place]) for place, question in enumerate(questions)]


def _parts(place: int, question: Question) -> Iterator[_Part]:
    raw, trained = question.raw, question.trained
    for start in range(0, len(raw), _CHUNK):
        own = slice(start, start + _CHUNK)
        part = RawExamples(raw.x[own], raw.names[own])
        no_targets = torch.zeros(len(part), dtype=torch.int64)
        try:
            query = trained.examples(part, no_targets)
        except DataError as error:
            raise DataError(f"{question.name}{error}") from None
        yield _Part(place, question, query)


def _together(parts: Sequence[_Part]) -> Iterator[list[int]]:
    """Yields the places of parts that one network call answers."""
    alike = defaultdict[Any, list[list[int]]](list)
    for number, part in enumerate(parts):
        groups = alike[_kind(part)]
        for group in groups:
            if _share(part.question, parts[group[0]].question):
                group.append(number)
                break
        else:
            groups.append([number])
    for groups in alike.values():
        for group in groups:
            most = max(1, _CHUNK // parts[group[0]].query.y.shape[1])
            for start in range(0, len(group), most):
                yield group[start : start + most]


def _kind(part: _Part) -> Any:
    """What must be equal for networks to run together, beside what `_share` compares."""
    recipe = part.question.trained.recipe
    shapes = tuple(
        tuple(sorted((name, tuple(value.shape)) for name, value in params.items()))
        for params in part.question.params
    )
    return part.query.y.shape[1], recipe.spec, recipe.learner, recipe.dtype, shapes


def _share(one: Question, other: Question) -> bool:
    """Whether what tasks have in common is the same: another training may have made one of them."""
    learner = one.trained.recipe.learner
    for own, others in zip(one.params, other.params, strict=True):
        theirs = learner.shared_params(others)
        for name, value in learner.shared_params(own).items():
            if value is not theirs[name] and not value.equal(theirs[name]):
                return False
    return True


def _answered(
    parts: Sequence[_Part], *, with_scales: bool
) -> Iterator[tuple[Tensor, np.ndarray | None]]:
    """Yields the outputs of each part, and the scales of its residuals where they are wanted."""
    first = parts[0].question
    recipe = first.trained.recipe
    learner, spec = recipe.learner, recipe.spec
    query = batch_of([part.query for part in parts])
    joint: list[Mapping[str, Tensor]] = [
        learner.joint_params([part.question.params[number] for part in parts])
        for number in range(len(first.params))
    ]
    answers = torch.stack([learner.adapted_outputs(spec, p, query) for p in joint])  # [R, E, N, O]
    scale = None
    if with_scales and first.labels is None:
        each = [learner.predictive_scale(spec, params, query) for params in joint]
        scale = joint_scale(answers, each)
    for number, part in enumerate(parts):
        outputs = _in_own_units(answers[:, number : number + 1], part.question)
        yield outputs, None if scale is None else scale[number].numpy()


def _in_own_units(answers: Tensor, question: Question) -> Tensor:
    """The mean answers of the networks, float64: probabilities `[N, K]`, or values `[N, O]`."""
    trained = question.trained
    if question.labels is not None:  # what is left was of ways that this task has not
        answers = answers[..., : len(question.labels)]
    outputs = trained.recipe.problem.mean_outputs(answers / question.calibration.temperature)[0]
    return outputs if question.labels is not None else trained.in_own_units(outputs)


def _whole(question: Question, found: Sequence[tuple[Tensor, np.ndarray | None]]) -> Answers:
    """The answers of a question from those of its parts."""
    outputs = torch.cat([own for own, _ in found])
    is_finite = outputs.isfinite().all(dim=1)
    if not is_finite.all():
        name = question.raw.names[int(is_finite.int().argmin())]
        raise DataError(
            f"{question.name}{name}: the network's answer is not finite; see that it is in the "
            "units of the training data"
        )
    known = [scale for _, scale in found if scale is not None]
    scales = np.concatenate(known) if known else np.ones(tuple(outputs.shape))
    unit = question.trained.target_unit
    return Answers(outputs, question.labels, question.calibration, scales * unit)
