"""The dealt and prepared sequences of a table, for training.

Of a large table they are made once a machine, and mapped into memory by all workers and trials
(see `raymeta.data.mapped`): nobody holds the table itself, or reads it again.

Shape legend: S sequences, R rows, D features.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raymeta.data.files import digest_of, forget_read, stamps
from raymeta.data.mapped import keep_arrays, open_arrays
from raymeta.data.missing import typical_steps
from raymeta.data.ragged import Ragged
from raymeta.data.sequences import Sequences
from raymeta.episodes import SPLITS, Split, TaskDistribution
from raymeta.run_format import installed_version
from raymeta.storage.cache import cache_folder, one_at_a_time
from raymeta.tasks.dealt import Dealt
from raymeta.tasks.levels import unknown_in_splits
from raymeta.tasks.preparation import Prepared, prepared
from raymeta.tasks.python_settings import PythonTasks
from raymeta.tasks.sampling import fingerprint
from raymeta.tasks.table_settings import TableTasks

LARGE_BYTES = 16 << 20  # of files; a smaller table is read again sooner than a file is opened
_FORMAT = "raymeta tables 2"
# Of the settings, what counts for drawing alone.
_FOR_DRAWS = {"num_ways", "num_shots", "num_queries", "support", "windows_each"}
_log = logging.getLogger(__name__)

# What networks must know beside `Prepared.facts`.
Facts = Callable[[Prepared, Dealt], Mapping[str, Any]]


@dataclass(frozen=True)
class Ready:
    """A table that episodes can be drawn from.

    `views` are what networks read and, if they read spectra, what was recorded; `fingerprints` are
    those of each.  Where they were mapped, the sequences of `dealt` have labels, lengths and
    targets, but no features.  Forecasts have no views: they are cut from the sequences
    themselves, each of which has its `cuts`, and their one fingerprint; `facts` are what
    networks must know of those.
    """

    dealt: Dealt
    views: tuple[Prepared, ...]
    fingerprints: tuple[str, ...]
    cuts: Mapping[Split, Ragged] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: TableTasks, dealt: Dealt, facts: Facts) -> Ready:
        """Prepares what was dealt.

        Raises:
            DataError: a column has no number where one is needed, or too large ones.
        """
        spectra = [settings.spectrum, *([None] if settings.spectrum is not None else [])]
        views = tuple(prepared(settings, dealt.chosen, spectrum) for spectrum in spectra)
        found = tuple(fingerprint(dealt.chosen, facts(own, dealt)) for own in views)
        # After the fingerprint, which runs have that began before this was kept.
        if settings.reads_times:
            of_times = _facts_of_times(dealt.chosen["train"])
            views = tuple(replace(own, facts={**own.facts, **of_times}) for own in views)
        unknown = unknown_in_splits(settings, dealt.chosen, views[0].facts)
        return cls(replace(dealt, warnings=(*dealt.warnings, *unknown)), views, found)


def ready_table(settings: TableTasks, *, sealed: bool, make: Callable[[], Ready]) -> Ready:
    """Makes a table ready; a large one is kept for the other processes of this machine and user.

    Several processes may ask at once: one makes it, the others wait and map it.

    Args:
        settings: of the tasks.
        sealed: whether the deal is the sealed one.
        make: reads, deals and prepares the table.

    Raises:
        DataError: a file is broken, or cannot serve the tasks.
    """
    files = settings.data_files()
    # What a function of the user's own reads besides these files is not known.
    is_known = not isinstance(settings, PythonTasks)
    if not is_known or sum(size for _, size, _ in stamps(files)) < LARGE_BYTES:
        return make()
    counts = settings.small_classes == "leave_out" or settings.kind == "forecast"
    ignored = set() if counts else _FOR_DRAWS
    content = [
        *(_FORMAT, installed_version("raymeta"), np.__version__, sealed, digest_of(files)),
        settings.model_dump_json(exclude=ignored),
    ]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    folder = cache_folder("tables")
    if (found := open_arrays(folder, key)) is not None:
        return _unpacked(settings, *found)
    with one_at_a_time(folder):
        if (found := open_arrays(folder, key)) is not None:
            return _unpacked(settings, *found)
        made = make()
        try:
            keep_arrays(folder, key, *_packed(made))
        except OSError as error:
            _log.warning(
                "%s: the prepared table cannot be kept (%s): every process holds it by itself; "
                "make room there, or set XDG_CACHE_HOME to a folder that has it",
                folder,
                error.strerror or error,
            )
            return made
    found = open_arrays(folder, key)
    forget_read()
    return made if found is None else _unpacked(settings, *found)


def recorded_last(found: Sequence[TaskDistribution]) -> TaskDistribution:
    """The distribution of the first view; the last view is what was recorded, if there are two."""
    first, *recorded = found
    return replace(first, recorded=recorded[0]) if recorded else first


def _facts_of_times(training: Sequences) -> dict[str, Any]:
    """What tells later times of another kind or unit from those of meta-training.

    `time_steps` are the 1st and the 99th percentile of the sequences' typical steps.
    """
    facts: dict[str, Any] = {}
    if training.are_dates is not None:
        facts["times_are_dates"] = training.are_dates
    if len(steps := typical_steps(training.times)):
        facts["time_steps"] = np.quantile(steps, (0.01, 0.99)).tolist()
    return facts


def _packed(ready: Ready) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    dealt, arrays, labels = ready.dealt, dict[str, np.ndarray](), dict[str, list[str]]()
    for split in SPLITS:
        own = dealt.chosen[split]
        arrays[f"{split} lengths"] = own.lengths
        for axis, values in {"class": own.classes, **_named(own.groups)}.items():
            number: dict[str, int] = {}
            codes = [number.setdefault(label, len(number)) for label in values]
            arrays[f"{split} {axis}"] = np.array(codes, dtype=np.int32)
            labels[f"{split} {axis}"] = list(number)
        if own.targets:
            arrays[f"{split} targets"] = np.concatenate(own.targets)
        for place, view in enumerate(ready.views):
            arrays[f"{split} values {place}"] = view.x[split].values
            arrays[f"{split} starts {place}"] = view.x[split].starts
            arrays[f"{split} lengths {place}"] = view.x[split].lengths
        if split in ready.cuts:
            arrays[f"{split} x"] = np.concatenate(own.x)
            arrays[f"{split} cuts"] = ready.cuts[split].values
            arrays[f"{split} numbers of cuts"] = ready.cuts[split].lengths
    return arrays, {
        "labels": labels,
        "axes": list(dealt.chosen["train"].groups),
        "deal": dealt.deal,
        "num_read": dealt.num_read,
        "left_out": dealt.left_out,
        "target": dealt.target,
        "task": dealt.task,
        "groups": dealt.groups,
        "classes": dealt.classes,
        "warnings": dealt.warnings,
        "facts": [view.facts for view in ready.views],
        "facts of series": ready.facts,
        "fingerprints": ready.fingerprints,
    }


def _named(groups: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    return {f"group {axis}": units for axis, units in groups.items()}


def _unpacked(
    settings: TableTasks, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> Ready:
    chosen = {}
    for split in SPLITS:

        def labels(axis: str, split: str = split) -> tuple[str, ...]:
            names = facts["labels"][f"{split} {axis}"]
            return tuple(names[code] for code in arrays[f"{split} {axis}"].tolist())

        lengths = arrays[f"{split} lengths"]
        targets = arrays.get(f"{split} targets")
        chosen[split] = Sequences(
            x=Ragged.contiguous(arrays.get(f"{split} x", _none(lengths)), lengths),
            classes=labels("class"),
            groups={axis: labels(f"group {axis}") for axis in facts["axes"]},
            ids=(),
            targets=() if targets is None else Ragged.contiguous(targets, lengths),
        )
    dealt = Dealt(
        chosen=chosen,
        deal=facts["deal"],
        num_read=facts["num_read"],
        left_out=facts["left_out"],
        target=facts["target"],
        task=facts["task"],
        groups=tuple(facts["groups"]),
        classes=tuple(facts["classes"]),
        warnings=tuple(facts["warnings"]),
    )
    views = tuple(
        Prepared.of(
            settings,
            chosen,
            {
                split: Ragged(
                    arrays[f"{split} values {place}"],
                    arrays[f"{split} starts {place}"],
                    arrays[f"{split} lengths {place}"],
                )
                for split in SPLITS
            },
            own,
        )
        for place, own in enumerate(facts["facts"])
    )
    cuts = {
        split: Ragged.contiguous(arrays[f"{split} cuts"], arrays[f"{split} numbers of cuts"])
        for split in SPLITS
        if f"{split} cuts" in arrays
    }
    return Ready(dealt, views, tuple(facts["fingerprints"]), cuts, facts["facts of series"])


def _none(lengths: np.ndarray) -> np.ndarray:
    """Makes rows without features for sequences of these lengths; it takes no memory."""
    return np.zeros((int(lengths.sum()), 0))
