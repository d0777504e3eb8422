"""Records each look at a sealed deal: an append-only line in RUN/sealed.jsonl.

A deal that is looked at often is no longer held out: choosing by its scores fits it.  So each
meta-test on the sealed deal is recorded before its scores are shown, and reports state how often
runs on the same data have looked.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from datetime import UTC, datetime

from raymeta.errors import RunError
from raymeta.evaluation.scores import MetaTest
from raymeta.run_folder import Run, runs
from raymeta.run_format import FORMAT_FILE
from raymeta.storage.journal import Journal, read_journal

SEALED_FILE = "sealed.jsonl"


@dataclass(frozen=True)
class Look:
    """A meta-test on a sealed deal: in which run, when (ISO 8601, UTC), by whom, the mean score."""

    run: str
    time: str
    user: str
    metric: str
    score: float


def record_look(run: Run, result: MetaTest) -> None:
    """Appends a look to the run's record.

    Raises:
        RunError: it cannot be written.
    """
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "user": _user(),
        "metric": result.metric,
        "score": result.rows[0].score.mean,
        "num_episodes": result.num_episodes,
    }
    path = run.path / SEALED_FILE
    try:
        Journal(path, _owner(run)).append(entry)
    except OSError as error:
        raise RunError(
            f"{path}: the look at the sealed deal cannot be recorded, so that no score is shown: "
            f"{error.strerror or error}"
        ) from error


def looks(run: Run) -> tuple[list[Look], list[str]]:
    """Reads all looks at the run's sealed deal, oldest first: its own and those of neighbouring
    runs.

    Runs are on the same deal if their data have the same fingerprint.

    Returns:
        The looks, and descriptions of damaged records.

    Raises:
        RunError: a record cannot be read.
    """
    origin = run.origin
    data = None if origin is None else origin.data
    found, notes = [], []
    for other in {str(r.path): r for r in (run, *runs(run.path.parent))}.values():
        if not (other.path / SEALED_FILE).is_file():
            continue
        try:
            other.check_links()
            origin = other.origin
            if origin is None or origin.data != data:
                continue
            content = read_journal(other.path / SEALED_FILE, origin.id)
        except RunError as error:
            if other.path == run.path:
                raise
            notes.append(f"looks of another run are not counted: {error}")
            continue
        notes += [*content.damaged, *filter(None, [content.cut])]
        for entry in content.entries:
            try:
                found.append(_look(other.path.name, entry))
            except (KeyError, TypeError, ValueError):
                notes.append(f"a line of {other.path / SEALED_FILE} has another form")
    return sorted(found, key=lambda look: look.time), notes


def look_lines(run: Run) -> list[str]:
    """Formats the looks at the sealed deal for a report."""
    found, notes = looks(run)
    lines = ["judged on the sealed deal, for the first time"]
    if len(found) != 1:
        listed = "; ".join(
            f"{look.time} by {look.user} in {look.run}: {look.metric} {look.score:.3f}"
            for look in found
        )
        heading = (
            f"judged on the sealed deal, which was looked at {len(found)} times: whatever was "
            "chosen by an earlier look makes these scores too good"
        )
        lines = [heading, listed or "the record of looks is empty: somebody has removed it"]
    return lines + notes


def _look(run: str, entry: dict[str, object]) -> Look:
    time, user, metric, score = (entry[k] for k in ("time", "user", "metric", "score"))
    return Look(run, str(time), str(user), str(metric), float(score))  # type: ignore[arg-type]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return "unknown"


def _owner(run: Run) -> str:
    origin = run.origin
    if origin is None:
        raise RunError(f"{run.path / FORMAT_FILE} is missing; put back a copy of it")
    return origin.id
