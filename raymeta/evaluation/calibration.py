"""How far the class probabilities of a network can be trusted, from meta-validation tasks.

A temperature divides the logits (Guo et al. 2017, "On Calibration of Modern Neural Networks",
section 4.2).  A threshold makes prediction sets that hold the class with a stated probability.
Both come from meta-validation episodes, never from meta-test ones, and never from a task's own
support set, which is too small for either.

Shape legend: R networks, E episodes, M queries, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from raymeta.episodes import Split
from raymeta.errors import DataError, RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.scores import NUM_BINS, Reliability
from raymeta.run_folder import Run
from raymeta.training.curves import EVALUATION_CHUNK

CALIBRATION_FILE = "calibration.json"
NUM_EPISODES = 100  # meta-validation episodes for the temperature, and as many for the threshold
_LARGEST = 20.0  # temperature, and the inverse of the smallest


@dataclass(frozen=True)
class Calibration:
    """What meta-validation says of a network's probabilities.

    `temperature` divides logits; 1 leaves them.  `misfits` `[E][M]` are 1 - p of the true class in
    further meta-validation episodes; None: not known, as of runs of earlier versions.
    """

    temperature: float = 1.0
    misfits: tuple[tuple[float, ...], ...] | None = None

    def threshold(self, coverage: float) -> float:
        """The largest misfit 1 - p of a class in a set that covers with this probability.

        It is the quantile of the misfits with weight 1 / (E + 1) for each task, spread over its
        queries, and as much at infinity: the set of a new query of a new task, exchangeable with
        those of meta-validation, holds its class with at least this probability (Lee, Barber and
        Willett 2023, "Distribution-free inference with hierarchical data", theorem 1).

        Raises:
            DataError: the coverage is not within (0, 1), or no episodes were kept.
        """
        if not 0 < coverage < 1:
            raise DataError(f"coverage must be > 0 and < 1, but got {coverage}")
        if self.misfits is None:
            raise DataError(
                "this network has no prediction sets: its run was not calibrated; `raymeta "
                "evaluate RUN` does so, then adapt again"
            )
        values = np.array(self.misfits)
        ordered = np.sort(values, axis=None)
        each = 1 / ((len(values) + 1) * values.shape[1])
        needed = math.ceil(coverage / each - 1e-9)
        return float(ordered[needed - 1]) if needed <= len(ordered) else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """Reads what `to_json` gave.

        Raises:
            ValueError: it is something else.
        """
        temperature, misfits = float(content["temperature"]), content["misfits"]
        rows = None if misfits is None else tuple(tuple(map(float, row)) for row in misfits)
        is_sound = rows is None or (
            len({len(row) for row in rows}) == 1
            and all(0 <= value <= 1 for row in rows for value in row)
        )
        if not (0 < temperature < math.inf and is_sound):
            raise ValueError("the calibration is damaged")
        return cls(temperature, rows)


NO_CALIBRATION = Calibration()


def calibrate(networks: Sequence[Network]) -> Calibration:
    """Fits temperature and threshold of networks that answer together.

    The temperature minimises the negative log-likelihood of `NUM_EPISODES` meta-validation
    episodes; the misfits are of as many others.
    """
    logits, targets = query_logits(networks, "val", range(NUM_EPISODES))

    def loss(log_temperature: float) -> float:
        found = _probabilities(logits, math.exp(log_temperature))
        right = found.gather(-1, targets.unsqueeze(-1))
        return float(-right.clamp_min(1e-300).log().mean())

    limit = math.log(_LARGEST)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
    temperature = math.exp(found.x)
    logits, targets = query_logits(networks, "val", range(NUM_EPISODES, 2 * NUM_EPISODES))
    right = _probabilities(logits, temperature).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    misfits = (1 - right).clamp(0, 1)
    return Calibration(temperature, tuple(map(tuple, misfits.tolist())))


def reliability(
    networks: Sequence[Network], calibration: Calibration, num_episodes: int
) -> Reliability:
    """The expected calibration error on the first meta-test episodes."""
    logits, targets = query_logits(networks, "test", range(num_episodes))
    temperature = calibration.temperature
    with_it, without = (
        calibration_error(_probabilities(logits, t).flatten(0, 1), targets.flatten())
        for t in (temperature, 1.0)
    )
    return Reliability(temperature, with_it, without)


def calibration_error(probabilities: Tensor, targets: Tensor) -> float:
    """The expected calibration error of `probabilities` `[N, K]`; see `Reliability`."""
    confidence, chosen = probabilities.double().max(dim=-1)
    right = (chosen == targets).double()
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gaps = torch.zeros(NUM_BINS, dtype=torch.float64).index_add_(0, bins, right - confidence)
    return float(gaps.abs().sum() / len(targets))


def keep_calibrations(run: Run, networks: Sequence[Network]) -> Calibration:
    """Calibrates a run's networks, the first alone and all together, and writes `RUN/FILE`.

    Returns:
        That of all together.
    """
    found = {str(count): calibrate(networks[:count]) for count in sorted({1, len(networks)})}
    run.write_json(CALIBRATION_FILE, {count: one.to_json() for count, one in found.items()})
    return found[str(len(networks))]


def calibration_of(run: Run, num_networks: int) -> Calibration:
    """That of the first networks of a run; temperature 1 of a run that was not calibrated.

    Raises:
        RunError: the file is damaged.
    """
    content: Any = run.read_json(CALIBRATION_FILE)
    if content is None:
        return NO_CALIBRATION
    try:
        return Calibration.from_json(content[str(num_networks)])
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.path / CALIBRATION_FILE}: is damaged; `raymeta evaluate` makes it anew"
        ) from error


def query_logits(
    networks: Sequence[Network], split: Split, indices: range
) -> tuple[Tensor, Tensor]:
    """The logits `[R, E, M, K]` of adapted networks, and the queries' classes `[E, M]`."""
    first = networks[0]
    reference = next(iter(first.params.values()))
    logits, targets = [], []
    for start in range(0, len(indices), EVALUATION_CHUNK):
        chunk = indices[start : start + EVALUATION_CHUNK]
        episodes = first.tasks.episodes(split, chunk).to(reference.device, reference.dtype)
        found = []
        for network in networks:
            recipe = network.recipe
            *_, last = recipe.learner.query_outputs(
                recipe.spec,
                recipe.problem,
                {name: value.detach() for name, value in network.params.items()},
                episodes.support,
                episodes.query,
                recipe.num_steps,
            )
            found.append(last.double().cpu())
        logits.append(torch.stack(found))
        targets.append(episodes.query.y.cpu())
    return torch.cat(logits, dim=1), torch.cat(targets)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    """The mean of the networks' probabilities, `[E, M, K]`."""
    return (logits / temperature).softmax(dim=-1).mean(dim=0)
