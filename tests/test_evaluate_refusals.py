"""`evaluate` refuses a run without a network, with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymeta.api import evaluate
from raymeta.errors import RunError
from raymeta.run_folder import Run
from raymeta.search.records import Status, TrialRecord
from raymeta.search.trial_log import TrialLog
from tests.search.helpers import tiny_experiment

REMEDY = "validation overflows; lower evaluation.adaptation_steps, and start a new run"


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        (["abandoned"], "no trial has a finite result; the first error: " + REMEDY),
        (["abandoned", "abandoned"], REMEDY),
        (["abandoned", "running"], "go on with"),
        ([], "go on with"),
    ],
)
def test_a_run_of_overflowed_trials_is_not_advised_to_resume(
    tmp_path: Path, statuses: list[Status], message: str
) -> None:
    run = Run.create(tmp_path, tiny_experiment())
    log = TrialLog(run)
    log.begin([])
    for number, status in enumerate(statuses):
        error = REMEDY if status == "abandoned" else None
        log.set(f"trial-{number}", TrialRecord({}, "given", status), error=error)
    with pytest.raises(RunError, match=message):
        evaluate(run.path.name, runs_dir=tmp_path)
