"""A search whose driver is killed again and again ends as an undisturbed one does."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray

from raymeta.search.records import TrialRecord
from raymeta.search.saved import saved_records
from tests.search.helpers import kill_driver, local_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_KILLS = 8
NUM_TRIALS = 24  # more than eight interrupted sessions can finish
STEPS = 3
TIMEOUT_S = 120
LAST_TIMEOUT_S = 600  # of the session that is left in peace
DRIVER = f"""
import os, sys, time
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0.5"
from pathlib import Path
import ray
from ray import tune
from raymeta.search import AxSearcher, Parameter, is_saved
from raymeta.storage.tune import run_storage

folder = Path(sys.argv[1])

class Steps(tune.Trainable):
    def setup(self, config):
        self._x, self._step = config["x"], 0
    def reset_config(self, new_config):
        self.setup(new_config)
        return True
    def step(self):
        time.sleep(0.2)
        self._step += 1
        done = self._step == {STEPS}
        if done:
            with open(folder / "ends", "a") as file:
                file.write(self.trial_id + "\\n")
        return {{"score": self._x * self._step, "done": done}}
    def save_checkpoint(self, checkpoint_dir):
        (Path(checkpoint_dir) / "step").write_text(str(self._step))
    def load_checkpoint(self, checkpoint):
        self._step = int((Path(checkpoint) / "step").read_text())

ray.init(sys.argv[2], log_to_driver=False, logging_level="ERROR")
filesystem, path = run_storage(folder / "tune")
if is_saved(folder / "tune"):
    tuner = tune.Tuner.restore(path, Steps, resume_unfinished=True, resume_errored=True,
                               storage_filesystem=filesystem)
else:
    space = [Parameter(name="x", low=0, high=1)]
    searcher = AxSearcher(space, metric="score", mode="max", num_sobol=4, max_steps={STEPS},
                          points_to_evaluate=[{{"x": 0.5}}])
    tuner = tune.Tuner(
        Steps,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples={NUM_TRIALS},
                                    max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(folder), storage_filesystem=filesystem, verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1)))
(folder / "began").touch()
results = tuner.fit()
(folder / "done").write_text("\\n".join(sorted(Path(r.path).name for r in results)))
"""


@dataclass
class Killed:
    """A search that ended after a number of kills."""

    folder: Path
    records: dict[str, TrialRecord]
    kills: int = 0
    finished_before: list[set[str]] = field(default_factory=list)  # at each kill, as saved
    ends_before: list[int] = field(default_factory=list)  # and how many trials had ended until then

    def ends(self) -> list[str]:
        """Returns the trials in the order of their ends."""
        return (self.folder / "ends").read_text().split()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "ends").touch()
    rng = random.Random(0)  # noqa: S311  (moments, not secrets)
    found = Killed(folder, {})
    with local_ray(num_cpus=2):
        search_until_done(found, rng, ray.get_runtime_context().gcs_address)
    found.records = saved_records(folder / "tune")
    return found


def search_until_done(found: Killed, rng: random.Random, address: str) -> None:
    """Starts a driver, kills it, and starts the next one."""
    folder = found.folder
    while not (folder / "done").exists():
        (folder / "began").unlink(missing_ok=True)
        with (folder / "log").open("ab") as log:
            command = [sys.executable, "-c", DRIVER, str(folder), address]
            driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not (folder / "began").exists() and driver.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # A kill may come at once, before Ax has answered, or in the midst of trials: the
            # second trial to end is one that Ax has proposed, as long as nothing was saved.
            if found.kills % 2:
                ended = len(found.ends())
                while len(found.ends()) < ended + 2 and driver.poll() is None:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                moment = rng.uniform(0, 1.5)
            else:
                moment = rng.uniform(0, 5)
            moment = moment if found.kills < NUM_KILLS else LAST_TIMEOUT_S
            try:
                code = driver.wait(timeout=moment)
                assert code == 0, (folder / "log").read_text()[-3000:]
            except subprocess.TimeoutExpired:
                found.kills += 1
        finally:
            kill_driver(driver, grace_s=0.5)
        records = saved_records(folder / "tune")
        found.finished_before.append({i for i, r in records.items() if r.status == "completed"})
        found.ends_before.append(len(found.ends()))


def test_the_search_was_killed_at_many_moments_and_came_to_its_end(killed: Killed) -> None:
    assert killed.kills == NUM_KILLS
    counts = {len(finished) for finished in killed.finished_before}
    assert len(counts) >= NUM_KILLS // 4  # it went on in between


def test_no_trial_is_lost_and_none_is_there_twice(killed: Killed) -> None:
    done = (killed.folder / "done").read_text().split()
    assert len(done) == NUM_TRIALS
    assert set(killed.ends()) >= {name.split("_")[1] for name in done}
    statuses = Counter(record.status for record in killed.records.values())
    assert statuses == {"completed": NUM_TRIALS}
    assert {name.split("_")[1] for name in done} == set(killed.records)


def test_what_was_saved_as_finished_is_never_run_again(killed: Killed) -> None:
    ends = killed.ends()
    for finished, count in zip(killed.finished_before, killed.ends_before, strict=True):
        assert finished.isdisjoint(ends[count:])


def test_every_record_holds_the_end_of_its_trial(killed: Killed) -> None:
    for record in killed.records.values():
        steps = [step for step, _, _ in record.curve]
        assert steps == sorted(set(steps))
        last, value, _ = record.curve[-1]
        assert last == STEPS
        assert value == pytest.approx(STEPS * record.point["x"])


def test_the_model_learned_during_the_whole_search(killed: Killed) -> None:
    sources = Counter(record.source for record in killed.records.values())
    assert sources["given"] >= 1
    assert sources["bo"] > NUM_TRIALS // 2
    assert max(r.point["x"] for r in killed.records.values()) > 0.95
