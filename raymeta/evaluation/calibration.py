"""How far the answers of a network can be trusted, from meta-validation tasks.

A temperature divides the logits of classes (Guo et al. 2017, "On Calibration of Modern Neural
Networks", section 4.2).  A threshold makes prediction sets that hold the class, or intervals that
hold the value, with a stated probability.  All come from meta-validation episodes, never from
meta-test ones, and never from a task's own support set, which is too small.

Shape legend: R networks, E episodes, M queries, K classes, O outputs.
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
from raymeta.evaluation.scores import NUM_BINS, Coverage, Reliability, Score, SetCoverage
from raymeta.run_folder import Run
from raymeta.training.curves import EVALUATION_CHUNK

CALIBRATION_FILE = "calibration.json"
NUM_EPISODES = 100  # meta-validation episodes for the temperature, and as many for the threshold
TESTED_COVERAGE = 0.9  # of the sets and intervals that the meta-test judges
_LARGEST = 20.0  # temperature, and the inverse of the smallest
Rows = tuple[tuple[float, ...], ...]  # a number for each query [M] of each episode [E]


@dataclass(frozen=True)
class Calibration:
    """The calibration of a network's answers by meta-validation.

    `temperature` divides logits; 1 leaves them.  `misfits` `[E][M]` are 1 - p of the true class in
    further meta-validation episodes.  `residuals` `[O][E][M]` are what a regression misses of each
    output there, in units of the deviation that its learner expects, if it does.  None: not known,
    as of runs of earlier versions.
    """

    temperature: float = 1.0
    misfits: Rows | None = None
    residuals: tuple[Rows, ...] | None = None

    def threshold(self, coverage: float) -> float:
        """The largest misfit 1 - p of a class in a set that covers with this probability.

        See `task_quantile`.

        Raises:
            DataError: the coverage is not within (0, 1), or no episodes were kept.
        """
        _check_coverage(coverage)
        if self.misfits is None:
            raise DataError(_not_calibrated("prediction sets"))
        return task_quantile(self.misfits, coverage)

    def radius(self, coverage: float) -> np.ndarray:
        """Half the width `[O]` of intervals that cover with this probability.

        It is in the units of `residuals`.  See `task_quantile`; each output is covered for itself.

        Raises:
            DataError: the coverage is not within (0, 1), or no episodes were kept.
        """
        _check_coverage(coverage)
        if self.residuals is None:
            raise DataError(_not_calibrated("prediction intervals"))
        return np.array([task_quantile(rows, coverage) for rows in self.residuals])

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
        residuals = content.get("residuals")  # unknown to files of earlier versions
        rows = None if misfits is None else _rows(misfits, most=1.0)
        outputs = None if residuals is None else tuple(_rows(one, math.inf) for one in residuals)
        if not 0 < temperature < math.inf:
            raise ValueError("the calibration is damaged")
        return cls(temperature, rows, outputs)


def _rows(content: Any, most: float) -> Rows:
    rows = tuple(tuple(map(float, row)) for row in content)
    is_sound = len({len(row) for row in rows}) == 1
    if not is_sound or not all(0 <= value <= most for row in rows for value in row):
        raise ValueError("the calibration is damaged")
    return rows


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise DataError(f"coverage must be > 0 and < 1, but got {coverage}")


def _not_calibrated(what: str) -> str:
    return (
        f"this network has no {what}: its run was not calibrated for them; `raymeta evaluate RUN` "
        "does so, then adapt again"
    )


def task_quantile(rows: Rows, coverage: float) -> float:
    """The bound that a value of a new task's query keeps to with at least probability `coverage`.

    It is the quantile of `rows` `[E][M]` with weight 1 / (E + 1) for each task, spread over its
    queries, and as much at infinity.  What has to be exchangeable are the tasks, the new one and
    those of meta-validation; queries of a task may depend on each other in any way (Lee, Barber and
    Willett 2023, "Distribution-free inference with hierarchical data", theorem 1).  The probability
    is over new tasks: within a single one it may be more or less.

    Episodes of a few units (persons, writers) are no independent tasks: a hundred of two persons
    say little more of a third than those two do.  The promise then holds for further episodes of
    the same units; `Coverage.val_units` and `SetCoverage.val_units` say how many there were.
    """
    values = np.array(rows)
    ordered = np.sort(values, axis=None)
    each = 1 / ((len(values) + 1) * values.shape[1])
    needed = math.ceil(coverage / each - 1e-9)
    return float(ordered[needed - 1]) if needed <= len(ordered) else math.inf


NO_CALIBRATION = Calibration()


def calibrate(networks: Sequence[Network]) -> Calibration:
    """Fits what the problem of networks that answer together asks for.

    Of classes, the temperature minimises the negative log-likelihood of `NUM_EPISODES`
    meta-validation episodes; the misfits are of as many others, and so are residuals of values.
    """
    if networks[0].recipe.problem.name == "classification":
        return _calibrate_classes(networks)
    missed, scale = _missed(networks, "val", NUM_EPISODES)
    found = (missed / scale).nan_to_num(nan=math.inf, posinf=math.inf)
    by_output = found.permute(2, 0, 1)
    return Calibration(residuals=tuple(tuple(map(tuple, rows)) for rows in by_output.tolist()))


def _calibrate_classes(networks: Sequence[Network]) -> Calibration:
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


def joint_scale(values: Tensor, scales: Sequence[Tensor | None]) -> Tensor | None:
    """The standard deviation that networks together expect, `[E, M, O]`; None if one expects none.

    It is that of the mixture of their distributions: the mean of their variances, and the variance
    of their means `values` `[R, E, M, O]`.
    """
    known = [scale for scale in scales if scale is not None]
    if len(known) < len(scales):
        return None
    own = torch.stack(known).double().square().mean(dim=0)
    return (own + values.double().var(dim=0, unbiased=False)).sqrt()


def _missed(networks: Sequence[Network], split: Split, num_episodes: int) -> tuple[Tensor, Tensor]:
    """Measures the joint errors of networks on the first queries of a split.

    Returns:
        The absolute errors `[E, M, O]`, and the deviation that the networks expect, of that shape;
        1 where they expect none.
    """
    first = networks[0].recipe
    reference = next(iter(networks[0].params.values()))
    errors, deviations = [], []
    for start in range(0, num_episodes, EVALUATION_CHUNK):
        indices = range(start, min(start + EVALUATION_CHUNK, num_episodes))
        episodes = networks[0].tasks.episodes(split, indices).to(reference.device, reference.dtype)
        values, scales = [], []
        for network in networks:
            learner, spec = network.recipe.learner, network.recipe.spec
            params = {name: value.detach() for name, value in network.params.items()}
            adapted = learner.adapted_params(
                spec, first.problem, params, episodes.support, network.recipe.num_steps
            )
            values.append(learner.adapted_outputs(spec, adapted, episodes.query))
            scales.append(learner.predictive_scale(spec, adapted, episodes.query))
        answers = torch.stack(values)
        missed = (first.problem.mean_outputs(answers) - episodes.query.y.double()).abs()
        scale = joint_scale(answers, scales)
        errors.append(missed.cpu())
        deviations.append(torch.ones_like(missed).cpu() if scale is None else scale.cpu())
    return torch.cat(errors), torch.cat(deviations)


def interval_coverage(
    networks: Sequence[Network],
    calibration: Calibration,
    num_episodes: int,
    coverage: float = TESTED_COVERAGE,
) -> Coverage | None:
    """Measures which share of meta-test values lies in the networks' intervals.

    None: meta-validation has too few tasks for intervals with ends.

    Raises:
        DataError: as `Calibration.radius`.
    """
    radius = torch.from_numpy(calibration.radius(coverage))
    missed, scale = _missed(networks, "test", num_episodes)
    half = radius * scale
    if not half.isfinite().all():
        return None
    tasks = networks[0].tasks
    units = tasks.query_units("test", num_episodes)
    share = Score.over((missed <= half).double().mean(dim=2), units)
    own = tasks.target_scale
    half = half if own is None else half * own.deviation
    widths = half.mean().item(), half.min().item(), half.max().item()
    num_tasks = len((calibration.residuals or ((),))[0])
    unit = "" if own is None else f"the unit of {own.name}"
    val_units = dict(tasks.query_units("val", num_tasks).counts)
    return Coverage(coverage, share, num_tasks, *widths, unit, val_units)


def certainty_of_classes(
    networks: Sequence[Network],
    calibration: Calibration,
    num_episodes: int,
    coverage: float = TESTED_COVERAGE,
) -> tuple[Reliability, SetCoverage]:
    """The expected calibration error on the first meta-test episodes, and what the sets hold there.

    Raises:
        DataError: as `Calibration.threshold`.
    """
    logits, targets = query_logits(networks, "test", range(num_episodes))
    temperature, tasks = calibration.temperature, networks[0].tasks
    answers = _probabilities(logits, temperature)  # [E, M, K]
    with_it, without = (
        calibration_error(found.flatten(0, 1), targets.flatten())
        for found in (answers, _probabilities(logits, 1.0))
    )
    members = 1 - answers <= calibration.threshold(coverage)
    holds = members.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    num_tasks = len(calibration.misfits or ())
    sets = SetCoverage(
        wanted=coverage,
        found=Score.over(holds.double(), tasks.query_units("test", num_episodes)),
        size=members.double().sum(dim=-1).mean().item(),
        num_classes=answers.shape[-1],
        num_tasks=num_tasks,
        # The temperature and the threshold have as many episodes each.
        val_units=dict(tasks.query_units("val", 2 * num_tasks).counts),
    )
    return Reliability(temperature, with_it, without), sets


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
        The calibration of all networks together.
    """
    found = {str(count): calibrate(networks[:count]) for count in sorted({1, len(networks)})}
    run.write_json(CALIBRATION_FILE, {count: one.to_json() for count, one in found.items()})
    return found[str(len(networks))]


def calibration_of(run: Run, num_networks: int) -> Calibration:
    """Reads the joint calibration of a run's first networks; `NO_CALIBRATION` if there is none.

    Raises:
        RunError: the file is damaged.
    """
    content: Any = run.read_json(CALIBRATION_FILE, run.made_anew)
    if content is None:
        return NO_CALIBRATION
    try:
        return Calibration.from_json(content[str(num_networks)])
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(f"{run.path / CALIBRATION_FILE}: is damaged; {run.made_anew}") from error


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
