"""A trained network to be adapted to new tasks, and what it is once adapted.

Shape legend: R trainings, N examples, T time steps, C channels, K classes, O outputs.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.errors import DataError, DataWarning, shown
from raymeta.evaluation.calibration import NO_CALIBRATION, Calibration
from raymeta.experiment.data_files import DATA
from raymeta.experiment.file import with_values
from raymeta.inference.examples import Axes, RawExamples, read_examples
from raymeta.inference.stream import Stream
from raymeta.inference.trained import Trained
from raymeta.nn.networks import Params, is_head
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, path_at
from raymeta.training.checkpoint import state_bytes

ROLE = "adapted"  # of a file
PREFIX = "network-"  # of the tensors of each network, before its number
_SECTIONS = {"name", "seed", "tasks", "model", "learner", "training", "evaluation"}
_CHUNK = 256  # examples answered at once; bounds memory, never changes an answer


@dataclass(frozen=True)
class Model:
    """A trained network, or several trainings of one configuration; `raymeta.load` opens it.

    `networks` are the meta-parameters of each.
    """

    trained: Trained
    networks: tuple[Params, ...]
    calibration: Calibration = NO_CALIBRATION

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
            DataWarning: there are fewer examples (of a class) than the network was trained with.
        """
        raw = read_examples(x, self.trained.inputs, axes=axes, with_targets=y is None)
        return self.adapt_to(raw if y is None else replace(raw, y=y))

    def adapt_to(self, raw: RawExamples) -> Adapted:
        """`adapt` to examples that were read before, with their targets."""
        trained, recipe = self.trained, self.trained.recipe
        if trained.is_classification:
            labels, ways = self._ways(raw)
            # Class after class, as in an episode: matching networks read them in this order.
            order = np.argsort(ways, kind="stable")
            raw = replace(
                raw, x=[raw.x[row] for row in order], names=[raw.names[row] for row in order]
            )
            targets = torch.from_numpy(ways[order])
            if self.is_open:
                spec = replace(recipe.spec, num_outputs=len(labels))
                recipe = replace(recipe, spec=spec)
        else:
            labels, targets = None, _values(raw.y, len(raw), recipe.spec.num_outputs)
            self._warn_of_few(len(raw), "there are")
        support = trained.examples(raw, targets)
        adapted = tuple(
            recipe.learner.adapted_params(
                recipe.spec, recipe.problem, network, support, recipe.num_steps
            )
            for network in self.networks
        )
        if not all(value.isfinite().all() for params in adapted for value in params.values()):
            raise DataError(
                f"the network is not finite after {recipe.num_steps} adaptation steps on these "
                "examples; see that they are in the units of the training data"
            )
        return Adapted(replace(trained, recipe=recipe), adapted, labels, self.calibration)

    @cached_property
    def is_open(self) -> bool:
        """Whether the network has no outputs of its own for each way."""
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
        _check_onnx()
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
                stacklevel=4,
            )


@dataclass(frozen=True)
class Adapted:
    """A network that was adapted to a task, or several that answer together.

    The probabilities of several networks are averaged, and so are their values for regression: what
    the meta-test calls the ensemble.  `params` are what each has of the task.  `labels` `[K]` are
    the classes in the order of the outputs; None for regression.  Logits are divided by the
    temperature of `calibration`.
    """

    trained: Trained
    params: tuple[Params, ...]
    labels: np.ndarray | None = None
    calibration: Calibration = NO_CALIBRATION

    def predict(self, x: Any, *, axes: Axes | None = None) -> np.ndarray:
        """The class of each example `[N]`, or its value `[N]` (`[N, O]` of several outputs).

        Args:
            x: as for `Model.adapt`.
            axes: as for `Model.adapt`.

        Raises:
            DataError: saying which example breaks which rule.
        """
        return self.predict_raw(read_examples(x, self.trained.inputs, axes=axes))

    def predict_raw(self, raw: RawExamples) -> np.ndarray:
        """`predict` for examples that were read before."""
        outputs = self._outputs(raw).numpy()
        if self.labels is not None:
            return self.labels[outputs.argmax(axis=1)]
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict_proba(self, x: Any, *, axes: Axes | None = None) -> np.ndarray:
        """The probability of each class, float64 `[N, K]`, in the order of `labels`.

        Arguments and errors are those of `predict`.
        """
        return self.probabilities(read_examples(x, self.trained.inputs, axes=axes))

    def probabilities(self, raw: RawExamples) -> np.ndarray:
        """`predict_proba` for examples that were read before."""
        if self.labels is None:
            raise DataError("a regression has no class probabilities; use predict")
        return self._outputs(raw).numpy()

    def predict_set(
        self, x: Any, *, coverage: float = 0.9, axes: Axes | None = None
    ) -> list[np.ndarray]:
        """The classes of each example that cannot be ruled out; N arrays of labels.

        On average over new tasks, which must be like those of meta-validation, the set holds the
        class with the probability `coverage` at least; in a single task it may be more or less.  A
        set may be empty.  See `raymeta.evaluation.calibration.Calibration.threshold`.

        Args:
            x: as for `predict`.
            coverage: within (0, 1).
            axes: as for `predict`.

        Raises:
            DataError: as for `predict_proba`, or the network's run was not calibrated.
        """
        most = self.calibration.threshold(coverage)
        probabilities = self.predict_proba(x, axes=axes)
        assert self.labels is not None, "it has probabilities"
        return [self.labels[1 - row <= most] for row in probabilities]

    def score(self, x: Any, y: Any = None, *, axes: Axes | None = None) -> float:
        """The mean score of the examples by the metric of the meta-test.

        It is accuracy, or for regression the squared error, of which less is better.

        Args:
            x: as for `Model.adapt`.
            y: as for `Model.adapt`; every class must be one of `labels`.
            axes: as for `Model.adapt`.

        Raises:
            DataError: saying which example or label breaks which rule.
        """
        raw = read_examples(x, self.trained.inputs, axes=axes, with_targets=y is None)
        raw = raw if y is None else replace(raw, y=y)
        problem = self.trained.recipe.problem
        if self.labels is None:
            targets = _values(raw.y, len(raw), self.trained.recipe.spec.num_outputs)
        else:
            targets = torch.from_numpy(_known(self.labels, label_array(raw.y, len(raw))))
        scores = problem.query_scores(self._outputs(raw)[None], targets[None])
        return scores.double().mean().item()

    def stream(self, num_streams: int = 1) -> Stream:
        """Begins sequences of which one time step after another comes in; see `Stream.step`.

        Raises:
            DataError: the network is bidirectional, or its source prepares examples as a whole.
        """
        num_classes = None if self.labels is None else len(self.labels)
        trained = self.trained
        return Stream(
            trained.recipe,
            trained.inputs,
            self.params,
            num_classes,
            num_streams,
            self.calibration.temperature,
        )

    def save(self, path: str | AnyPath) -> None:
        """Writes it to a file of its own, whole or not at all, for `raymeta.load_adapted`.

        The file is safetensors with a checksum.  It holds no path of the training's data, and of
        the support examples no more than what answers need of them.

        Args:
            path: of the file, or its URI.

        Raises:
            RunError: it cannot be written.
        """
        write_file(path_at(path), self.to_bytes())

    def export(self, path: str | AnyPath, *, stream: bool = False) -> None:
        """Writes it as an ONNX graph that takes what `predict` takes, preparation included.

        `raymeta.inference.export.graphs` names the inputs and outputs.

        Args:
            path: of the file, or its URI.
            stream: one time step with its state as inputs and outputs, as `stream` takes it.

        Raises:
            DataError: the network has no ONNX form, or onnx is not installed.
            RunError: it cannot be written.
        """
        _check_onnx()
        from raymeta.inference.export import graphs  # noqa: PLC0415  (an extra)

        graph = graphs.stream_graph if stream else graphs.adapted_graph
        temperature = self.calibration.temperature
        content = graph(self.trained, self.params, self.labels, temperature=temperature)
        write_file(path_at(path), content)

    def to_bytes(self) -> bytes:
        """The content of its file."""
        experiment, labels = self.trained.experiment, self.labels
        if experiment.tasks.data_dir is not None:
            experiment = with_values(experiment, {"tasks.data_dir": DATA})
        facts: dict[str, Any] = {
            "experiment": experiment.model_dump(
                mode="json", include=_SECTIONS | {experiment.learner}
            ),
            "data": dict(self.trained.identity.facts),
            "labels": None if labels is None else labels.tolist(),
            "num_outputs": self.trained.recipe.spec.num_outputs,
            "calibration": self.calibration.to_json(),
        }
        # Copies: networks may have a tensor in common, which safetensors refuses.
        tensors = {
            f"{PREFIX}{number}.{name}": value.clone()
            for number, params in enumerate(self.params)
            for name, value in params.items()
        }
        return state_bytes(tensors, replace(self.trained.identity, facts=facts, role=ROLE))

    def _outputs(self, raw: RawExamples) -> Tensor:
        """The mean answers of the networks, float64: probabilities `[N, K]`, or values `[N, O]`."""
        trained, recipe = self.trained, self.trained.recipe
        found = []
        for part in _chunks(raw):
            query = trained.examples(part, torch.zeros(len(part), dtype=torch.int64))
            answers = torch.stack(
                [recipe.learner.adapted_outputs(recipe.spec, p, query) for p in self.params]
            )
            if self.labels is not None:  # what is left was of ways that this task has not
                answers = answers[..., : len(self.labels)]
            answers = answers / self.calibration.temperature
            found.append(recipe.problem.mean_outputs(answers)[0])
        outputs = torch.cat(found)
        is_finite = outputs.isfinite().all(dim=1)
        if not is_finite.all():
            name = raw.names[int(is_finite.int().argmin())]
            raise DataError(
                f"{name}: the network's answer is not finite; see that it is in the units of the "
                "training data"
            )
        return outputs


def _check_onnx() -> None:
    """Refuses to export without the package that writes ONNX."""
    if find_spec("onnx") is None:
        raise DataError(
            "export needs the package onnx, which is not installed here: pip install "
            "'raymeta[onnx]'"
        )


def label_array(y: Any, num_examples: int) -> np.ndarray:
    """Classes as text or whole numbers `[N]`.

    Raises:
        DataError: their number or kind is wrong, or one is missing.
    """
    labels = np.asarray(y.to_numpy() if hasattr(y, "to_numpy") else y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (num_examples,):
        raise DataError(
            f"y must have one class for each of the {num_examples} examples, but has the shape "
            f"{list(labels.shape)}"
        )
    if labels.dtype.kind == "O":
        for number, label in enumerate(labels.tolist(), start=1):
            if not isinstance(label, str | int) or label == "":
                raise DataError(
                    f"y, example {number}: must be a class, text or a whole number, but got "
                    f"{shown(label)}"
                )
        kinds = {isinstance(label, str) for label in labels.tolist()}
        if len(kinds) > 1:
            raise DataError("y must be text or whole numbers, but is text and numbers mixed")
        labels = labels.astype(str if kinds == {True} else np.int64)
    if labels.dtype.kind not in "iubUT":
        raise DataError(f"y must be classes, text or whole numbers, but holds {labels.dtype}")
    return labels.astype(str) if labels.dtype.kind == "T" else labels


def _known(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The number of each label's class, int64 `[N]`."""
    number_of = {label: number for number, label in enumerate(classes.tolist())}
    for number, label in enumerate(labels.tolist(), start=1):
        if label not in number_of:
            raise DataError(
                f"y, example {number}: {shown(label)} is none of the classes that the network is "
                f"adapted to ({', '.join(map(shown, [*number_of][:10]))})"
            )
    return np.array([number_of[label] for label in labels.tolist()], dtype=np.int64)


def _values(y: Any, num_examples: int, num_outputs: int) -> Tensor:
    """Targets of a regression as float64 `[N, O]`."""
    try:
        values = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"y must be numbers: {error!s:.200}") from None
    if values.ndim == 1 and num_outputs == 1:
        values = values[:, None]
    if values.shape != (num_examples, num_outputs):
        raise DataError(
            f"y must be numbers [{num_examples}, {num_outputs}], but has the shape "
            f"{list(values.shape)}"
        )
    is_finite = np.isfinite(values).all(axis=1)
    if not is_finite.all():
        number = int(is_finite.argmin())
        raise DataError(
            f"y, example {number + 1}: {values[number].tolist()} is no finite number (NaN or inf)"
        )
    return torch.from_numpy(values)


def _chunks(raw: RawExamples) -> Iterator[RawExamples]:
    for start in range(0, len(raw), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield RawExamples(raw.x[part], raw.names[part])
