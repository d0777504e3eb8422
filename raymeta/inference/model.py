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

from raymeta.episodes import Examples
from raymeta.errors import DataError, DataWarning, shown
from raymeta.evaluation.calibration import NO_CALIBRATION, Calibration
from raymeta.experiment.data_files import DATA
from raymeta.experiment.file import with_values
from raymeta.inference.attribution import Attribution, Baseline, Explainer, Method
from raymeta.inference.examples import Axes, RawExamples, read_examples
from raymeta.inference.influence import Influence, leave_one_out
from raymeta.inference.stream import Stream
from raymeta.inference.support import Support
from raymeta.inference.targets import known, label_array, values_array
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
        trained, support, labels, rows = self._support(raw)
        recipe = trained.recipe
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
        known = Support.of(recipe, adapted, support, rows)
        return Adapted(trained, adapted, labels, known, self.calibration)

    def influence(
        self,
        support_x: Any,
        support_y: Any = None,
        x: Any = None,
        *,
        target: Any = None,
        axes: Axes | None = None,
    ) -> Influence:
        """Which support examples made the answers: adapts again without each of them.

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
        trained, support, labels, rows = self._support(
            raw if support_y is None else replace(raw, y=support_y)
        )
        return leave_one_out(
            trained.recipe,
            self.networks,
            support,
            trained.examples(query, torch.zeros(len(query), dtype=torch.int64)),
            labels,
            rows,
            raw.ids or tuple(raw.names),
            query.ids or tuple(query.names),
            target=target,
            temperature=self.calibration.temperature,
        )

    def _support(self, raw: RawExamples) -> tuple[Trained, Examples, np.ndarray | None, list[int]]:
        """What networks are adapted to.

        Returns:
            How they were trained, for this number of classes; the prepared examples; the classes;
            and the place in `raw` of each prepared example.
        """
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
            labels, targets = None, values_array(raw.y, len(raw), recipe.spec.num_outputs)
            self._warn_of_few(len(raw), "there are")
        examples = trained.examples(raw, targets)
        return replace(trained, recipe=recipe), examples, labels, rows

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
                stacklevel=5,
            )


@dataclass(frozen=True)
class Adapted:
    """A network that was adapted to a task, or several that answer together.

    The probabilities of several networks are averaged, and so are their values for regression: what
    the meta-test calls the ensemble.  `params` are what each has of the task.  `labels` `[K]` are
    the classes in the order of the outputs; None for regression.  `support` is what explanations
    need of the support set; files of an older raymeta have none.  Logits are divided by the
    temperature of `calibration`.
    """

    trained: Trained
    params: tuple[Params, ...]
    labels: np.ndarray | None = None
    support: Support | None = None
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
            targets = values_array(raw.y, len(raw), self.trained.recipe.spec.num_outputs)
        else:
            targets = torch.from_numpy(known(self.labels, label_array(raw.y, len(raw))))
        scores = problem.query_scores(self._outputs(raw)[None], targets[None])
        return scores.double().mean().item()

    def attribute(
        self,
        x: Any,
        target: Any = None,
        *,
        method: Method = "integrated_gradients",
        baseline: Baseline = "support",
        window: int | None = None,
        num_nodes: int | None = None,
        axes: Axes | None = None,
    ) -> Attribution:
        """Which time steps and channels made the answers, in float64.

        Args:
            x: as for `Model.adapt`.
            target: the class whose probability is explained, or the number of a regression's
                output, counted from 0; one for all examples or `[N]`.  None: the predicted class,
                or output 0.
            method: `integrated_gradients` along the straight way from the baseline, whose values
                add up to what the answer differs from that to the baseline; or `occlusion`, the
                loss where a window of time in one channel is the baseline.
            baseline: `support`, the mean of what the network reads in the support set, or `zeros`,
                where features are standardised the mean of meta-training.
            window: time steps that are occluded at once; None for a tenth of the longest example.
            num_nodes: of the integral; None for as many as completeness to 1e-6 needs.
            axes: as for `Model.adapt`.

        Raises:
            DataError: saying which example or option breaks which rule.

        Warns:
            DataWarning: 512 nodes are too few for completeness to 1e-6.
        """
        trained = self.trained
        raw = read_examples(x, trained.inputs, axes=axes)
        explainer = Explainer(
            trained.recipe,
            trained.inputs,
            self.params,
            self.labels,
            self.support,
            self.calibration.temperature,
        )
        return explainer.attribute(
            raw,
            trained.examples(raw, torch.zeros(len(raw), dtype=torch.int64)),
            target=target,
            method=method,
            baseline=baseline,
            window=window,
            num_nodes=num_nodes,
        )

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
        the support examples no more than what answers need of them, and their mean.

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
        if self.support is not None:
            tensors |= self.support.to_tensors()
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


def _chunks(raw: RawExamples) -> Iterator[RawExamples]:
    for start in range(0, len(raw), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield RawExamples(raw.x[part], raw.names[part])
