"""Refused resumes name their reason, and leave the folder as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raymeta import api, run_format
from raymeta.console.tables import print_runs
from raymeta.errors import RaymetaError, RunError
from raymeta.experiment.file import to_yaml, with_values
from raymeta.run_folder import Run, runs
from raymeta.search.preflight import prepare
from raymeta.search.results import read_trials
from raymeta.search.trial_log import TrialLog, logged_trials
from tests.search.helpers import tiny_experiment

TIMEOUT_S = 120
# The command line in a process of its own, where asking for Ray fails at once.
WITHOUT_RAY = """
import ray
from raymeta.cli import main

def refuse(*_, **__):
    raise AssertionError("Ray was asked for")

ray.init = refuse
main()
"""
RUN_OF_0_1 = Path(__file__).parent / "run_of_0_1" / "old"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Makes a run that was interrupted before its first trial; no refusal changes it."""
    experiment = tiny_experiment("search.space.maml.inner_lr={low: 0.01, high: 1}")
    fingerprint = prepare(experiment, tmp_path).tasks.fingerprint
    run = Run.create(tmp_path, experiment, "one", fingerprint=fingerprint)
    TrialLog(run).begin([])
    return run


def snapshot(run: Run) -> dict[str, bytes]:
    files = Path(str(run.path)).rglob("*")
    return {str(file): file.read_bytes() for file in sorted(files) if file.is_file()}


def refusal(run: Run) -> str:
    """Returns the message of a refused resume, and checks that nothing is written."""
    before = snapshot(run)
    with pytest.raises(RaymetaError) as error:
        api.tune(resume=str(run.path))
    assert snapshot(run) == before
    assert len(str(error.value)) < 1500
    return str(error.value)


# ------------------------------------------------------------------- the experiment


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.meta_steps", 12),
        ("model.hidden_size", 16),
        ("maml.inner_lr", 0.2),
        ("evaluation.num_episodes", 6),
        ("search.num_trials", 3),
        ("search.space", {"maml.inner_lr": {"low": 0.02, "high": 1}}),
        ("resources.num_workers", 2),
        ("seed", 7),
    ],
)
def test_an_edited_experiment_is_refused_by_its_keys(run: Run, key: str, value: Any) -> None:
    edited = with_values(run.experiment(), {key: value})
    Path(str(run.experiment_file)).write_text(to_yaml(edited))
    message = refusal(run)
    assert "was edited since the run began" in message
    assert f"  {key}" in message
    assert ", was " in message


def test_several_edits_are_all_named_up_to_a_bound(run: Run) -> None:
    values = {
        f"training.{key}": 3
        for key in ("meta_steps", "eval_every", "meta_batch_size", "val_episodes", "max_skipped")
    }
    values |= {f"model.{key}": 3 for key in ("hidden_size", "num_layers", "embedding_size")}
    edited = with_values(run.experiment(), {**values, "seed": 1, "name": "other"})
    Path(str(run.experiment_file)).write_text(to_yaml(edited))
    message = refusal(run)
    assert "training.meta_steps: 3, was 6" in message
    assert "and 2 more" in message or "and 1 more" in message


def test_a_damaged_experiment_is_refused(run: Run) -> None:
    file = Path(str(run.experiment_file))
    for content in ("", "name: [", "name: x\ntasks: {source: no}"):
        file.write_text(content)
        assert "put back a copy of the file" in refusal(run)


# ------------------------------------------------------------------- data, versions, format


def change_origin(run: Run, **values: Any) -> None:
    content = run.read_json("run.json")
    run.write_json("run.json", {**content, **values})


def test_other_data_are_refused(run: Run) -> None:
    change_origin(run, data="0123")
    assert "its data are not those that it began with" in refusal(run)


@pytest.mark.parametrize("library", ["raymeta", *run_format.LIBRARIES])
def test_another_version_is_refused_with_the_one_to_install(run: Run, library: str) -> None:
    versions = run.read_json("run.json")["versions"]
    change_origin(run, versions={**versions, library: "0.0.7"})
    message = refusal(run)
    assert f"{library} {versions[library]} in place of 0.0.7" in message
    assert f"`pip install '{library}==0.0.7'`" in message


def test_the_build_of_a_version_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_format, "version", lambda _: "2.13.0+cpu")
    assert run_format.installed_version("torch") == "2.13.0"


def test_a_later_format_is_refused(run: Run) -> None:
    change_origin(run, format=run_format.FORMAT + 1)
    message = refusal(run)
    assert f"a run folder of format {run_format.FORMAT + 1}" in message
    assert "install the newer one" in message


def test_a_missing_experiment_is_named(run: Run) -> None:
    Path(str(run.experiment_file)).unlink()
    assert refusal(run) == f"{run.experiment_file}: is missing; put back a copy of it"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "1"}', b"\xff\xfe"])
def test_a_damaged_run_file_is_refused_and_harmless_once_it_is_put_back(
    run: Run, content: bytes
) -> None:
    file = Path(str(run.path)) / "run.json"
    whole = file.read_bytes()
    file.write_bytes(content)
    assert "put back a copy" in refusal(run)
    file.write_bytes(whole)
    assert run.experiment().name == "pen-maml"


def test_a_missing_run_file_is_not_taken_for_a_run_of_0_1(run: Run) -> None:
    (Path(str(run.path)) / "run.json").unlink()
    assert "run.json is missing; put back a copy of it" in refusal(run)


# ------------------------------------------------------------------- the command line


def edit_experiment(run: Run) -> None:
    edited = with_values(run.experiment(), {"maml.inner_lr": 0.2})
    Path(str(run.experiment_file)).write_text(to_yaml(edited))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit_experiment, "maml.inner_lr: 0.2, was 0.1"),
        (lambda run: change_origin(run, data="0123"), "its data are not those"),
        (lambda run: change_origin(run, versions={"torch": "0.0.7"}), "in place of 0.0.7"),
        (lambda run: os.chown(str(run.experiment_file), 12345, -1), "belongs to user 12345"),
    ],
    ids=["experiment", "data", "version", "owner"],
)
def test_the_command_line_refuses_a_changed_run_and_starts_no_ray(
    run: Run, change: Callable[[Run], None], said: str
) -> None:
    if said.startswith("belongs") and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    change(run)
    before = snapshot(run)
    command = [sys.executable, "-c", WITHOUT_RAY, "tune", "--resume", str(run.path)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=TIMEOUT_S
    )
    assert "Ray was asked for" not in done.stderr
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(run) == before


# ------------------------------------------------------------------- runs of raymeta 0.1


@pytest.fixture
def old(tmp_path: Path) -> Run:
    shutil.copytree(RUN_OF_0_1, tmp_path / "old")
    return Run(tmp_path / "old")


def test_a_finished_run_of_0_1_is_listed_and_reported(old: Run) -> None:
    assert [found.path for found in runs(old.path.parent)] == [old.path]
    before = snapshot(old)
    report = api.tune(resume=str(old.path))
    assert report.best.maml.inner_lr == pytest.approx(
        max(report.trials.values(), key=lambda r: -r.curve[-1][1]).point["maml.inner_lr"]
    )
    assert {record.status for record in report.trials.values()} == {"completed"}
    for row in report.meta_test.rows:
        assert row.over_episodes == row.score
    assert snapshot(old) == before


def test_an_unfinished_run_of_0_1_is_refused_with_the_remedy(old: Run) -> None:
    for name in ("best.yaml", "results.json"):
        (Path(str(old.path)) / name).unlink()
    assert len(read_trials(old)) == 2
    message = refusal(old)
    assert "was begun by raymeta 0.1" in message
    assert "pip install raymeta==0.1.0" in message


def test_a_run_of_0_1_is_evaluated_or_refused(old: Run) -> None:
    try:
        report = api.evaluate(str(old.path))
    except RaymetaError as error:
        assert str(old.path) in str(error)  # noqa: PT017
    else:
        assert report.meta_test.rows


# ------------------------------------------------------------------- damaged runs in the list


def test_damaged_runs_hide_no_other(run: Run, tmp_path: Path) -> None:
    for name, file, content in [
        ("no-yaml", "experiment.yaml", b"\x00"),
        ("no-format", "run.json", b"{"),
        ("later", "run.json", b'{"format": 99, "experiment": {}, "data": "", "versions": {}}'),
        ("no-json", "results.json", b""),
        ("no-rows", "results.json", b'{"meta_test": {}}'),
        ("other-json", "results.json", b"[1]"),
    ]:
        shutil.copytree(str(run.path), tmp_path / name)
        (tmp_path / name / file).write_bytes(content)
    shown = StringIO()
    print_runs(Console(file=shown, width=200), runs(tmp_path))
    lines = {line.split()[0]: line for line in shown.getvalue().splitlines() if line.strip()}
    assert "unfinished" in lines["one"]
    for name in ("no-yaml", "no-format", "later", "no-json", "no-rows", "other-json"):
        assert "damaged" in lines[name]


# ------------------------------------------------------------------- strangers


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", [".", "experiment.yaml", "trials.jsonl", "tune/tuner.pkl"])
def test_the_run_of_another_user_is_refused_unless_trusted(run: Run, what: str) -> None:
    (Path(str(run.path)) / "tune").mkdir()
    (Path(str(run.path)) / "tune/tuner.pkl").touch()
    os.chown(Path(str(run.path)) / what, 12345, -1)
    message = refusal(run)
    assert "belongs to user 12345" in message
    assert "add --trust" in message
    change_origin(run, data="0123")
    with pytest.raises(RunError, match="its data are not those"):  # the next check
        api.tune(resume=str(run.path), trust=True)


def test_a_link_in_place_of_the_lock_harms_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (Path(str(run.path)) / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match="leads out of the run folder"), run.locked():
        pytest.fail("locked")
    (Path(str(run.path)) / ".lock").unlink()
    (Path(str(run.path)) / ".lock").symlink_to("experiment.yaml")
    with pytest.raises(RunError, match="is a link, not a lock"), run.locked():
        pytest.fail("locked")
    assert (tmp_path / "mine").read_text() == "mine"
    assert run.experiment().name == "pen-maml"


def test_locking_keeps_the_content_of_the_lock_file(run: Run) -> None:
    (Path(str(run.path)) / ".lock").write_text("mine")
    with run.locked():
        pass
    assert (Path(str(run.path)) / ".lock").read_text() == "mine"


@pytest.mark.parametrize("name", ["tune", "models", "search", "trials.json", "models/tuned"])
def test_links_that_lead_out_of_the_folder_are_refused(run: Run, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    link = Path(str(run.path)) / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(RunError, match=f"{link}: a link that leads out"), run.locked():
        pytest.fail("locked")


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "x*"])
def test_a_trial_whose_name_is_no_folder_of_the_run_is_damage(run: Run, name: str) -> None:
    record = {"point": {}, "source": "sobol", "status": "completed", "curve": []}
    TrialLog(run)._append({"trial": name, "record": record}, safe=True)
    found = logged_trials(run)
    assert found.records == {}
    assert "cannot be the name of a trial" in found.notes[0]


def test_the_origin_holds_what_the_run_began_with(run: Run) -> None:
    content = json.loads((Path(str(run.path)) / "run.json").read_text())
    assert content["format"] == run_format.FORMAT
    decides = run.experiment().model_dump(exclude={"trackers"})  # those may change
    assert content["experiment"] == json.loads(json.dumps(decides))
    assert set(content["versions"]) == {"raymeta", *run_format.LIBRARIES}
