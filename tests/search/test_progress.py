"""Events of trials as Tune tells them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune.error import TuneError
from ray.tune.experiment import Trial

from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from raymeta.search.progress import Progress, TrialEvent
from raymeta.search.trial_log import TrialLog, logged_trials
from raymeta.storage.tune import run_storage
from tests.search.helpers import local_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_the_reason_of_a_failure_is_recorded_though_it_was_not_copied_into_the_run(
    tmp_path: Path,
) -> None:
    """A full disk keeps Tune's copy of it out of the run folder."""
    run = Run.create(tmp_path, load_experiment("pen", []), fingerprint="data")
    log, told = TrialLog(run), list[TrialEvent]()
    log.begin([])
    filesystem, folder = run_storage(run.trials_dir)
    storage = StorageContext(
        folder, experiment_dir_name=run.tune_dir.name, storage_filesystem=filesystem
    )
    with local_ray(num_cpus=1):
        trial = Trial("none", stub=True, trial_id="a1", storage=storage)
        trial.init_local_path()
        trial.handle_error(TuneError("OSError: No space left on device"))
        assert not list(Path(str(run.path)).rglob("error.txt"))
        Progress(told.append, log, run.watch(lambda _: None)).on_trial_error(trial=trial)
    assert "No space left on device" in logged_trials(run).errors["a1"]
    assert [(event.trial_id, event.kind) for event in told] == [("a1", "failed")]
