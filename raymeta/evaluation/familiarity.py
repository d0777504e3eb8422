"""Whether the support examples of a new task look like those that a network was trained on.

An example is described by its features before adaptation, by its length, by level, spread and
roughness of each channel as the network reads it, and in a regression by its target and by what the
adapted network misses of it.  A support set's distance is the mean, over its examples, of the
squared Mahalanobis distance to the examples of meta-training.  Their covariance is shrunk towards
a multiple of the identity by a fixed share: episodes draw the same few recordings again and again,
so that estimates of the share, which suppose independent ones, come out too small.  The distances
of V meta-validation tasks say what is ordinary:

    p = (1 + #{meta-validation distances ≥ the task's}) / (V + 1)

is at most α with at most the probability α for a task that is exchangeable with them (Vovk et al.
2005, "Algorithmic Learning in a Random World", section 2.2).

Shape legend: E episodes, N examples, T time steps, C channels, F features, O outputs, D numbers of
a description, V meta-validation tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from raymeta.episodes import Examples, Split
from raymeta.errors import RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.scores import UnlikeTraining
from raymeta.meta.embedding import support_of
from raymeta.nn.networks import NetworkSpec, Params
from raymeta.nn.shared import shared_features
from raymeta.run_folder import Run
from raymeta.storage.atomic import write_file
from raymeta.storage.bounds import parse_tensors
from raymeta.storage.paths import read_regular
from raymeta.training.curves import EVALUATION_CHUNK
from raymeta.training.recipe import Recipe

FAMILIARITY_FILE = "familiarity.safetensors"
ALPHA = 0.01  # share of ordinary tasks that are called unlike the training
NUM_EPISODES = 200  # of meta-training, for the distance; and of meta-validation, for the threshold
_MAX_BYTES = 64 << 20
_MAX_CHANNELS = 32  # that are described one by one; token vectors have hundreds
_SHRINKAGE = 0.2  # of the covariance of standardised descriptions
_SMALLEST = 1e-3  # spread and roughness whose logarithm is told from less


@dataclass(frozen=True)
class Familiarity:
    """The distance of a support set from those of meta-training.

    A `distance` above `threshold` is called unlike the training, and so is that of about one
    ordinary task in a hundred.  `p_value` is the share of ordinary tasks that are as far away.
    """

    distance: float
    threshold: float
    p_value: float

    @property
    def is_unlike_training(self) -> bool:
        """Whether the network's answers for such a task are not to be trusted."""
        return self.p_value <= ALPHA

    @property
    def warning(self) -> str:
        """The warning about a task that is unlike the training."""
        return (
            f"these support examples do not look like the tasks of meta-training (distance "
            f"{self.distance:.3g}, ordinary tasks have at most {self.threshold:.3g}; p = "
            f"{self.p_value:.3g}): see that they are in its units and of its kind; the meta-test "
            "says nothing of such tasks"
        )

    def to_json(self) -> dict[str, float]:
        """Plain values, the arguments of another."""
        return asdict(self)


@dataclass(frozen=True)
class Reference:
    """The statistics that support sets are compared with.

    `center` `[D]` and `whitener` `[D, D]` make descriptions `(v - center) @ whitener` of zero mean
    and about unit covariance over meta-training; `distances` `[V]` are those of meta-validation,
    sorted.
    """

    center: np.ndarray
    whitener: np.ndarray
    distances: np.ndarray

    def familiarity(self, descriptions: np.ndarray) -> Familiarity:
        """Compares a support set with the reference, by its examples' descriptions `[N, D]`."""
        distance = self.distance(descriptions)
        count = len(self.distances)
        farther = count - int(np.searchsorted(self.distances, distance, side="left"))
        return Familiarity(distance, self.threshold, (1 + farther) / (count + 1))

    @property
    def threshold(self) -> float:
        """The largest distance that is called ordinary."""
        count = len(self.distances)
        most_unlike = max(1, int(ALPHA * (count + 1) + 1e-9))  # of the distances of meta-validation
        return float(self.distances[count - most_unlike])

    def unlike_training(self, network: Network, num_episodes: int) -> UnlikeTraining:
        """Counts the tasks beyond the threshold.

        Args:
            network: the one that the reference was made of.
            num_episodes: of the meta-test.
        """
        found = [self.distance(one) for one in _of_split(network, "test", num_episodes)]
        return UnlikeTraining(
            threshold=self.threshold,
            of_validation=float(np.mean(self.distances > self.threshold)),
            num_validation=len(self.distances),
            of_test=float(np.mean(np.array(found) > self.threshold)),
            num_test=num_episodes,
        )

    def distance(self, descriptions: np.ndarray) -> float:
        """The mean squared Mahalanobis distance of examples `[N, D]`, over D."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = float(np.square((descriptions - self.center) @ self.whitener).mean())
        return found if np.isfinite(found) else float(np.finfo(np.float64).max)

    def write(self, run: Run) -> None:
        """Leaves it in the run folder.

        Raises:
            RunError: it cannot be written.
        """
        tensors = {name: np.ascontiguousarray(value) for name, value in vars(self).items()}
        write_file(run.path / FAMILIARITY_FILE, save(tensors))

    @classmethod
    def read(cls, run: Run, spec: NetworkSpec, problem: str) -> Reference | None:
        """Reads what `write` left; None of a run whose meta-test kept none.

        Raises:
            RunError: the file is damaged, or of another network.
        """
        path = run.path / FAMILIARITY_FILE
        try:
            content = read_regular(path, most=_MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            found = cls(**parse_tensors(content))
        except (TypeError, ValueError) as error:
            raise RunError(
                f"{path}: is damaged ({error}); `raymeta evaluate` makes it anew"
            ) from error
        if not found.fits(spec, problem):
            raise RunError(
                f"{path}: does not fit the run's network; `raymeta evaluate` makes it anew"
            )
        return found

    def fits(self, spec: NetworkSpec, problem: str) -> bool:
        """Whether the arrays have the shapes and types of this network's reference."""
        size, count = description_size(spec, problem), self.distances.size
        shapes = {"center": (size,), "whitener": (size, size), "distances": (count,)}
        return count > 0 and all(
            value.shape == shapes[name] and value.dtype == np.float64
            for name, value in vars(self).items()
        )


def description_size(spec: NetworkSpec, problem: str) -> int:
    """The number D of values that describe an example."""
    channels = spec.num_features or 0
    own = 3 * channels if channels <= _MAX_CHANNELS else 0
    return spec.output_size + 1 + own + (2 * spec.num_outputs if problem == "regression" else 0)


def descriptions(
    recipe: Recipe, network: Params, support: Examples, adapted: Mapping[str, Tensor]
) -> np.ndarray:
    """Descriptions of support examples, float64 `[E, N, D]`.

    Args:
        recipe: of the network.
        network: meta-parameters.
        support: E support sets.
        adapted: the learner's `adapted_params` for them.
    """
    learner, spec, x = recipe.learner, recipe.spec, support.x
    with torch.no_grad():
        known = None if learner.reads_steps else support_of(adapted)
        features = shared_features(spec, network, x, support.lengths) if known is None else known[0]
        lengths = support.lengths
        if lengths is None:
            lengths = torch.full(x.shape[:2], x.shape[2], device=x.device)
        parts = [features, lengths.double().log().unsqueeze(-1)]
        if x.is_floating_point() and x.shape[3] <= _MAX_CHANNELS:
            parts += _of_channels(x.double(), lengths)
        if recipe.problem.name == "regression":
            missed = support.y - learner.adapted_outputs(spec, adapted, support)
            parts += [support.y, missed]
    return torch.cat([part.double() for part in parts], dim=-1).cpu().numpy()


def _of_channels(x: Tensor, lengths: Tensor) -> list[Tensor]:
    """Mean, and logarithms of deviation and mean step, of each channel, `[E, N, C]` each."""
    steps = torch.arange(x.shape[2], device=x.device)
    inside = (steps < lengths.unsqueeze(-1)).unsqueeze(-1)  # [E, N, T, 1]
    count = lengths.unsqueeze(-1)
    x = x.masked_fill(~inside, 0.0)  # padding may hold anything
    mean = x.sum(dim=2) / count
    squares = (x - mean.unsqueeze(2)).square().masked_fill(~inside, 0.0).sum(dim=2) / count
    moves = x.diff(dim=2).abs().masked_fill(~inside[:, :, 1:], 0.0).sum(dim=2)
    pace = moves / (count - 1).clamp(min=1)
    return [mean, (squares.sqrt() + _SMALLEST).log(), (pace + _SMALLEST).log()]


def keep_reference(run: Run, network: Network) -> Reference:
    """Makes the reference of a run's network, and writes `RUN/familiarity.safetensors`."""
    known = np.unique(_of_split(network, "train").reshape(-1, _size_of(network)), axis=0)
    center, deviation = known.mean(axis=0), known.std(axis=0)
    # A number that never varies in meta-training is compared in units of its own.
    deviation = np.where(deviation > 1e-9 * (1 + np.abs(center)), deviation, 1.0)
    standard = (known - center) / deviation
    values, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
    values = (1 - _SHRINKAGE) * np.maximum(values, 0) + _SHRINKAGE * max(values.mean(), 1e-9)
    whitener = vectors / np.sqrt(values) / deviation[:, None]
    unsorted = Reference(center, whitener, np.empty(0))
    found = [unsorted.distance(one) for one in _of_split(network, "val")]
    reference = Reference(center, whitener, np.sort(np.array(found)))
    reference.write(run)
    return reference


def _of_split(network: Network, split: Split, num_episodes: int = NUM_EPISODES) -> np.ndarray:
    """Descriptions of the first episodes of a split, `[E, N, D]`."""
    recipe, reference = network.recipe, next(iter(network.params.values()))
    params = {name: value.detach() for name, value in network.params.items()}
    found = []
    for start in range(0, num_episodes, EVALUATION_CHUNK):
        indices = range(start, min(start + EVALUATION_CHUNK, num_episodes))
        episodes = network.tasks.episodes(split, indices).to(reference.device, reference.dtype)
        adapted = recipe.learner.adapted_params(
            recipe.spec, recipe.problem, params, episodes.support, recipe.num_steps
        )
        found.append(descriptions(recipe, params, episodes.support, adapted))
    return np.concatenate(found)


def _size_of(network: Network) -> int:
    return description_size(network.recipe.spec, network.recipe.problem.name)


def familiarity_from_json(content: Mapping[str, Any] | None) -> Familiarity | None:
    """Reads what `Familiarity.to_json` gave; None where there was none.

    Raises:
        ValueError: it is something else.
    """
    if content is None:
        return None
    found = Familiarity(**{name: float(value) for name, value in content.items()})
    if not 0 < found.p_value <= 1 or np.isnan([found.distance, found.threshold]).any():
        raise ValueError("the familiarity is damaged")
    return found
