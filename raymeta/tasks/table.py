"""Few-shot classification of sequences from a long table.

A task is a set of unseen classes (`kind: classes`), or an unseen group such as a patient with
classes that all groups share (`kind: groups`). No group is in two splits.  `kind: forecast` is in
`raymeta.tasks.forecast`.

Shape legend: E episodes, N examples, S sequences, T time steps, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.data.duplicates import distinct_rows, refuse_copies
from raymeta.data.missing import (
    carried,
    interpolated,
    observed,
    since_observed,
    time_differences,
)
from raymeta.data.sequences import Sequences, content_of
from raymeta.data.splits import Deal, deal_sealed, deal_units
from raymeta.episodes import SPLITS, Examples, InputSpec, Legend, Split, TaskDistribution
from raymeta.errors import DataError, RunError, shown
from raymeta.tasks.dealt import Dealt, deal_groups, sizes, splits_of
from raymeta.tasks.forecast import deal_forecast, load_forecast
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.sampling import (
    ClassPool,
    ClassSampler,
    GroupPool,
    GroupSampler,
    fingerprint,
    unit_ids,
    unit_names,
)
from raymeta.tasks.settings import TableTasks
from raymeta.tasks.table_files import read_sequences

_SHOWN = 3  # most names listed in a message


def load_table(settings: TableTasks, *, seed: int, sealed: bool = False) -> TaskDistribution:
    """The task distribution of a table.

    Features are standardised by the mean and deviation of the meta-training sequences.

    Args:
        settings: of the tasks.
        seed: of the episodes.
        sealed: whether to use the sealed deal: classes and groups of meta-training are held out.

    Raises:
        DataError: a file is broken, the data hold copies, or they cannot serve such episodes.
    """
    if settings.kind == "forecast":
        return load_forecast(settings, seed=seed, sealed=sealed)
    dealt = deal_table(settings, sealed=sealed)
    chosen = dealt.chosen
    num_examples = settings.num_shots + settings.num_queries
    by_class = {s: ClassPool.build(c.classes, {n: n for n in c.classes}) for s, c in chosen.items()}
    by_group = {
        s: GroupPool.build(c.groups[settings.groups[0]], c.classes, dealt.classes)
        for s, c in chosen.items()
        if settings.kind == "groups"
    }
    for split in reversed(SPLITS):
        if settings.kind == "groups":
            by_group[split].check(split, num_examples)
        else:
            by_class[split].check(split, settings.num_ways, num_examples, "class")
    if settings.kind == "groups" and settings.num_ways != len(dealt.classes):
        raise DataError(
            f"tasks.num_ways must be {len(dealt.classes)}, the number of classes in column "
            f"{settings.target}, since tasks.kind is groups, but got {settings.num_ways}"
        )
    features = _feature_names(settings)
    values = {split: _features(chosen[split], settings) for split in SPLITS}
    mean, deviation = _mean_and_deviation(settings, features, values["train"])
    standardised = {s: _standardised(values[s], mean, deviation) for s in SPLITS}
    _check_sizes(settings, features, [mean, deviation, *_largest(standardised.values())])
    longest = max(int(chosen[split].lengths.max()) for split in SPLITS)
    x = {s: standardised[s].padded(longest) for s in SPLITS}
    lengths = {s: chosen[s].lengths for s in SPLITS}
    units = {
        s: {axis: unit_ids(chosen[s].groups[axis]) for axis in settings.groups}
        | {_new_axis(settings): unit_ids(_new_units(chosen[s], settings))}
        for s in SPLITS
    }
    shots, queries = settings.num_shots, settings.num_queries
    facts: dict[str, Any] = {
        "features": features,
        "mean": mean.tolist(),
        "deviation": deviation.tolist(),
    }
    is_by_class = settings.kind == "classes"
    if not is_by_class:
        facts["classes"] = list(dealt.classes)
    return TaskDistribution(
        name="table",
        input_spec=InputSpec("classification", settings.num_ways, num_features=len(features)),
        seed=seed,
        sample_episode=ClassSampler(by_class, x, lengths, units, settings.num_ways, shots, queries)
        if is_by_class
        else GroupSampler(by_group, x, lengths, units, shots, queries),
        class_mean_features=_means_and_deviations,
        num_train_classes=by_class["train"].num_classes,
        fixed_labels=not is_by_class,
        note=_note(dealt, settings),
        fingerprint=fingerprint(chosen, facts),
        deal=dealt.deal,
        facts=facts,
        warnings=dealt.warnings,
        legend=Legend(
            classes=sorted(set(chosen["test"].classes)) if is_by_class else dealt.classes,
            units=unit_names(
                {**chosen["test"].groups, _new_axis(settings): _new_units(chosen["test"], settings)}
            ),
            channels=settings.features,
            mean=mean[: len(settings.features)],
            deviation=deviation[: len(settings.features)],
        ),
    )


def table_inputs(settings: TableTasks, facts: Mapping[str, Any]) -> Inputs:
    """An example is the rows of a sequence: `tasks.features`, in the units of the training data.

    Raises:
        RunError: the network forecasts, so that it takes the past of a whole series.
    """
    if settings.kind == "forecast":
        raise RunError(
            "a network that was trained with tasks.kind: forecast takes the past of whole series: "
            "`raymeta forecast RUN FILE`, or raymeta.load_forecaster(RUN)"
        )
    features = _feature_names(settings)
    if list(facts["features"]) != features:
        raise ValueError(
            f"tasks.features is {features!r:.80}, but was {facts['features']!r:.80} in training"
        )
    mean, deviation = (np.array(facts[key], dtype=np.float64) for key in ("mean", "deviation"))
    if not mean.shape == deviation.shape == (len(features),) or not (deviation > 0).all():
        raise ValueError("mean and deviation do not fit the features")
    fills_in = settings.missing != "refuse" or settings.time_differences
    return Inputs(
        channels=tuple(settings.features),
        prepare=partial(_prepared, settings, mean, deviation),
        sequence=settings.sequence,
        time=settings.time,
        target=settings.target,
        classes=tuple(map(str, facts.get("classes", ()))),
        stream_steps=None if fills_in else settings.max_steps,
        scaling=None if fills_in else (mean, deviation),
        features=tuple(features) if fills_in else (),
        may_miss=settings.missing != "refuse",
        is_timed=fills_in and settings.time is not None,
    )


def _prepared(
    settings: TableTasks,
    mean: np.ndarray,
    deviation: np.ndarray,
    examples: Sequence[np.ndarray],
    names: Sequence[str],
) -> list[np.ndarray]:
    size, found = len(settings.features), []
    for name, x in zip(names, examples, strict=True):
        if len(x) > settings.max_steps:
            raise DataError(
                f"{name}: has {len(x)} time steps, but the network was trained on "
                f"{settings.max_steps} at most (tasks.max_steps); cut the sequence up"
            )
        times = x[:, size] if x.shape[1] > size else None
        filled = _filled_in(x[:, :size], times, settings, name)
        with np.errstate(over="ignore"):
            found.append(_deviations(filled, mean, deviation).astype(np.float32))
        if not np.isfinite(found[-1]).all():
            raise DataError(
                f"{name}: holds numbers too large to be standardised; mend them, or see that they "
                "are in the units of the training data"
            )
    return found


def deal_table(settings: TableTasks, *, sealed: bool = False) -> Dealt:
    """Reads a table and deals its sequences into splits, whether or not they serve any episodes.

    Raises:
        DataError: a file is broken, the data hold copies, or there are too few groups to deal.
    """
    if settings.kind == "forecast":
        return deal_forecast(settings, sealed=sealed)
    sequences, unread = read_sequences(settings)
    contents = [content_of(x) for x in sequences.x]
    for axis in settings.groups:
        refuse_copies(sequences, contents, axis)
    num_examples = settings.num_shots + settings.num_queries
    warnings, left_out = list(unread), Counter[str]()
    task = settings.groups[0] if settings.kind == "groups" else None
    classes = tuple(sorted(set(sequences.classes)))

    def large_enough(rows: list[int], place: str) -> list[int]:
        """Leaves out small classes or groups with a warning."""
        if settings.small_classes == "refuse":
            return rows
        small = _small(sizes(sequences.select(rows), task, classes), task, num_examples)
        units = sequences.classes if task is None else sequences.groups[task]
        left = set(small)
        kept = [row for row in rows if units[row] not in left]
        if small:
            left_out[_TOO_SMALL] += len(rows) - len(kept)
            listed = ", ".join(map(shown, small[:_SHOWN])) + ", …" * (len(small) > _SHOWN)
            of = "classes have" if task is None else f"units of {task} have a class with"
            warnings.append(
                f"{place}: {len(small)} {of} fewer than {num_examples} sequences; left out, with "
                f"{len(rows) - len(kept)} sequences: {listed}"
            )
        return kept

    kept = large_enough(list(range(len(sequences))), str(settings.data_dir))
    deal = _deal(sequences.select(kept), settings)
    if sealed:
        deal = deal_sealed(deal, salt=str(settings.split_seed))
    split_of = dict(zip(kept, splits_of(sequences.select(kept), deal), strict=True))
    used = [row for row in kept if split_of[row] is not None]
    left_out[_BETWEEN] += len(kept) - len(used)
    rows, dropped = distinct_rows(
        sequences.select(used),
        [contents[row] for row in used],
        [-SPLITS.index(split_of[row] or "train") for row in used],
    )
    warnings += dropped
    left_out[_COPIES] += len(used) - len(rows)
    chosen = {
        split: sequences.select(
            large_enough(
                [used[row] for row in rows if split_of[used[row]] == split],
                f"meta-{split} split",
            )
        )
        for split in SPLITS
    }
    return Dealt(
        chosen=chosen,
        deal=deal,
        num_read=len(sequences),
        left_out={reason: count for reason, count in left_out.items() if count},
        target=settings.target,
        task=task,
        groups=tuple(settings.groups),
        classes=classes,
        warnings=tuple(warnings),
    )


_BETWEEN = "their class and their groups, or two of their groups, are in different splits"
_COPIES = "copies of others, or of equal content and different classes"
_TOO_SMALL = "of a class or group with too few sequences (tasks.small_classes)"


def _small(found: Mapping[str, Mapping[str, int]], dealt_by: str | None, least: int) -> list[str]:
    """Finds the classes with fewer than `least` sequences, or the groups that have such a class.

    Args:
        found: sequences of each class by task, as `raymeta.tasks.dealt.sizes` counts them.
        dealt_by: the axis of the tasks; None for classes.
        least: sequences that an episode takes of a class.
    """
    if dealt_by is None:
        return [label for label, count in found[""].items() if count < least]
    return [unit for unit, counts in found.items() if min(counts.values()) < least]


def _deal(sequences: Sequences, settings: TableTasks) -> Deal:
    """Deals the classes, if tasks need unseen ones, and the units of every group column."""
    deal: dict[str, Mapping[str, Split]] = {}
    if settings.kind == "classes":
        deal[settings.target] = deal_units(
            sequences.classes,
            num_test=settings.test_classes,
            num_val=settings.val_classes,
            salt=f"classes-{settings.split_seed}",
        )
    return deal | deal_groups(sequences, settings.groups, settings)


def _new_axis(settings: TableTasks) -> str:
    """The axis that is new at deployment beside the groups: class or sequence."""
    return settings.target if settings.kind == "classes" else settings.sequence


def _new_units(sequences: Sequences, settings: TableTasks) -> Sequence[str]:
    is_class = settings.kind == "classes"
    return sequences.classes if is_class else sequences.groups[settings.sequence]


def _note(dealt: Dealt, settings: TableTasks) -> str:
    tested = dealt.chosen["test"]
    if settings.kind == "classes":
        what = f"{len(set(tested.classes))} classes"
        disjoint = " and ".join([settings.target, *settings.groups])
    else:
        what = f"{len(set(tested.groups[settings.groups[0]]))} × {settings.groups[0]}"
        disjoint = " and ".join(settings.groups)
    return (
        f"meta-test: {what}, {len(tested)} sequences; no {disjoint} of theirs occurs in "
        "meta-training"
    )


def _feature_names(settings: TableTasks) -> list[str]:
    """Names the network's inputs at a time step, in their order."""
    names = list(settings.features)
    if settings.missing == "mask":
        names += [f"{name} observed" for name in settings.features]
        names += [f"{name} time since observed" for name in settings.features]
    return names + (["time difference"] if settings.time_differences else [])


def _features(sequences: Sequences, settings: TableTasks) -> Sequences:
    """Fills the sequences in; NaN before the first observation.

    Raises:
        DataError: a sequence has no number in a column to interpolate.
    """
    times = sequences.times or (None,) * len(sequences)
    filled = (
        _filled_in(x, own, settings, place)
        for x, own, place in zip(sequences.x, times, sequences.ids, strict=True)
    )
    return replace(sequences, x=tuple(filled))


def _filled_in(
    x: np.ndarray, times: np.ndarray | None, settings: TableTasks, place: str
) -> np.ndarray:
    """One sequence `[T, C]` as `_features` has it, `[T, D]`; without times its steps are even."""
    if times is None:
        times = np.arange(len(x), dtype=np.float64)
    parts = [x]
    if settings.missing == "interpolate":
        parts = [interpolated(x, times)]
        empty = np.isnan(parts[0]).any(axis=0)
        if empty.any():
            raise DataError(
                f"{place}: column {settings.features[int(np.argmax(empty))]} has "
                "no number in this sequence, so that nothing can be interpolated; set "
                "tasks.missing to mask, or remove the sequence or the column"
            )
    elif settings.missing == "mask":
        parts = [carried(x), observed(x), since_observed(x, times)]
    if settings.time_differences:
        parts.append(time_differences(times))
    return np.concatenate(parts, axis=1)


def _mean_and_deviation(
    settings: TableTasks, features: Sequence[str], training: Sequences
) -> tuple[np.ndarray, np.ndarray]:
    """Computes each feature's mean and deviation over the steps that have it, `[D]` each."""
    steps = np.concatenate(training.x)
    unseen = np.isnan(steps).all(axis=0)
    if unseen.any():
        raise DataError(
            f"{settings.data_dir}, column {features[int(np.argmax(unseen))]}: has no number in "
            "meta-training; leave it out of tasks.features"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = np.nanmean(steps, axis=0), np.nanstd(steps, axis=0)
    deviation[deviation == 0] = 1.0
    return mean, deviation


def _largest(standardised: Iterable[Sequences]) -> list[np.ndarray]:
    """The largest magnitude of each feature in single precision, as networks see it, `[D]`."""
    with np.errstate(over="ignore"):
        return [np.abs(np.concatenate(s.x).astype(np.float32)).max(axis=0) for s in standardised]


def _check_sizes(
    settings: TableTasks, features: Sequence[str], values: Sequence[np.ndarray]
) -> None:
    """Refuses features that networks would see as infinite or constant zero.

    Raises:
        DataError: naming the first column for which one of the `values` `[D]` is not finite.
    """
    is_finite = np.isfinite(np.stack(values)).all(axis=0)
    if not is_finite.all():
        raise DataError(
            f"{settings.data_dir}, column {features[int(np.argmin(is_finite))]}: holds "
            "numbers too large to be standardised; mend them, rescale the column, or leave it out "
            "of tasks.features"
        )


def _standardised(sequences: Sequences, mean: np.ndarray, deviation: np.ndarray) -> Sequences:
    """Standardises the features; unobserved ones get the mean."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = (_deviations(own, mean, deviation) for own in sequences.x)
        return replace(sequences, x=tuple(x))


def _deviations(x: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Numbers `[T, D]` in deviations from the mean; the mean where nothing was observed so far."""
    return np.where(np.isnan(x), 0.0, (x - mean) / deviation)


def _means_and_deviations(examples: Examples) -> Tensor:
    """Computes every feature's mean and standard deviation over valid steps, `[E, N, 2 * D]`."""
    assert examples.lengths is not None, "sequences of a table have lengths"
    counts = examples.lengths[..., None].to(examples.x.dtype)
    steps = torch.arange(examples.x.shape[2], device=examples.x.device)
    valid = (steps < examples.lengths[..., None])[..., None]
    mean = (examples.x * valid).sum(dim=2) / counts
    squares = (((examples.x - mean.unsqueeze(2)) * valid) ** 2).sum(dim=2) / counts
    return torch.cat([mean, squares.sqrt()], dim=-1)
