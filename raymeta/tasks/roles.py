"""Guesses the roles of a table's columns: class, sequence, time, groups, features.

A name alone is never enough: each sequence must have one class and no time twice. A role that stays
open is refused with the option that sets it.

Shape legend: R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from raymeta.data.readers.columns import Column
from raymeta.errors import DataError, shown
from raymeta.finding import Finding
from raymeta.tasks.table_settings import MAX_LEVELS

# Names in lower case: Nixtla (unique_id, ds, y), AutoGluon and GluonTS (item_id, timestamp,
# target), PyTorch Forecasting (group_ids, time_idx), sktime and aeon (case_id or instances,
# timepoints), tsai (sample_id), tsfresh (id, time); then what people call them.
SEQUENCES = (
    "unique_id", "item_id", "group_ids", "group_id", "case_id", "instances", "instance",
    "sample_id", "series_id", "sequence_id", "sequence", "recording_id", "recording", "session_id",
    "session", "trial_id", "trial", "window_id", "series", "id",
)  # fmt: skip
TIMES = (
    "ds", "timestamp", "time_idx", "timepoints", "timepoint", "time", "datetime", "date", "t",
    "milliseconds", "seconds", "second", "sec", "minutes", "hours", "step", "frame", "cycle",
)  # fmt: skip
TARGETS = ("target", "y", "label", "class", "class_label", "activity", "category")
GROUPS = (
    "subject", "subject_id", "person", "person_id", "patient", "patient_id", "participant", "user",
    "user_id", "device", "device_id", "machine", "machine_id", "writer", "speaker",
)  # fmt: skip
# sktime and aeon also have one row a value of one dimension.
_ONE_VALUE_A_ROW = {"dim_id", "value"}

_IRREGULAR = 0.01  # relative spread of time steps above which they become a feature
_SHOWN = 8  # most columns listed in a message


class Roles:
    """Gives each column at most one role, and records why."""

    def __init__(self, columns: Mapping[str, Column], location: str) -> None:
        self.columns = dict(columns)
        self.location = location
        self.findings: list[Finding] = []
        self.taken: set[str] = set()
        if {name.lower() for name in columns} >= _ONE_VALUE_A_ROW:
            raise DataError(
                f"{location}: a row holds one value of one dimension (dim_id, value); raymeta "
                "reads one row a time step: pivot it first, with pandas "
                "`df.pivot(index=['case_id', 'reading_id'], columns='dim_id', values='value')`"
            )

    def say(self, subject: str, text: str, level: Any = "ok") -> None:
        """Records a finding."""
        self.findings.append(Finding(subject, text, level))

    def codes(self, name: str) -> np.ndarray:
        """The number of each row's label."""
        codes = self.columns[name].codes
        assert codes is not None, "a column of labels"
        return codes

    def given(self, name: str, option: str) -> str:
        """A column that the user named."""
        if name not in self.columns:
            close = get_close_matches(name, self.columns, n=1)
            listed = ", ".join(map(shown, list(self.columns)[:_SHOWN]))
            hint = f"; did you mean {close[0]!r:.60}?" if close else f"; it has {listed}"
            raise DataError(f"{self.location}: has no column {shown(name)} ({option}){hint}")
        if name in self.taken:
            raise DataError(f"{option} {name}: this column has another role already")
        self.taken.add(name)
        return name

    def named(self, aliases: Iterable[str]) -> list[str]:
        """The columns without a role that have one of these names."""
        lower = {name.lower(): name for name in self.columns if name not in self.taken}
        return [lower[alias] for alias in aliases if alias in lower]

    def target(self, given: str | None) -> str:
        """The column of the class."""
        if given is not None:
            name = self.given(given, "--target")
        else:
            found = [name for name in self.named(TARGETS) if self._is_label(name)]
            if len(found) != 1:
                what = (
                    f"several could be: {', '.join(found)}" if found else "no column is called so"
                )
                raise DataError(
                    f"{self.location}: which column is the class? {what}; name it with --target "
                    f"(the columns are {self._listed(self.columns)})"
                )
            name = found[0]
            self.taken.add(name)
            self.say("target", f"{name}: by its name")
        if not self._is_label(name):
            raise DataError(
                f"{self.location}: the target {name} must hold the class of a sequence, as text or "
                "whole numbers, none missing; numbers to be forecast need columns of series and "
                "times (--sequence, --time)"
            )
        return name

    def sequence(self, given: str | None, target: str) -> str:
        """Finds the column of sequences, each of which has one class."""
        if given is not None:
            return self.given(given, "--sequence")
        labels = self.columns[target]
        fitting = [
            name
            for name, column in self.columns.items()
            if name not in self.taken
            and column.codes is not None
            and len(labels.labels) < len(column.labels) < len(column.codes)
            and labels.is_constant_in(column.codes)
        ]
        named = [name for name in self.named(SEQUENCES) if name in fitting]
        chosen = named[:1] or (fitting if len(fitting) == 1 else [])
        if not chosen:
            what = (
                f"several columns could tell: {self._listed(fitting)}"
                if fitting
                else f"in no column of ids do all rows of an id have one {target}; ids must be "
                "unique over all files"
            )
            raise DataError(
                f"{self.location}: which rows are one sequence? {what}; name the column with "
                "--sequence"
            )
        self.taken.add(chosen[0])
        how = "by its name" if named else "the only column whose rows have one class each"
        self.say("sequence", f"{chosen[0]}: {how}; {len(self.columns[chosen[0]].labels)} sequences")
        return chosen[0]

    def time(self, given: str | None, sequence: str) -> str | None:
        """Finds the column that orders a sequence's rows; None if their order in the file does."""
        if given is not None:
            return self.given(given, "--time")
        own = self.codes(sequence)
        repeated = []
        for name in self.named(TIMES):
            at = self.columns[name].times
            if at is None:
                continue
            order = np.lexsort((at, own))
            if ((np.diff(own[order]) == 0) & (np.diff(at[order]) == 0)).any():
                repeated.append(name)
                continue
            self.taken.add(name)
            self.say("time", f"{name}: by its name")
            return name
        why = (
            f"{', '.join(repeated)} has a time twice in a sequence" if repeated else "none is known"
        )
        if (np.diff(own) < 0).any():
            raise DataError(
                f"{self.location}: which column orders the rows of a sequence? {why}, and the rows "
                "of a sequence do not stand together; name it with --time"
            )
        self.taken |= set(repeated)
        self.say("time", f"{why}: the rows are in the order of the file", "warning")
        return None

    def groups(self, given: list[str], sequence: str) -> list[str]:
        """Finds the columns whose groups must stay in one split."""
        for name in given:
            self.given(name, "--task")
            if not self._is_label(name) or not self.columns[name].is_constant_in(
                self.codes(sequence)
            ):
                raise DataError(
                    f"{self.location}: --task {name} must hold one label for all rows of a "
                    f"sequence ({sequence})"
                )
        fitting = self.shared(sequence)
        named = [] if given else [name for name in self.named(GROUPS) if name in fitting]
        for name in named:
            self.taken.add(name)
            self.say("groups", f"{name}: by its name; {len(self.columns[name].labels)} groups")
        for name in fitting:
            if name not in self.taken:
                self.taken.add(name)
                self.say(
                    name,
                    "not used: if sequences that share it belong together, add it to tasks.groups",
                    "warning",
                )
        return given + named

    def shared(self, sequence: str) -> list[str]:
        """Finds columns without a role that are constant in each sequence and shared by several."""
        own = self.codes(sequence)
        count = len(self.columns[sequence].labels)
        return [
            name
            for name, column in self.columns.items()
            if name not in self.taken
            and 1 < len(column.labels) < count
            and column.is_constant_in(own)
        ]

    def categories(self, sequence: str) -> list[str]:
        """Finds columns of names that vary within sequences, but for those with too many."""
        own = self.codes(sequence)
        found = []
        for name, column in self.columns.items():
            if name in self.taken or column.numbers is not None or column.codes is None:
                continue
            if column.is_constant_in(own) or len(column.labels) == 1:
                continue
            if len(column.labels) > MAX_LEVELS:
                text = f"not used: {len(column.labels)} names are more than the {MAX_LEVELS}"
                self.say(name, f"{text} that a category may have", "note")
            else:
                found.append(name)
            self.taken.add(name)
        if found:
            self.say("categories", f"{self._listed(found)}: the columns of names")
        return found

    def features(self, sequence: str, *, may_be_none: bool = False) -> list[str]:
        """Finds all other columns of numbers that vary within sequences."""
        own = self.codes(sequence)
        found = []
        for name, column in self.columns.items():
            if name in self.taken:
                continue
            values = column.numbers
            if values is None or len(column.labels) == 1:
                why = "it never changes" if len(column.labels) == 1 else "it holds no numbers"
                self.say(name, f"not used: {why}", "note")
            elif np.isnan(values).all() or np.nanmin(values) == np.nanmax(values):
                self.say(name, "not used: it never changes", "note")
            elif len(values) > 2 and np.array_equal(values, values[0] + np.arange(len(values))):
                self.say(name, "not used: it counts the rows of the table", "note")
            elif column.is_constant_in(own):
                self.say(name, "not used: it is the same in all rows of a sequence", "note")
            else:
                found.append(name)
        if not found and may_be_none:
            return []
        if not found:
            raise DataError(
                f"{self.location}: no column of numbers is left to be a feature; a table of texts "
                "is read by `source: text`, whose keys are text, label and domain"
            )
        self.say("features", f"{self._listed(found)}: the columns of numbers")
        return found

    def gaps(self, features: list[str], sequence: str, time: str | None) -> dict[str, Any]:
        """Chooses the settings for missing numbers and irregular times."""
        found: dict[str, Any] = {}
        missing = {name: count for name in features if (count := self.columns[name].num_missing)}
        if missing:
            found["missing"] = "mask"
            counts = self._listed([f"{name} {count}" for name, count in missing.items()])
            self.say("missing", f"numbers are missing ({counts}): marked by a mask", "warning")
        at = None if time is None else self.columns[time].times
        if at is not None:
            own = self.codes(sequence)
            order = np.lexsort((at, own))
            steps = np.diff(at[order])[np.diff(own[order]) == 0].astype(np.float64)
            if len(steps) and steps.std() > _IRREGULAR * steps.mean():
                found["time_differences"] = True
                self.say("time", f"{time} is irregular: time differences become a feature", "note")
        return found

    def _is_label(self, name: str) -> bool:
        column = self.columns[name]
        return column.codes is not None and len(column.labels) < len(column.codes)

    @staticmethod
    def _listed(names: Iterable[str]) -> str:
        found = list(names)
        return ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
