"""The run's own record of its trials, trials.jsonl, from which a search resumes.

The driver appends a line when a trial starts, reports or ends, before Tune saves its files.  Tune's
files are a cache: they show whether lines are missing at the record's end, replace damaged lines,
and are the only source for runs of raymeta 0.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from raymeta.errors import RunError
from raymeta.run_folder import Run
from raymeta.run_format import FORMAT_FILE
from raymeta.search.records import TrialRecord, checked_number, clock, curve_point
from raymeta.search.saved import saved_records
from raymeta.storage.journal import MOST_NOTES, Journal, read_journal
from raymeta.storage.outage import StorageWatch
from raymeta.storage.paths import list_matching

TRIALS_FILE = "trials.jsonl"


@dataclass
class LoggedTrials:
    """All trials of a run by trial_id, in order of suggestion.

    `errors` says why trials failed or have no finite result; `num_skipped` counts their skipped
    meta-steps; `halves` has the last scores of ended trials on two halves of the validation;
    `earlier` holds the trials of an earlier run that the search learns from (None if not noted
    yet), `sources` those of each run whose model is a prior; `ended_by` is what ended the search,
    in words; `notes` describes damage and its replacement.
    """

    records: dict[str, TrialRecord] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    num_skipped: dict[str, int] = field(default_factory=dict)
    halves: dict[str, tuple[float, float]] = field(default_factory=dict)
    earlier: list[TrialRecord] | None = None
    sources: tuple[tuple[TrialRecord, ...], ...] = ()
    ended_by: str = ""
    notes: list[str] = field(default_factory=list)


class TrialLog:
    """Writes the record of trials.

    A line that cannot be written is kept, and written before the next one.

    Args:
        run: whose record it is.
        watch: of the run's folder.
    """

    def __init__(self, run: Run, watch: StorageWatch | None = None) -> None:
        self._run = run
        self._watch = watch or run.watch()
        self._journal = Journal(run.trials_dir / TRIALS_FILE, _owner(run))
        self._unwritten: list[tuple[dict[str, Any], bool]] = []

    def set(
        self,
        trial_id: str,
        record: TrialRecord,
        *,
        error: str | None = None,
        num_skipped: int = 0,
        halves: tuple[float, float] | None = None,
    ) -> None:
        """Records all facts of a trial at its start and its end.

        Args:
            trial_id: its name.
            record: its point, status and curves.
            error: why it has no finite result.
            num_skipped: meta-steps that were skipped as not finite.
            halves: its last scores on two halves of the validation.

        Raises:
            RunError: the record cannot be written.
        """
        more: dict[str, Any] = {"error": error} if error else {}
        more |= {"num_skipped": num_skipped} if num_skipped else {}
        more |= {"halves": halves} if halves else {}
        self._append({"trial": trial_id, "record": asdict(record), **more}, safe=True)

    def report(self, trial_id: str, record: TrialRecord) -> None:
        """Records the last point of a trial's curve.

        Raises:
            RunError: the record cannot be written.
        """
        if record.curve:
            others = {name: curve[-1] for name, curve in record.others.items()}
            report = {
                "curve": record.curve[-1],
                "others": others,
                "latest_s": record.latest_s,
            }
            self._append({"trial": trial_id, "report": report}, safe=False)

    def fail(self, trial_id: str, error: str) -> None:
        """Records why a trial failed.

        Raises:
            RunError: the record cannot be written.
        """
        self._append({"trial": trial_id, "error": error}, safe=True)

    def begin(
        self, earlier: list[TrialRecord], sources: Sequence[Sequence[TrialRecord]] = ()
    ) -> None:
        """Records the trials of earlier runs that the search learns from.

        Raises:
            RunError: the record cannot be written.
        """
        entry: dict[str, Any] = {"earlier": [asdict(record) for record in earlier]}
        if sources:
            entry["sources"] = [[asdict(record) for record in trials] for trials in sources]
        self._append(entry, safe=True)

    def end(self, rule: str) -> None:
        """Records what ended the search, in words.

        Raises:
            RunError: the record cannot be written.
        """
        self._append({"ended_by": rule}, safe=True)

    def flush(self) -> None:
        """Writes lines that could not be written before.

        Raises:
            RunError: the record cannot be written.
        """
        self._write()

    def _append(self, entry: dict[str, Any], *, safe: bool) -> None:
        self._unwritten.append((entry, safe))
        self._write()

    def _write(self) -> None:
        while self._unwritten:
            entry, safe = self._unwritten[0]
            try:
                self._watch.outlast(partial(self._journal.append, entry, safe=safe))
            except OSError as error:
                raise RunError(
                    f"{self._run.trials_dir / TRIALS_FILE}: cannot be written: "
                    f"{error.strerror or error}; mend that and go on with "
                    f"`{self._run.resume_command}`"
                ) from error
            del self._unwritten[0]


def logged_trials(run: Run) -> LoggedTrials:
    """Reads the record of trials.

    A trial whose line is damaged or missing is taken from the searcher's state among Tune's files,
    if it is there.

    Raises:
        RunError: it cannot be read, or is lost; run.json is missing; or the run is of raymeta 0.1
            and Tune's files are damaged.
    """
    if not run.has_format:
        return LoggedTrials(saved_records(run.tune_dir))
    # Read this first: a running search might otherwise be ahead in it.
    saved = _saved_records(run)
    content = read_journal(run.trials_dir / TRIALS_FILE, _owner(run))
    found = LoggedTrials()
    damaged = [] if content.cut is None else [content.cut]
    odd = 0
    for entry in content.entries:
        try:
            _take(entry, found)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            odd += 1
            if odd <= MOST_NOTES:
                where = run.trials_dir / TRIALS_FILE
                damaged.append(f"a line of {where} has another form ({str(error)[:300]})")
    if odd > MOST_NOTES:
        damaged.append(f"and {odd - MOST_NOTES} more lines of another form")
    damaged += content.damaged
    if not content.entries and not damaged and run.tune_dir.is_dir():
        damaged.append(f"{run.trials_dir / TRIALS_FILE} is empty or missing")
    found.notes += damaged
    if isinstance(saved, str) and damaged:
        found.notes.append(f"nothing stands in for it: {saved}")
    if not isinstance(saved, str):
        _mend(found, saved, run)
    if not found.records and damaged and list_matching(run.tune_dir, "*/checkpoint_*"):
        raise RunError(
            f"{run.trials_dir / TRIALS_FILE}: is damaged, and nothing stands in for it, though "
            "there are checkpoints of trials; put back a copy of the file, or start a new run"
        )
    return found


def _take(entry: dict[str, Any], found: LoggedTrials) -> None:
    if "earlier" in entry:
        found.earlier = [TrialRecord.from_json(record) for record in entry["earlier"]]
        listed = entry.get("sources", [])
        found.sources = tuple(tuple(map(TrialRecord.from_json, trials)) for trials in listed)
        return
    if "ended_by" in entry:
        found.ended_by = str(entry["ended_by"])
        return
    trial_id = entry["trial"]
    if not _is_trial_id(trial_id):
        raise ValueError(f"{trial_id!r} cannot be the name of a trial")
    if "record" in entry:
        found.records[trial_id] = TrialRecord.from_json(entry["record"])
        found.errors.pop(trial_id, None)
        found.num_skipped[trial_id] = int(entry.get("num_skipped", 0))
        found.halves.pop(trial_id, None)
        if "halves" in entry:
            one, other = entry["halves"]
            found.halves[trial_id] = checked_number(one, "a half"), checked_number(other, "a half")
    if "error" in entry:
        found.errors[trial_id] = str(entry["error"])
    if "report" in entry and trial_id in found.records:
        record, report = found.records[trial_id], entry["report"]
        latest = curve_point(report["curve"])
        others = {name: curve_point(point) for name, point in report["others"].items()}
        latest_s = clock(report.get("latest_s", record.latest_s))
        if not record.curve or latest[0] > record.curve[-1][0]:
            record.curve.append(latest)
            record.latest_s = latest_s
            for name, point in others.items():
                record.others.setdefault(name, []).append(point)


def _owner(run: Run) -> str:
    """Gets the id of the record's owner.

    Raises:
        RunError: run.json is missing or damaged.
    """
    origin = run.origin
    if origin is None:
        raise RunError(f"{run.path / FORMAT_FILE} is missing; put back a copy of it")
    return origin.id


def _saved_records(run: Run) -> dict[str, TrialRecord] | str:
    """Reads the trials in the searcher's state, or returns why it cannot be read."""
    try:
        saved = saved_records(run.tune_dir)
    except (RunError, OSError, ValueError, LookupError, TypeError) as error:
        return str(error)
    return {trial_id: record for trial_id, record in saved.items() if _is_trial_id(trial_id)}


def _is_trial_id(name: str) -> bool:
    """Whether a text can name a trial, and so its folder."""
    return re.fullmatch(r"\w[\w-]*", name) is not None


def _mend(found: LoggedTrials, saved: Mapping[str, TrialRecord], run: Run) -> None:
    """Completes the record from the searcher's state."""
    taken = {i: record for i, record in saved.items() if _is_behind(found.records.get(i), record)}
    if taken and not found.notes:
        found.notes.append(f"lines are missing at the end of {run.trials_dir / TRIALS_FILE}")
    for trial_id, record in taken.items():
        found.records[trial_id] = record
        found.notes.append(f"trial {trial_id} is taken from Tune's files")


def _is_behind(known: TrialRecord | None, saved: TrialRecord) -> bool:
    """Whether the record of a trial is older than the searcher's state."""
    if known is None or known.status != "running":
        return known is None
    return saved.status != "running" or len(saved.curve) > len(known.curve)
