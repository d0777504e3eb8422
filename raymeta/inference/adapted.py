"""A network that was adapted to a task: it predicts, and says why.

Shape legend: N examples, T time steps, C channels, K classes, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from raymeta.errors import DataError
from raymeta.evaluation.calibration import NO_CALIBRATION, Calibration
from raymeta.evaluation.familiarity import Familiarity
from raymeta.inference.answers import Answers, Question, answers_of
from raymeta.inference.attribution import Attribution, Baseline, Explainer, Method
from raymeta.inference.examples import Axes, RawExamples, read_examples
from raymeta.inference.stream import Stream
from raymeta.inference.support import Support
from raymeta.inference.targets import known, label_array, values_array
from raymeta.inference.trained import Trained
from raymeta.nn.networks import Params
from raymeta.storage.atomic import write_file
from raymeta.storage.paths import AnyPath, path_at
from raymeta.training.checkpoint import state_bytes

ROLE = "adapted"  # of a file
PREFIX = "network-"  # of the tensors of each network, before its number
PROGRAM_SUFFIX = ".pt2"  # of files for `torch.export.load`


@dataclass(frozen=True)
class Adapted:
    """A network that was adapted to a task, or several that answer together.

    The probabilities of several networks are averaged, and so are their values for regression: what
    the meta-test calls the ensemble.  `params` are what each has of the task.  `labels` `[K]` are
    the classes in the order of the outputs; None for regression.  `support` is what explanations
    need of the support set; files of an older raymeta have none.  Logits are divided by the
    temperature of `calibration`.  `familiarity` tells whether the support examples look like those
    of meta-training; None where the run was meta-tested by an older raymeta, and nobody knows:
    `raymeta evaluate RUN` makes it known, then adapt again.
    """

    trained: Trained
    params: tuple[Params, ...]
    labels: np.ndarray | None = None
    support: Support | None = None
    calibration: Calibration = NO_CALIBRATION
    familiarity: Familiarity | None = None

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
        return self._answers(raw).predicted

    def predict_proba(self, x: Any, *, axes: Axes | None = None) -> np.ndarray:
        """The probability of each class, float64 `[N, K]`, in the order of `labels`.

        Arguments and errors are those of `predict`.
        """
        return self.probabilities(read_examples(x, self.trained.inputs, axes=axes))

    def probabilities(self, raw: RawExamples) -> np.ndarray:
        """`predict_proba` for examples that were read before."""
        if self.labels is None:
            raise DataError("a regression has no class probabilities; use predict")
        return self._answers(raw).outputs.numpy()

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
        if self.labels is None:
            raise DataError("a regression has no prediction sets; use predict_interval")
        raw = read_examples(x, self.trained.inputs, axes=axes)
        return [self.labels[row] for row in self._answers(raw).members(coverage)]

    def predict_interval(
        self, x: Any, *, coverage: float = 0.9, axes: Axes | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the upper end of an interval of each value, `[N]` each, or `[N, O]`.

        On average over new tasks the interval holds the value with the probability `coverage` at
        least.  That needs tasks that are exchangeable with those of meta-validation, nothing else:
        no distribution of the errors, and queries of a task may depend on each other.  Within a
        single task the share may be more or less.  Intervals are as wide as the learner expects to
        err where it expects anything (`alpaca`), elsewhere all of one width; each output of several
        is covered for itself.  Ends are infinite where meta-validation has too few tasks to tell.

        Args:
            x: as for `predict`.
            coverage: within (0, 1).
            axes: as for `predict`.

        Raises:
            DataError: as for `predict`, it predicts classes, or the network's run was not
                calibrated.
        """
        raw = read_examples(x, self.trained.inputs, axes=axes)
        if self.labels is not None:
            raise DataError("classes have no prediction intervals; use predict_set")
        return self._answers(raw, with_scales=True).interval(coverage)

    def score(self, x: Any, y: Any = None, *, axes: Axes | None = None) -> float:
        """The mean score of the examples by the metric of the meta-test.

        It is accuracy, or for regression the squared error in the target's own unit, of which less
        is better.

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
        scores = problem.query_scores(self._answers(raw).outputs[None], targets[None])
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
        """Attributes the answers to time steps and channels, in float64.

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
        found = explainer.attribute(
            raw,
            trained.examples(raw, torch.zeros(len(raw), dtype=torch.int64)),
            target=target,
            method=method,
            baseline=baseline,
            window=window,
            num_nodes=num_nodes,
        )
        return replace(
            found,
            values=found.values * trained.target_unit,
            outputs=trained.in_own_units(found.outputs),
            baseline_outputs=trained.in_own_units(found.baseline_outputs),
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
        """Writes it as a graph that takes what `predict` takes, preparation included.

        `raymeta.inference.export.graphs` names the inputs and outputs of ONNX; a path that ends in
        .pt2 gets a program of `torch.export`, see `raymeta.inference.export.program.program_bytes`:
        such files are for those alone who trust their author.

        Args:
            path: of the file, or its URI.
            stream: one time step with its state as inputs and outputs, as `stream` takes it; in
                ONNX alone.

        Raises:
            DataError: the network has no such form, or onnx is not installed.
            RunError: it cannot be written.
        """
        temperature = self.calibration.temperature
        if path_at(path).name.endswith(PROGRAM_SUFFIX):
            from raymeta.inference.export.program import program_bytes  # noqa: PLC0415  (slow)

            if stream:
                raise DataError(f"{path}: .pt2 has no form for --stream; name a .onnx file")
            program = program_bytes(self.trained, self.params, self.labels, temperature=temperature)
            write_file(path_at(path), program)
            return
        check_onnx()
        from raymeta.inference.export import graphs  # noqa: PLC0415  (an extra)

        graph = graphs.stream_graph if stream else graphs.adapted_graph
        content = graph(self.trained, self.params, self.labels, temperature=temperature)
        write_file(path_at(path), content)

    def to_bytes(self) -> bytes:
        """The content of its file."""
        labels = self.labels
        facts: dict[str, Any] = {
            "experiment": self.trained.settings,
            "data": dict(self.trained.identity.facts),
            "labels": None if labels is None else labels.tolist(),
            "num_outputs": self.trained.recipe.spec.num_outputs,
            "calibration": self.calibration.to_json(),
            "familiarity": None if self.familiarity is None else self.familiarity.to_json(),
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

    def question(self, raw: RawExamples, name: str = "") -> Question:
        """Asks for `raw`, beside the questions of other tasks; `name` begins messages."""
        return Question(self.trained, self.params, self.labels, self.calibration, raw, name)

    def _answers(self, raw: RawExamples, *, with_scales: bool = False) -> Answers:
        (found,) = answers_of([self.question(raw)], with_scales=with_scales)
        return found


def check_onnx() -> None:
    """Refuses to export without the package that writes ONNX."""
    if find_spec("onnx") is None:
        raise DataError(
            "export needs the package onnx, which is not installed here: pip install "
            "'raymeta[onnx]'"
        )
