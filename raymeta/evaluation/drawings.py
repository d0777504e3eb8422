"""The data of a report's drawings, RUN/drawings.json: episodes, forecasts, a confusion matrix.

The file holds what is drawn and nothing else, in bounded size, so that a page can be made without
the data.

Shape legend: R trainings, E episodes, M queries, K classes, T time steps, C channels, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np
from pydantic import FiniteFloat, TypeAdapter
from torch import Tensor

from raymeta.episodes import Episode, Legend, TaskDistribution
from raymeta.errors import RunError
from raymeta.evaluation.calibration import Calibration, query_logits
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.ensemble import query_answers
from raymeta.evaluation.scores import NUM_BINS
from raymeta.problem import Problem
from raymeta.run_folder import Run
from raymeta.storage.checksum import from_json
from raymeta.storage.paths import read_regular

DRAWINGS_FILE = "drawings.json"
MAX_BYTES = 4 << 20
NUM_EPISODES, NUM_SERIES = 3, 4  # drawn: the first ones, chosen by nobody
MOST_CLASSES = 30  # of the confusion matrix
MOST_UNITS = 100  # of an axis that are named
_MOST_EXAMPLES, _MOST_STEPS, _MOST_CHANNELS = 30, 200, 6
_LONGEST_TEXT, _LONGEST_NAME = 400, 80  # characters

Numbers = tuple[FiniteFloat, ...]


@dataclass(frozen=True)
class Example:
    """An example with its class, and of a query the network's `answer` and its probability.

    It has a `text`, or `lines`: those of a pen as points x and y one after the other, or the values
    of each channel.
    """

    truth: str
    text: str = ""
    lines: tuple[Numbers, ...] = ()
    answer: str = ""
    probability: FiniteFloat = 0.0


@dataclass(frozen=True)
class DrawnEpisode:
    """A meta-test episode of a classification.

    `channels` name the lines of signals, of `num_channels` that there are.
    """

    support: tuple[Example, ...]
    query: tuple[Example, ...]
    channels: tuple[str, ...] = ()
    are_strokes: bool = False
    num_channels: int = 0


@dataclass(frozen=True)
class DrawnForecast:
    """The end of a series, what came next, and forecasts of it by name, the network's first.

    `band` are the ends of the network's widest interval at each step, and `band_share` is how many
    percent of the values it should hold; empty for forecasts without quantiles.
    """

    series: str
    past: Numbers
    truth: Numbers
    forecasts: dict[str, Numbers]
    band: tuple[Numbers, Numbers] | None = None
    band_share: FiniteFloat = 0.0


@dataclass(frozen=True)
class DrawnFit:
    """A regression of one number on one number: support points, and queries with the answers."""

    support: tuple[tuple[FiniteFloat, FiniteFloat], ...]
    query: tuple[tuple[FiniteFloat, FiniteFloat, FiniteFloat], ...]


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix: queries by class (row) and answer (column), averaged over trainings.

    `num_left_out` classes with fewer errors are left out.
    """

    classes: tuple[str, ...]
    counts: tuple[Numbers, ...]
    num_left_out: int = 0


@dataclass(frozen=True)
class Bin:
    """Queries of like probability: how many, their mean probability, and the share answered right.

    The probability is that of the answer, with the temperature.
    """

    count: int
    confidence: FiniteFloat
    accuracy: FiniteFloat


@dataclass(frozen=True)
class Drawings:
    """All that is drawn of a meta-test; `units` name the units of an axis by their ids."""

    episodes: tuple[DrawnEpisode, ...] = ()
    forecasts: tuple[DrawnForecast, ...] = ()
    fits: tuple[DrawnFit, ...] = ()
    confusion: Confusion | None = None
    reliability: tuple[Bin, ...] = ()
    units: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def write(self, run: Run) -> None:
        """Leaves them in the run folder.

        Raises:
            RunError: they cannot be written.
        """
        run.write_json(DRAWINGS_FILE, asdict(self))

    @classmethod
    def read(cls, run: Run) -> Drawings | None:
        """Reads what `write` left; None for a run whose meta-test kept none.

        Raises:
            RunError: the file is damaged, or too long.
        """
        path = run.path / DRAWINGS_FILE
        remedy = run.made_anew
        try:
            content = read_regular(path, most=MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"{path}: cannot be read: {reason}; {remedy}") from error
        try:
            from_json(content)
            return TypeAdapter(cls).validate_json(content)
        except (ValueError, RecursionError) as error:  # pydantic's ValidationError is one
            why = str(error).splitlines()[0]
            raise RunError(f"{path}: is damaged ({why}); {remedy}") from error


def draw_classification(
    networks: Sequence[Network], calibration: Calibration, num_episodes: int
) -> Drawings:
    """Episodes as the first network answers them; confusion and reliability of all trainings.

    The reliability is that of `predict_proba`, the mean of the networks' probabilities.
    """
    tasks = networks[0].tasks
    logits, targets = query_logits(networks, "test", range(num_episodes))
    probabilities = (logits / calibration.temperature).softmax(dim=-1)
    drawn = tuple(
        _episode(tasks.episode("test", number), tasks.legend, probabilities[0, number].numpy())
        for number in range(min(NUM_EPISODES, num_episodes))
    )
    confidence, chosen = probabilities.mean(dim=0).max(dim=-1)
    return Drawings(
        episodes=drawn,
        confusion=_confusion(tasks, logits.argmax(dim=-1).numpy(), targets.numpy()),
        reliability=_bins(confidence.flatten().numpy(), (chosen == targets).flatten().numpy()),
        units=_unit_names(tasks.legend),
    )


def draw_forecasts(
    tasks: TaskDistribution, problem: Problem, forecasts: Mapping[str, Tensor]
) -> Drawings:
    """The first forecast of each of the first series.

    Args:
        tasks: of forecasts.
        problem: whose answers they are.
        forecasts: answers `[E, M, O]` to the first meta-test episodes, by whose they are, the
            network's first.
    """
    drawn: dict[str, DrawnForecast] = {}
    points = {whose: problem.point(answers) for whose, answers in forecasts.items()}
    own = next(iter(forecasts.values()))
    for number in range(len(own)):
        episode = tasks.episode("test", number)
        past = episode.query_past
        assert past is not None, "a forecast's episodes have a past"
        name = _series(episode, tasks.legend) or f"episode {number}"
        if name in drawn:
            continue
        base, unit = past.base[0], past.unit[0]

        def in_units(answers: Tensor, base: np.ndarray = base, unit: np.ndarray = unit) -> Numbers:
            return _rounded((base + unit * answers.numpy())[:_MOST_STEPS])

        band, share = None, 0.0
        if problem.intervals:
            low, high = problem.intervals[0]
            quantiles = problem.quantiles(own[number, 0])
            band = in_units(quantiles[:, low]), in_units(quantiles[:, high])
            share = round(100 * (problem.levels[high] - problem.levels[low]), 4)
        drawn[name] = DrawnForecast(
            series=name,
            past=_rounded(past.values[0][-_MOST_STEPS:]),
            truth=_rounded((base + unit * episode.query_y[0])[:_MOST_STEPS]),
            forecasts={whose: in_units(found[number, 0]) for whose, found in points.items()},
            band=band,
            band_share=share,
        )
        if len(drawn) == NUM_SERIES:
            break
    return Drawings(forecasts=tuple(drawn.values()), units=_unit_names(tasks.legend))


def draw_regression(networks: Sequence[Network], num_episodes: int) -> Drawings:
    """The first network's answers where an example is one number and so is its target."""
    first, fits = networks[0], []
    spec = first.tasks.input_spec
    count = min(NUM_EPISODES, num_episodes)
    if (spec.num_features, spec.num_outputs) != (1, 1):
        return Drawings()
    for episodes, ((*_, answers),) in query_answers([first], count, first.recipe.num_steps):
        if episodes.query.x.shape[2] != 1:
            return Drawings()
        for e in range(len(episodes)):
            support, query = (
                np.stack([part.x[e].flatten().cpu(), part.y[e].flatten().cpu()], axis=1)
                for part in (episodes.support, episodes.query)
            )
            answered = np.concatenate([query, answers[e].cpu().reshape(-1, 1)], axis=1)
            points = [_rounded(point) for point in support[:_MOST_EXAMPLES]]
            lines = [_rounded(point) for point in sorted(answered.tolist())[:_MOST_STEPS]]
            fits.append(
                DrawnFit(
                    tuple((x, y) for x, y in points), tuple((x, y, own) for x, y, own in lines)
                )
            )
    return Drawings(fits=tuple(fits))


def _episode(episode: Episode, legend: Legend, probabilities: np.ndarray) -> DrawnEpisode:
    """An episode with the answers; `probabilities` `[M, K]`."""
    names = _way_names(episode, legend)
    places = {name: place for place, name in enumerate(names)}

    def examples(part: str) -> list[Example]:
        y: np.ndarray = getattr(episode, f"{part}_y")
        return [
            _example(episode, legend, part, row, names[int(y[row])])
            for row in sorted(range(len(y)), key=lambda row: int(y[row]))
        ]

    found = [probabilities[row] for row in np.argsort(episode.query_y, kind="stable")]
    query = [
        Example(
            truth=example.truth,
            text=example.text,
            lines=example.lines,
            answer=names[int(own.argmax())],
            probability=round(float(own.max()), 4),
        )
        for example, own in zip(examples("query"), found, strict=True)
    ]
    return DrawnEpisode(
        support=_spread(examples("support"), places),
        query=_spread(query, places),
        channels=tuple(name[:_LONGEST_NAME] for name in legend.channels[:_MOST_CHANNELS]),
        are_strokes=legend.are_strokes,
        num_channels=len(legend.channels),
    )


def _spread(examples: list[Example], classes: Mapping[str, int]) -> tuple[Example, ...]:
    """Keeps the first examples of each class, as many as there is room for."""
    most = max(1, _MOST_EXAMPLES // len(classes))
    kept = [[e for e in examples if e.truth == name][:most] for name in classes]
    return tuple(example for own in kept for example in own)[:_MOST_EXAMPLES]


def _way_names(episode: Episode, legend: Legend) -> list[str]:
    """Names the ways; a way without a name in the source is numbered."""
    assert episode.way_classes is not None, "a classification has classes"
    named = [
        legend.classes[number] if 0 <= number < len(legend.classes) else f"class {way + 1}"
        for way, number in enumerate(episode.way_classes.tolist())
    ]
    return [name[:_LONGEST_NAME] for name in named]


def _example(episode: Episode, legend: Legend, part: str, row: int, truth: str) -> Example:
    ids: np.ndarray | None = getattr(episode, f"{part}_ids")
    if legend.texts and ids is not None:
        return Example(truth, text=legend.texts[int(ids[row])][:_LONGEST_TEXT])
    x: np.ndarray = getattr(episode, f"{part}_x")[row]
    lengths: np.ndarray | None = getattr(episode, f"{part}_lengths")
    x = x if lengths is None else x[: int(lengths[row])]
    if legend.are_strokes:
        return Example(truth, lines=_strokes(x))
    if not legend.channels or x.ndim != 2:
        return Example(truth)
    values = x[:, : len(legend.channels)].astype(np.float64)
    if legend.mean is not None and legend.deviation is not None:
        values = legend.mean + legend.deviation * values
    steps = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_STEPS)).round())
    lines = values[steps.astype(int), :_MOST_CHANNELS].T
    return Example(truth, lines=tuple(map(_rounded, lines)))


def _strokes(x: np.ndarray) -> tuple[Numbers, ...]:
    """The lines of a pen: a step with the pen on paper draws from the point before it."""
    lines: list[list[float]] = []
    for before, after in pairwise(x[:_MOST_STEPS]):
        if after[2] <= 0.5:
            continue
        if not lines or lines[-1][-2:] != before[:2].tolist():
            lines.append(before[:2].tolist())
        lines[-1] += after[:2].tolist()
    return tuple(_rounded(np.array(line)) for line in lines)


def _confusion(tasks: TaskDistribution, answers: np.ndarray, targets: np.ndarray) -> Confusion:
    """Counts of `answers` `[R, E, M]` to queries of the classes `targets` `[E, M]`."""
    names: list[str] = []
    place: dict[str, int] = {}
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for number, own in enumerate(targets):
        ways = _way_names(tasks.episode("test", number), tasks.legend)
        for name in ways:
            if name not in place:
                place[name] = len(names)
                names.append(name)
        of_way = np.array([place[name] for name in ways])
        pairs.append((of_way[own], of_way[answers[:, number]]))
    counts = np.zeros((len(names), len(names)))
    for truth, answer in pairs:
        np.add.at(counts, (np.broadcast_to(truth, answer.shape), answer), 1 / len(answers))
    order = sorted(range(len(names)), key=names.__getitem__)
    left_out = max(0, len(names) - MOST_CLASSES)
    if left_out:
        errors = counts.sum(axis=1) - counts.diagonal()
        most = set(np.argsort(-errors, kind="stable")[:MOST_CLASSES].tolist())
        order = [row for row in order if row in most]
    kept = counts[np.ix_(order, order)]
    return Confusion(tuple(names[row] for row in order), tuple(map(_rounded, kept)), left_out)


def _bins(confidence: np.ndarray, is_right: np.ndarray) -> tuple[Bin, ...]:
    """Equal bins of the largest probability, those without a query left out."""
    numbers = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    masks = [numbers == number for number in range(NUM_BINS)]
    return tuple(
        Bin(
            int(mask.sum()),
            round(float(confidence[mask].mean()), 4),
            round(float(is_right[mask].mean()), 4),
        )
        for mask in masks
        if mask.any()
    )


def _series(episode: Episode, legend: Legend) -> str:
    """Names a forecast's series by its unit on the axis with the most units."""
    units = episode.query_units or {}
    axes = {axis: names for axis, names in legend.units.items() if axis in units}
    if not axes:
        return ""
    axis = max(axes, key=lambda axis: len(axes[axis]))
    return str(axes[axis][int(units[axis][0])])[:_LONGEST_NAME]


def _unit_names(legend: Legend) -> dict[str, tuple[str, ...]]:
    """The names of units, but for axes that have too many for a plot."""
    return {
        axis: tuple(name[:_LONGEST_NAME] for name in names)
        for axis, names in legend.units.items()
        if len(names) <= MOST_UNITS
    }


def _rounded(values: np.ndarray | Sequence[float]) -> Numbers:
    """Five significant digits, which is more than a plot shows; 0 for what is not finite."""
    found = np.nan_to_num(np.asarray(values, dtype=np.float64), posinf=0.0, neginf=0.0)
    return tuple(float(f"{value:.5g}") for value in found)
