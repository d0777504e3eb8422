"""A trained network to be adapted to new tasks; `raymeta.inference.adapted` is what it becomes.

Shape legend: R trainings, N examples, T time steps, C channels, K classes, O outputs.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from raymeta.episodes import Examples, batch_of
from raymeta.errors import DataError, DataWarning, shown
from raymeta.evaluation.calibration import NO_CALIBRATION, Calibration
from raymeta.evaluation.familiarity import Reference, descriptions
from raymeta.inference.adapted import PROGRAM_SUFFIX, Adapted, check_onnx
from raymeta.inference.examples import Axes, RawExamples, read_examples
from raymeta.inference.influence import Influence, leave_one_out
from raymeta.inference.support import Support
from raymeta.inference.targets import label_array, values_array
from raymeta.inference.trained import Trained
from raymeta.nn.networks import Params, is_head
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, path_at
from raymeta.training.curves import EVALUATION_CHUNK


@dataclass(frozen=True)
class _Task:
    """A task's support set, prepared as a batch of one episode.

    `trained` is for its number of classes, `labels` are the classes `[K]`; `rows` are the places
    that the examples have among those of their user.  `name` begins messages.
    """

    trained: Trained
    support: Examples
    labels: np.ndarray | None
    rows: list[int]
    name: str = ""


@dataclass(frozen=True)
class Model:
    """A trained network, or several trainings of one configuration; `raymeta.load` opens it.

    `networks` are the meta-parameters of each.  `reference` tells whether support examples look
    like those of meta-training; None for runs that were meta-tested by an older raymeta.
    """

    trained: Trained
    networks: tuple[Params, ...]
    calibration: Calibration = NO_CALIBRATION
    reference: Reference | None = None

    def adapt(self, x: Any, y: Any = None, *, axes: Axes | None = None) -> Adapted:
        """Adapts to the support examples of a new task, as the meta-test adapts to an episode.

        Args:
            x: the examples as their user has them, before any preparation: numbers as a list of
                arrays `[T, C]`, of lengths of their own, or as an array `[N, T, C]`: example, time
                step, channel; texts as a list; or a DataFrame with the experiment's columns, one
                row a time step.
            y: `[N]`: the class of each example (text or whole numbers), or its target, `[N]` or
                `[N, O]`; may be left out for a DataFrame that has the column of targets.
            axes: `NTC` for time steps before channels (the default), `NCT` for channels before
                time steps, as aeon has them; needed where a shape leaves it open.

        A network that was trained for a number of ways takes 2 classes up to that number; one
        without outputs of its own for each way (`prototypes`, `matching`, `ridge`, `proto_maml`, a
        shared head) takes any number.

        Raises:
            DataError: saying which example or label breaks which rule.

        Warns:
            DataWarning: there are fewer examples (of a class) than the network was trained with, or
                they do not look like those of meta-training (`Adapted.familiarity`).
        """
        raw = read_examples(x, self.trained.inputs, axes=axes, with_targets=y is None)
        return self.adapt_to(raw if y is None else replace(raw, y=y))

    def adapt_to(self, raw: RawExamples) -> Adapted:
        """`adapt` to examples that were read before, with their targets."""
        (adapted,) = self._adapted([self._support(raw)])
        return adapted

    def adapt_many(
        self, supports: Iterable[tuple[Any, Any]], *, axes: Axes | None = None
    ) -> list[Adapted]:
        """Adapts to many tasks, as `adapt` to each alone, in a fraction of the time.

        Tasks with as many examples, and as many classes, are adapted together.

        Args:
            supports: the `x` and `y` of each task, as for `adapt`; `y` may be None for a DataFrame.
            axes: as for `adapt`, of all tasks.

        Raises:
            DataError: as for `adapt`, naming the task.

        Warns:
            DataWarning: as for `adapt`.
        """
        tasks = []
        for number, (x, y) in enumerate(supports, start=1):
            try:
                raw = read_examples(x, self.trained.inputs, axes=axes, with_targets=y is None)
                raw = raw if y is None else replace(raw, y=y)
                tasks.append(replace(self._support(raw), name=f"task {number}: "))
            except DataError as error:
                raise DataError(f"task {number}: {error}") from None
        return self._adapted(tasks)

    def _adapted(self, tasks: Sequence[_Task]) -> list[Adapted]:
        """Networks adapted to each task."""
        alike = defaultdict[tuple[int, int], list[int]](list)
        for place, task in enumerate(tasks):
            num_outputs = task.trained.recipe.spec.num_outputs
            alike[num_outputs, task.support.y.shape[1]].append(place)
        found: dict[int, Adapted] = {}
        for places in alike.values():
            for start in range(0, len(places), EVALUATION_CHUNK):
                chunk = places[start : start + EVALUATION_CHUNK]
                batch = self._adapted_together([tasks[place] for place in chunk])
                found |= dict(zip(chunk, batch, strict=True))
        return [found[place] for place in range(len(tasks))]

    def _adapted_together(self, tasks: Sequence[_Task]) -> list[Adapted]:
        """The same of tasks with as many examples and outputs, in one batch of episodes."""
        recipe = tasks[0].trained.recipe
        support = batch_of([task.support for task in tasks])
        networks = [
            recipe.learner.adapted_params(
                recipe.spec, recipe.problem, network, support, recipe.num_steps
            )
            for network in self.networks
        ]
        is_finite = all(map(_is_finite, networks))
        described = None
        if self.reference is not None:
            described = descriptions(recipe, self.networks[0], support, networks[0])
        found = []
        for number, task in enumerate(tasks):
            own = tuple(recipe.learner.task_params(params, number) for params in networks)
            if not is_finite and not all(map(_is_finite, own)):
                raise DataError(
                    f"{task.name}the network is not finite after {recipe.num_steps} adaptation "
                    "steps on these examples; see that they are in the units of the training data"
                )
            familiarity = None
            if self.reference is not None and described is not None:
                familiarity = self.reference.familiarity(described[number])
                if familiarity.is_unlike_training:
                    message = f"{task.name}{familiarity.warning}"
                    warnings.warn(message, DataWarning, stacklevel=5)
            known = Support.of(recipe, own, task.support, task.rows)
            found.append(
                Adapted(task.trained, own, task.labels, known, self.calibration, familiarity)
            )
        return found

    def influence(
        self,
        support_x: Any,
        support_y: Any = None,
        x: Any = None,
        *,
        target: Any = None,
        axes: Axes | None = None,
    ) -> Influence:
        """Measures each support example's influence on the answers by adapting without it.

        Args:
            support_x: as `x` of `adapt`.
            support_y: as `y` of `adapt`.
            x: the examples whose answers are explained, as for `Adapted.predict`.
            target: as for `Adapted.attribute`.
            axes: as for `adapt`.

        Raises:
            DataError: saying which example or label breaks which rule.

        Warns:
            DataWarning: as for `adapt`.
        """
        raw = read_examples(
            support_x, self.trained.inputs, axes=axes, with_targets=support_y is None
        )
        query = read_examples(x, self.trained.inputs, axes=axes)
        task = self._support(raw if support_y is None else replace(raw, y=support_y))
        found = leave_one_out(
            task.trained.recipe,
            self.networks,
            task.support,
            task.trained.examples(query, torch.zeros(len(query), dtype=torch.int64)),
            task.labels,
            task.rows,
            raw.ids or tuple(raw.names),
            query.ids or tuple(query.names),
            target=target,
            temperature=self.calibration.temperature,
        )
        unit, outputs = task.trained.target_unit, task.trained.in_own_units(found.outputs)
        return replace(found, changes=found.changes * unit, outputs=outputs)

    def _support(self, raw: RawExamples) -> _Task:
        """Prepares the support set that networks adapt to."""
        trained, recipe = self.trained, self.trained.recipe
        rows = list(range(len(raw)))
        if trained.is_classification:
            labels, ways = self._ways(raw)
            # Class after class, as in an episode: matching networks read them in this order.
            rows = np.argsort(ways, kind="stable").tolist()
            raw = replace(
                raw, x=[raw.x[row] for row in rows], names=[raw.names[row] for row in rows]
            )
            targets = torch.from_numpy(ways[rows])
            if self.is_open:
                spec = replace(recipe.spec, num_outputs=len(labels))
                recipe = replace(recipe, spec=spec)
        else:
            values = values_array(raw.y, len(raw), recipe.spec.num_outputs)
            labels, targets = None, trained.standardised(values)
            self._warn_of_few(len(raw), "there are")
        examples = trained.examples(raw, targets)
        return _Task(replace(trained, recipe=recipe), examples, labels, rows)

    @cached_property
    def is_open(self) -> bool:
        """Whether the network takes any number of ways: its head has no row for each way."""
        num_ways = self.trained.recipe.spec.num_outputs
        return not any(
            is_head(name) and len(value) == num_ways for name, value in self.networks[0].items()
        )

    def export(self, path: str | AnyPath) -> None:
        """Writes one ONNX graph that adapts and predicts, for runtimes without Python.

        It takes the support examples, their classes (numbers from 0) or values, and the queries;
        `raymeta.inference.export.graphs.adapting_graph` names its inputs and outputs.

        Args:
            path: of the file, or its URI.

        Raises:
            DataError: the network or its learner has no ONNX form, or onnx is not installed.
            RunError: it cannot be written.
        """
        if path_at(path).name.endswith(PROGRAM_SUFFIX):
            raise DataError(f"{path}: .pt2 is for an adapted network; name a .onnx file")
        check_onnx()
        from raymeta.inference.export.graphs import adapting_graph  # noqa: PLC0415  (an extra)

        graph = adapting_graph(
            self.trained,
            self.networks,
            is_open=self.is_open,
            temperature=self.calibration.temperature,
        )
        write_file(path_at(path), graph)

    def _ways(self, raw: RawExamples) -> tuple[np.ndarray, np.ndarray]:
        """The classes in the order of the ways `[K]`, and the way of every example `[N]`."""
        labels = label_array(raw.y, len(raw))
        classes, ways = np.unique(labels, return_inverse=True)
        fixed, most = self.trained.inputs.classes, self.trained.recipe.spec.num_outputs
        if fixed:
            for label in classes:
                if str(label) not in fixed:
                    raise DataError(
                        f"y must be one of the classes of meta-training, {', '.join(fixed)}, but "
                        f"got {shown(label.item())}"
                    )
            of_text = {str(label): label for label in classes}
            missing = [name for name in fixed if name not in of_text]
            if missing:
                raise DataError(
                    f"y must have an example of each class ({', '.join(fixed)}), but has none of "
                    f"class {missing[0]}"
                )
            ways = np.array([fixed.index(str(label)) for label in labels])
            classes = np.array([of_text[name] for name in fixed])
        if len(classes) < 2:
            raise DataError(
                f"y must have 2 classes at least, but has one class: {shown(classes[0].item())}"
            )
        if len(classes) > most and not self.is_open:
            raise DataError(
                f"y must have at most {most} classes, for which the network was trained "
                f"(tasks.num_ways), but has {len(classes)}; learners such as prototypes take any "
                "number"
            )
        counts = Counter(ways.tolist())
        fewest = min(counts, key=lambda way: (counts[way], way))
        self._warn_of_few(counts[fewest], f"class {shown(classes[fewest].item())} has")
        return classes, ways.astype(np.int64)

    def _warn_of_few(self, count: int, what: str) -> None:
        """Warns of fewer support examples than the network was trained with."""
        num_shots = self.trained.experiment.tasks.num_shots
        if count < num_shots:
            warnings.warn(
                f"{what} {count} support examples, but the network was trained and meta-tested "
                f"with {num_shots}: expect less than the meta-test says",
                DataWarning,
                stacklevel=5,
            )


def _is_finite(params: Params) -> bool:
    return all(value.isfinite().all() for value in params.values())
