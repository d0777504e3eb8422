"""Few-shot classification of sequences from a long CSV or Parquet table.

A task is a set of classes no network has seen; where the table has group columns, such as the
person or the device, its sequences come from groups no network has seen either.

Shape legend: E episodes, N examples, S sequences, T time steps, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymeta.data.duplicates import distinct_rows, refuse_copies
from raymeta.data.files import read_each
from raymeta.data.readers.table import TableReader
from raymeta.data.sequences import Sequences, content_of, joined
from raymeta.data.splits import Deal, deal_sealed, deal_units
from raymeta.episodes import SPLITS, Examples, InputSpec, Split, TaskDistribution
from raymeta.errors import DataError
from raymeta.tasks.inputs import Inputs, check_facts
from raymeta.tasks.sampling import ClassPool, ClassSampler, fingerprint, unit_ids
from raymeta.tasks.settings import TableTasks


def load_table(settings: TableTasks, *, seed: int, sealed: bool = False) -> TaskDistribution:
    """The task distribution over the classes of a table.

    Features are standardised by the mean and deviation of the meta-training sequences.

    Args:
        settings: of the tasks.
        seed: of the episodes.
        sealed: whether to use the sealed deal: classes and groups of meta-training are held out.

    Raises:
        DataError: a file is broken, the data hold copies, or they cannot serve such episodes.
    """
    sequences = _read(settings)
    contents = [content_of(x) for x in sequences.x]
    for axis in settings.groups:
        refuse_copies(sequences, contents, axis)
    deal = _deal(sequences, settings)
    if sealed:
        deal = deal_sealed(deal, salt=str(settings.split_seed))
    splits = _splits(sequences, settings, deal)
    used = [row for row, split in enumerate(splits) if split is not None]
    rows, dropped = distinct_rows(
        sequences.select(used),
        [contents[row] for row in used],
        [-SPLITS.index(splits[row] or "train") for row in used],
    )
    chosen = {
        split: sequences.select(used[row] for row in rows if splits[used[row]] == split)
        for split in SPLITS
    }
    pools = {
        split: ClassPool.build(chosen[split].classes, {c: c for c in chosen[split].classes})
        for split in SPLITS
    }
    for split, pool in reversed(pools.items()):
        pool.check(split, settings.num_ways, settings.num_shots + settings.num_queries, "class")

    steps = np.concatenate(chosen["train"].x)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = steps.mean(axis=0), steps.std(axis=0)
    deviation[deviation == 0] = 1.0
    standardised = {s: _standardised(chosen[s], mean, deviation) for s in SPLITS}
    _check_sizes(settings, [mean, deviation, *_largest(standardised.values())])
    longest = max(int(chosen[split].lengths.max()) for split in SPLITS)
    sampler = ClassSampler(
        pools=pools,
        x={s: standardised[s].padded(longest) for s in SPLITS},
        lengths={s: chosen[s].lengths for s in SPLITS},
        units={
            s: {
                settings.target: unit_ids(chosen[s].classes),
                **{axis: unit_ids(chosen[s].groups[axis]) for axis in settings.groups},
            }
            for s in SPLITS
        },
        num_ways=settings.num_ways,
        num_shots=settings.num_shots,
        num_queries=settings.num_queries,
    )
    facts = {
        "features": list(settings.features),
        "mean": mean.tolist(),
        "deviation": deviation.tolist(),
    }
    disjoint = " and ".join([settings.target, *settings.groups])
    return TaskDistribution(
        name="table",
        input_spec=InputSpec(
            "classification", settings.num_ways, num_features=len(settings.features)
        ),
        seed=seed,
        sample_episode=sampler,
        class_mean_features=_means_and_deviations,
        num_train_classes=pools["train"].num_classes,
        note=(
            f"meta-test: {pools['test'].num_classes} classes, {len(chosen['test'])} sequences; no "
            f"{disjoint} of theirs occurs in meta-training"
        ),
        fingerprint=fingerprint(chosen, facts),
        deal=deal,
        facts=facts,
        warnings=tuple(dropped),
    )


def table_inputs(settings: TableTasks, facts: Mapping[str, Any]) -> Inputs:
    """An example is the rows of a sequence: `tasks.features`, in the units of the training data."""
    check_facts(settings, facts, "features")
    mean, deviation = (np.array(facts[key], dtype=np.float64) for key in ("mean", "deviation"))
    expected = (len(settings.features),)
    if mean.shape != expected or deviation.shape != expected or not (deviation > 0).all():
        raise ValueError("mean and deviation do not fit the features")

    return Inputs(
        channels=tuple(settings.features),
        prepare=partial(_prepared, settings.max_steps, mean, deviation),
        sequence=settings.sequence,
        time=settings.time,
        target=settings.target,
        stream_steps=settings.max_steps,
    )


def _prepared(
    max_steps: int,
    mean: np.ndarray,
    deviation: np.ndarray,
    examples: Sequence[np.ndarray],
    names: Sequence[str],
) -> list[np.ndarray]:
    found = []
    for name, x in zip(names, examples, strict=True):
        if len(x) > max_steps:
            raise DataError(
                f"{name}: has {len(x)} time steps, but the network was trained on {max_steps} at "
                "most (tasks.max_steps); cut the sequence up"
            )
        with np.errstate(over="ignore"):
            found.append(((x - mean) / deviation).astype(np.float32))
        if not np.isfinite(found[-1]).all():
            raise DataError(
                f"{name}: holds numbers too large to be standardised; mend them, or see that they "
                "are in the units of the training data"
            )
    return found


def _read(settings: TableTasks) -> Sequences:
    files = settings.data_files()
    if not files:
        raise DataError(
            f"{settings.data_dir}: no file named {settings.files!r:.100} found; set tasks.data_dir "
            "and tasks.files"
        )
    reader = TableReader(
        sequence=settings.sequence,
        target=settings.target,
        features=tuple(settings.features),
        time=settings.time,
        groups=tuple(settings.groups),
    )
    read = read_each(reader, files)
    for path, sequences in zip(files, read, strict=True):
        longest = int(sequences.lengths.argmax())
        if len(sequences.x[longest]) > settings.max_steps:
            raise DataError(
                f"{path}: {sequences.ids[longest]} has {len(sequences.x[longest])} rows, but "
                f"tasks.max_steps is {settings.max_steps}; raise it, or cut the sequence up"
            )
    found = joined(read)
    file_of: dict[str, str] = {}
    for name, place in zip(found.groups[settings.sequence], found.ids, strict=True):
        if name in file_of:
            raise DataError(
                f"{settings.data_dir}: the id of {place} occurs in another file too "
                f"({file_of[name]}); give every sequence an id of its own"
            )
        file_of[name] = place
    return found


def _deal(sequences: Sequences, settings: TableTasks) -> Deal:
    """Classes and the units of every group column, each axis dealt by itself."""
    deal = {
        settings.target: deal_units(
            sequences.classes,
            num_test=settings.test_classes,
            num_val=settings.val_classes,
            salt=f"classes-{settings.split_seed}",
        )
    }
    for axis in settings.groups:
        units = set(sequences.groups[axis])
        if len(units) <= settings.test_groups + settings.val_groups:
            raise DataError(
                f"column {axis} must have more than {settings.test_groups + settings.val_groups} "
                f"groups, since {settings.val_groups} are held out for validation and "
                f"{settings.test_groups} for the test (tasks.val_groups, tasks.test_groups), but "
                f"it has {len(units)}"
            )
        deal[axis] = deal_units(
            units,
            num_test=settings.test_groups,
            num_val=settings.val_groups,
            salt=f"{axis}-{settings.split_seed}",
        )
    return deal


def _splits(sequences: Sequences, settings: TableTasks, deal: Deal) -> list[Split | None]:
    """The split of each sequence: that of its class and all its groups; None where they differ."""
    found: list[Split | None] = []
    for row, label in enumerate(sequences.classes):
        own = {deal[axis][sequences.groups[axis][row]] for axis in settings.groups}
        own.add(deal[settings.target][label])
        found.append(own.pop() if len(own) == 1 else None)
    return found


def _largest(standardised: Iterable[Sequences]) -> list[np.ndarray]:
    """The largest magnitude of each feature in single precision, as networks see it, `[D]`."""
    with np.errstate(over="ignore"):
        return [np.abs(np.concatenate(s.x).astype(np.float32)).max(axis=0) for s in standardised]


def _check_sizes(settings: TableTasks, values: Sequence[np.ndarray]) -> None:
    """Refuses features of which networks would see infinities, or nothing.

    Raises:
        DataError: naming the first column for which one of the `values` `[D]` is not finite.
    """
    is_finite = np.isfinite(np.stack(values)).all(axis=0)
    if not is_finite.all():
        raise DataError(
            f"{settings.data_dir}, column {settings.features[int(np.argmin(is_finite))]}: holds "
            "numbers too large to be standardised; mend them, rescale the column, or leave it out "
            "of tasks.features"
        )


def _standardised(sequences: Sequences, mean: np.ndarray, deviation: np.ndarray) -> Sequences:
    return Sequences(
        x=tuple((x - mean) / deviation for x in sequences.x),
        classes=sequences.classes,
        groups=sequences.groups,
        ids=sequences.ids,
    )


def _means_and_deviations(examples: Examples) -> Tensor:
    """Mean and standard deviation of every feature over the valid steps, `[E, N, 2 * D]`."""
    assert examples.lengths is not None, "sequences of a table have lengths"
    counts = examples.lengths[..., None].to(examples.x.dtype)
    steps = torch.arange(examples.x.shape[2], device=examples.x.device)
    valid = (steps < examples.lengths[..., None])[..., None]
    mean = (examples.x * valid).sum(dim=2) / counts
    squares = (((examples.x - mean.unsqueeze(2)) * valid) ** 2).sum(dim=2) / counts
    return torch.cat([mean, squares.sqrt()], dim=-1)
