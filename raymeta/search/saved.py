"""The state of a search on disk: a searcher's own file, beside those of Ray Tune.

Tune saves one after the other and copies them in no certain order, so that a kill in between leaves
files of different moments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher, SearchGenerator

from raymeta.errors import RunError
from raymeta.remote import AnyPath, found_in, path_at
from raymeta.search.records import TrialRecord
from raymeta.search.space import Point

STATE_VERSION = 2


def saved_records(experiment_dir: AnyPath) -> dict[str, TrialRecord]:
    """The trials of a search from the folder Tune keeps its state in, by Tune's trial_id."""
    files = found_in(experiment_dir, Searcher.CKPT_FILE_TMPL.format("*"))
    return read_state(files[-1])[1] if files else {}


def is_saved(experiment_dir: AnyPath | str) -> bool:
    """Whether Tune can restore a search with an `AxSearcher` from this folder or URI.

    Tune's own `can_restore` looks at one file of four, which are copied in no certain order.  With
    another one missing after a kill in the first moments, it would begin anew, with one trial.
    """
    folder = path_at(experiment_dir)
    patterns = ("tuner.pkl", "experiment_state-*.json", SearchGenerator.CKPT_FILE_TMPL.format("*"))
    searcher = Searcher.CKPT_FILE_TMPL.format("*")
    return all(found_in(folder, pattern) for pattern in (*patterns, searcher))


def correct_count(searcher: Searcher, count: int) -> None:
    """Has Tune go on from as many trials as it knows, instead of what its third file says.

    Tune reads that file before it restores a searcher, takes it over right after that, and has no
    other way for a searcher to tell it (Ray 2.60).  A count too low makes a trial more than asked
    for, one too high a trial fewer.
    """
    set_state = SearchGenerator.set_state

    def corrected(generator: SearchGenerator, state: dict[str, Any]) -> None:
        SearchGenerator.set_state = set_state
        inner = generator.searcher
        while inner is not searcher and hasattr(inner, "searcher"):  # in a ConcurrencyLimiter
            inner = inner.searcher
        set_state(generator, state | ({"counter": count} if inner is searcher else {}))

    SearchGenerator.set_state = corrected


def tune_trials(experiment_dir: Path) -> dict[str, tuple[str, dict[str, Any]]] | None:
    """Status and last result of each trial, as Tune saved them; None where it did not."""
    files = sorted(experiment_dir.glob("experiment_state-*.json"))
    if not files:
        return None
    trials = {}
    for static, runtime in json.loads(files[-1].read_text(encoding="utf-8"))["trial_data"]:
        trial = json.loads(static)
        trials[trial["trial_id"]] = trial["status"], json.loads(runtime)["last_result"]
    return trials


def write_state(path: Path, given: list[Point], records: Mapping[str, TrialRecord]) -> None:
    """Writes what a searcher has to remember as JSON.

    Args:
        path: where Tune wants it.
        given: points that are still to be tried first.
        records: all trials by Tune's trial_id.
    """
    state = {
        "version": STATE_VERSION,
        "given": given,
        "records": {trial_id: vars(record) for trial_id, record in records.items()},
    }
    path.write_text(json.dumps(state), encoding="utf-8")


def read_state(path: AnyPath) -> tuple[list[Point], dict[str, TrialRecord]]:
    """The points and records that `write_state` was given.

    Raises:
        RunError: another version wrote them.
    """
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if state["version"] != STATE_VERSION:
        raise RunError(
            f"{path}: searcher state of version {state['version']}, but this raymeta reads "
            f"version {STATE_VERSION}; use the raymeta that wrote it"
        )
    records = {i: TrialRecord.from_json(record) for i, record in state["records"].items()}
    return state["given"], records
