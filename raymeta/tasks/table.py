"""Few-shot classification of sequences from a long table.

A task is a set of unseen classes (`kind: classes`), or an unseen group such as a patient with
classes that all groups share (`kind: groups`). No group is in two splits.  `kind: forecast` is in
`raymeta.tasks.forecast`.

Shape legend: E episodes, N examples, S sequences, T time steps, D features.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.data.duplicates import distinct_rows, refuse_copies
from raymeta.data.sequences import Sequences
from raymeta.data.splits import Deal, deal_sealed, deal_units
from raymeta.episodes import SPLITS, Examples, InputSpec, Legend, Split, TaskDistribution
from raymeta.errors import DataError, RunError, shown
from raymeta.tasks.dealt import Dealt, deal_groups, once_while_held, sizes, splits_of
from raymeta.tasks.forecast import deal_forecast, load_forecast
from raymeta.tasks.inputs import Inputs
from raymeta.tasks.levels import known_levels
from raymeta.tasks.preparation import (
    Prepared,
    feature_names,
    prepared_examples,
    windows_of,
)
from raymeta.tasks.ready import Ready, ready_table, recorded_last
from raymeta.tasks.regression import deal_regression, load_regression
from raymeta.tasks.sampling import (
    ClassPool,
    ClassSampler,
    unit_ids,
    unit_names,
)
from raymeta.tasks.sides import Draw, SidePool, SideSampler
from raymeta.tasks.table_files import read_sequences
from raymeta.tasks.table_sections import RemainingLife
from raymeta.tasks.table_settings import TableTasks

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
    if settings.has_numbers:
        return load_regression(settings, seed=seed, sealed=sealed)

    def make() -> Ready:
        found = deal_table(settings, sealed=sealed)
        _pools(settings, found)  # refuses what preparing would not make servable
        return Ready.of(settings, found, _facts)

    ready = ready_table(settings, sealed=sealed, make=make)
    dealt, draw = ready.dealt, Draw.of(settings)
    chosen = dealt.chosen
    by_class, by_group = _pools(settings, dealt)
    units = {
        s: {axis: unit_ids(chosen[s].groups[axis]) for axis in settings.groups}
        | {_new_axis(settings): unit_ids(_new_units(chosen[s], settings))}
        for s in SPLITS
    }
    is_by_class = settings.kind == "classes"

    def distribution(own: Prepared, digest: str) -> TaskDistribution:
        return TaskDistribution(
            name=settings.source,
            input_spec=InputSpec(
                "classification", settings.num_ways, num_features=own.num_features
            ),
            seed=seed,
            sample_episode=ClassSampler(
                by_class,
                own.x,
                own.longest,
                units,
                settings.num_ways,
                draw.num_shots,
                draw.num_queries,
            )
            if is_by_class
            else SideSampler(by_group, own, units, draw),
            class_mean_features=_means_and_deviations,
            num_train_classes=by_class["train"].num_classes,
            fixed_labels=not is_by_class,
            note=_note(dealt, settings),
            fingerprint=digest,
            deal=dealt.deal,
            facts=_facts(own, dealt),
            warnings=dealt.warnings,
            legend=_legend(dealt, settings, own.facts),
        )

    return recorded_last(list(map(distribution, ready.views, ready.fingerprints)))


def _facts(own: Prepared, dealt: Dealt) -> dict[str, Any]:
    """The facts about its inputs that a network needs; with the classes if all tasks share them."""
    return {**own.facts, **({} if dealt.task is None else {"classes": list(dealt.classes)})}


def _pools(
    settings: TableTasks, dealt: Dealt
) -> tuple[dict[Split, ClassPool], dict[Split, SidePool]]:
    """The pools that episodes draw from: the classes of each split, or its groups.

    Raises:
        DataError: they cannot serve such episodes.
    """
    chosen, draw = dealt.chosen, Draw.of(settings)
    windows = windows_of(settings, chosen)
    by_class = {s: ClassPool.build(c.classes, {n: n for n in c.classes}) for s, c in chosen.items()}
    by_group = {
        s: SidePool.build(c.groups[settings.groups[0]], c.classes, dealt.classes, windows[s])
        for s, c in chosen.items()
        if settings.kind == "groups"
    }
    for split in reversed(SPLITS):
        if settings.kind == "groups":
            by_group[split].check(split, draw)
        else:
            num_examples = settings.num_shots + settings.num_queries
            by_class[split].check(split, settings.num_ways, num_examples, "class")
    if settings.kind == "groups" and settings.num_ways != len(dealt.classes):
        raise DataError(
            f"tasks.num_ways must be {len(dealt.classes)}, the number of classes in column "
            f"{settings.target_name}, since tasks.kind is groups, but got {settings.num_ways}"
        )
    return by_class, by_group


def table_inputs(settings: TableTasks, facts: Mapping[str, Any]) -> Inputs:
    """An example is the rows of a sequence: `tasks.features`, in the units of the training data,
    and `tasks.categories`.

    Raises:
        RunError: the network forecasts, so that it takes the past of a whole series.
    """
    if settings.kind == "forecast":
        raise RunError(
            "a network that was trained with tasks.kind: forecast takes the past of whole series: "
            "`raymeta forecast RUN FILE`, or raymeta.load_forecaster(RUN)"
        )
    levels = known_levels(settings, facts)
    features = feature_names(settings, settings.spectrum, levels)
    if list(facts["features"]) != features:
        raise ValueError(
            f"tasks.features is {features!r:.80}, but was {facts['features']!r:.80} in training "
            "(tasks.features, tasks.spectrum)"
        )
    mean, deviation = (np.array(facts[key], dtype=np.float64) for key in ("mean", "deviation"))
    if not mean.shape == deviation.shape == (len(features),) or not (deviation > 0).all():
        raise ValueError("mean and deviation do not fit the features")
    scale = facts["target"] if settings.has_numbers else None
    fills_in = settings.missing != "refuse" or settings.time_differences
    prepared_by = {
        "tasks.missing": settings.missing != "refuse",
        "tasks.time_differences": settings.time_differences,
        "tasks.spectrum": settings.spectrum is not None,
        "tasks.categories": bool(levels),
    }
    is_plain = not any(prepared_by.values())
    return Inputs(
        channels=settings.channels,
        prepare=partial(prepared_examples, settings, levels, mean, deviation),
        sequence=settings.sequence,
        time=settings.time,
        target=settings.target_name,
        numeric_target=settings.has_numbers,
        target_scale=None if scale is None else (float(scale["mean"]), float(scale["deviation"])),
        target_at_end=settings.has_numbers,
        is_target_computed=isinstance(settings.target, RemainingLife),
        classes=tuple(map(str, facts.get("classes", ()))),
        stream_steps=settings.example_steps if is_plain else None,
        prepared_by=tuple(key for key, is_set in prepared_by.items() if is_set),
        scaling=(mean, deviation),
        features=() if is_plain else tuple(features),
        may_miss=settings.missing != "refuse",
        is_timed=fills_in and settings.time is not None,
        times_are_dates=facts.get("times_are_dates"),  # unknown to runs of before
        time_steps=_time_steps(facts),
        levels=levels,
    )


def _time_steps(facts: Mapping[str, Any]) -> tuple[float, float] | None:
    if "time_steps" not in facts:  # the network reads no times, or the run is of before
        return None
    low, high = map(float, facts["time_steps"])
    if not 0 <= low <= high < math.inf:
        raise ValueError("time_steps must be two numbers from 0, the lower first")
    return low, high


@once_while_held
def deal_table(settings: TableTasks, *, sealed: bool = False) -> Dealt:
    """Reads a table and deals its sequences into splits, whether or not they serve any episodes.

    Raises:
        DataError: a file is broken, the data hold copies, or there are too few groups to deal.
    """
    if settings.kind == "forecast":
        return deal_forecast(settings, sealed=sealed)
    if settings.has_numbers:
        return deal_regression(settings, sealed=sealed)
    sequences, unread = read_sequences(settings)
    contents = sequences.contents
    for axis in settings.groups:
        refuse_copies(sequences, contents, axis)
    # Of windows the sides are checked later: here there must be a sequence for each.
    num_examples = 2 if settings.window else settings.num_shots + settings.num_queries
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
        target=settings.target_name,
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
        deal[settings.target_name] = deal_units(
            sequences.classes,
            num_test=settings.test_classes,
            num_val=settings.val_classes,
            salt=f"classes-{settings.split_seed}",
        )
    return deal | deal_groups(sequences, settings.groups, settings)


def _new_axis(settings: TableTasks) -> str:
    """The axis that is new at deployment beside the groups: class or sequence."""
    return settings.target_name if settings.kind == "classes" else settings.sequence


def _new_units(sequences: Sequences, settings: TableTasks) -> Sequence[str]:
    is_class = settings.kind == "classes"
    return sequences.classes if is_class else sequences.groups[settings.sequence]


def _note(dealt: Dealt, settings: TableTasks) -> str:
    tested = dealt.chosen["test"]
    if settings.kind == "classes":
        what = f"{len(set(tested.classes))} classes"
        disjoint = " and ".join([settings.target_name, *settings.groups])
    else:
        what = f"{len(set(tested.groups[settings.groups[0]]))} × {settings.groups[0]}"
        disjoint = " and ".join(settings.groups)
    return (
        f"meta-test: {what}, {len(tested)} sequences; no {disjoint} of theirs occurs in "
        "meta-training"
    )


def _legend(dealt: Dealt, settings: TableTasks, facts: Mapping[str, Any]) -> Legend:
    """The names and units for drawing meta-test episodes; spectra are not drawn."""
    tested, by_class = dealt.chosen["test"], settings.kind == "classes"
    size = 0 if settings.spectrum is not None else len(settings.features)
    return Legend(
        classes=sorted(set(tested.classes)) if by_class else dealt.classes,
        units=unit_names({**tested.groups, _new_axis(settings): _new_units(tested, settings)}),
        channels=settings.features[:size],
        mean=np.array(facts["mean"][:size]),
        deviation=np.array(facts["deviation"][:size]),
    )


def _means_and_deviations(examples: Examples) -> Tensor:
    """Computes every feature's mean and standard deviation over valid steps, `[E, N, 2 * D]`."""
    assert examples.lengths is not None, "sequences of a table have lengths"
    counts = examples.lengths[..., None].to(examples.x.dtype)
    steps = torch.arange(examples.x.shape[2], device=examples.x.device)
    valid = (steps < examples.lengths[..., None])[..., None]
    mean = (examples.x * valid).sum(dim=2) / counts
    squares = (((examples.x - mean.unsqueeze(2)) * valid) ** 2).sum(dim=2) / counts
    return torch.cat([mean, squares.sqrt()], dim=-1)
