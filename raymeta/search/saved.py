"""Saves a searcher's state in a file beside Ray Tune's.

Tune saves the files one by one and copies them in no fixed order, so a kill in between leaves files
of different moments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleError
from typing import Any

from ray import cloudpickle
from ray.tune.search import Searcher, SearchGenerator
from ray.tune.utils import flatten_dict
from ray.tune.utils.serialization import TuneFunctionDecoder

from raymeta.errors import RunError
from raymeta.experiment.parameter import Parameter
from raymeta.search.records import TrialRecord
from raymeta.search.settings import SearchSettings
from raymeta.search.space import Point, Space
from raymeta.search.tune_space import TuneSpace
from raymeta.storage.atomic import WholeFile
from raymeta.storage.bounds import JOURNAL_BYTES, parse_json
from raymeta.storage.paths import AnyPath, list_matching, path_at, read_regular

STATE_VERSION = 4
READABLE_VERSIONS = (2, 3, STATE_VERSION)


def saved_records(experiment_dir: AnyPath) -> dict[str, TrialRecord]:
    """Reads the trials of a search, by Tune's trial_id, from the folder of Tune's state.

    Raises:
        RunError: the searcher's file there is damaged.
    """
    files = list_matching(experiment_dir, Searcher.CKPT_FILE_TMPL.format("*"))
    return read_state(files[-1], records_only=True).records if files else {}


def is_saved(experiment_dir: AnyPath | str) -> bool:
    """Whether Tune can restore a search with an `AxSearcher` from this folder or URI.

    Tune's own `can_restore` checks one file of four. If another is missing after an early kill,
    Tune would begin anew, with one trial.
    """
    folder = path_at(experiment_dir)
    patterns = ("tuner.pkl", "experiment_state-*.json", SearchGenerator.CKPT_FILE_TMPL.format("*"))
    searcher = Searcher.CKPT_FILE_TMPL.format("*")
    return all(list_matching(folder, pattern) for pattern in (*patterns, searcher))


def tune_trials(experiment_dir: Path) -> dict[str, tuple[str, dict[str, Any]]] | None:
    """Reads each trial's status and last result from Tune's files; None without them.

    The results are flat (`config/x`), as Tune hands them to a searcher.
    """
    files = sorted(experiment_dir.glob("experiment_state-*.json"))
    if not files:
        return None
    trials = {}
    for static, runtime in json.loads(files[-1].read_text(encoding="utf-8"))["trial_data"]:
        trial = json.loads(static)
        # Tune itself unpickles these results just before it restores a searcher.
        last = json.loads(runtime, cls=TuneFunctionDecoder, allow_cloudpickle=True)["last_result"]
        trials[trial["trial_id"]] = trial["status"], flatten_dict(last)
    return trials


def means_of_groups(experiment_dir: Path) -> dict[str, float | None] | None:
    """Computes the mean score of each ended group of a `Repeater` around the searcher.

    Scores that are not numbers are ignored; a group without others has the mean None.

    Returns:
        Means by the trial_id that the searcher gave the group; None without a `Repeater`.
    """
    files = sorted(experiment_dir.glob(SearchGenerator.CKPT_FILE_TMPL.format("*")))
    if not files:
        return None
    repeater = cloudpickle.loads(files[-1].read_bytes()).get("name:Repeater")
    if repeater is None:
        return None
    means: dict[str, float | None] = {}
    for group in repeater["_groups"]:
        if group.finished_reporting():
            scores = [score for score in group.scores() if not math.isnan(score)]
            means[group.primary_trial_id] = sum(scores) / len(scores) if scores else None
    return means


@dataclass(frozen=True)
class SavedSearch:
    """A searcher's state, without the constructor's arguments.

    `given` holds points still to be tried first, `records` all trials by Tune's trial_id;
    `space` and `settings` are None in files of raymeta 0.1.  `ended_by` is the stop rule that has
    ended the search, in words.
    """

    given: list[Point]
    records: dict[str, TrialRecord]
    space: TuneSpace | None = None
    settings: SearchSettings | None = None
    ended_by: str = ""


def write_state(path: Path, state: SavedSearch) -> None:
    """Writes the state of a search as JSON, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there is unharmed.
    """
    content: dict[str, Any] = {
        "version": STATE_VERSION,
        "given": state.given,
        "records": {trial_id: vars(record) for trial_id, record in state.records.items()},
        "settings": None if state.settings is None else vars(state.settings),
        "space": None,
        "ended_by": state.ended_by,
    }
    if state.space is not None:
        content["space"] = {
            "parameters": [vars(parameter) for parameter in state.space.space.parameters],
            "constraints": state.space.space.constraints,
            "fixed": _in_json(state.space.fixed),
            "members": _in_json(state.space.members),
            "objects": state.space.objects,
            "is_nested": state.space.is_nested,
        }
    with WholeFile(path) as file:
        file.write(json.dumps(content).encode())


def read_state(path: AnyPath, *, records_only: bool = False) -> SavedSearch:
    """Reads what `write_state` wrote.

    Enum members among the choices of the space are pickled, as Tune does it; `records_only` leaves
    out space and settings and unpickles nothing.

    Raises:
        RunError: the file is damaged, or another version wrote it.
    """
    try:
        state: dict[str, Any] = parse_json(read_regular(path, most=JOURNAL_BYTES))
        if state["version"] not in READABLE_VERSIONS:
            raise RunError(
                f"{path}: searcher state of version {state['version']}, but this raymeta reads "
                f"version {STATE_VERSION}; use the raymeta that wrote it"
            )
        records = {i: TrialRecord.from_json(record) for i, record in state["records"].items()}
        space, settings = state.get("space"), state.get("settings")
        if records_only or space is None or settings is None:
            return SavedSearch(state["given"], records)
        return SavedSearch(
            state["given"],
            records,
            _space_from_json(space),
            SearchSettings(**{name: _tuples(value) for name, value in settings.items()}),
            ended_by=state.get("ended_by", ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, PickleError) as error:
        raise RunError(
            f"{path}: the state of the search is damaged ({type(error).__name__}: {error}), and "
            "the search cannot go on from it; put back a copy of this file, or start a new search "
            "in another folder"
        ) from error


def _space_from_json(content: Mapping[str, Any]) -> TuneSpace:
    parameters = (
        Parameter(**{name: _tuples(value) for name, value in parameter.items()})
        for parameter in content["parameters"]
    )
    return TuneSpace(
        Space(tuple(parameters), tuple(content["constraints"])),
        fixed=_from_json(content["fixed"]),
        members=_from_json(content["members"]),
        objects=tuple(content["objects"]),
        is_nested=content["is_nested"],
    )


def _tuples(value: Any) -> Any:
    """Converts JSON's lists back to tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _in_json(values: Mapping[str, Any]) -> str:
    """Encodes values that JSON lacks, such as enum members."""
    return cloudpickle.dumps(dict(values)).hex() if values else ""


def _from_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = cloudpickle.loads(bytes.fromhex(text)) if text else {}
    return found
