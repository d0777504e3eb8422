"""A cluster cannot make `fetch` write outside its target, nor copy files of this machine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from raymeta.deploy.jobs.client import Job, Jobs
from raymeta.deploy.jobs.fetch import _received, fetch_run
from raymeta.errors import RaymetaError
from raymeta.storage.paths import RemotePath, path_at


@dataclass
class Cluster:
    """The jobs of a cluster; an unknown user submitted one of them."""

    run: str
    runs_dir: str
    said: str

    def find(self, _: str) -> Job:
        now = datetime.now()
        return Job("job", self.run, self.runs_dir, "SUCCEEDED", "", now, now, 0)

    async def output(self, _: Job) -> AsyncIterator[str]:
        yield self.said


def fetch(target: Path, run: str, runs_dir: str, said: str) -> Path:
    cluster = Cluster(run, runs_dir, f"run folder: {said}\n")
    return fetch_run(cast("Jobs", cluster), "job", target, None)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Makes a run folder on a file system of both cluster and laptop, beside a secret."""
    run = tmp_path / "shared" / "pen-1"
    (run / "models").mkdir(parents=True)
    (run / "experiment.yaml").write_text("name: pen\n")
    (run / "models" / "tuned.safetensors").write_bytes(b"weights")
    (tmp_path / "id_rsa").write_text("secret")
    return run


def refused(tmp_path: Path, run: str, runs_dir: str, said: str) -> str:
    """Returns the message of a refusal, and checks that nothing was written."""
    before = files(tmp_path)
    with pytest.raises(RaymetaError) as error:
        fetch(tmp_path / "home" / "runs", run, runs_dir, said)
    assert files(tmp_path) == before
    return str(error.value)


@pytest.mark.parametrize("told_by", ["submission", "log"])
def test_a_run_is_copied_whole(tmp_path: Path, shared: Path, told_by: str) -> None:
    runs_dir = str(shared.parent) if told_by == "submission" else ""
    home = fetch(tmp_path / "runs", "pen-1", runs_dir, str(shared))
    assert home == tmp_path / "runs" / "pen-1"
    assert files(home) == files(shared)
    assert list(home.parent.iterdir()) == [home]


@pytest.mark.parametrize(
    "name",
    [
        "../../EVIL",
        "..",
        ".",
        "",
        "/EVIL",
        "a/b",
        ".ssh",
        "-rf",
        "a\nb",
        "a\0b",
        "~",
        "pen-1\n",
    ],
)
def test_invalid_run_names_are_refused(tmp_path: Path, shared: Path, name: str) -> None:
    assert "is not a name of a run" in refused(tmp_path, name, str(shared.parent), str(shared))


def test_the_submission_names_the_folder_not_the_log(tmp_path: Path, shared: Path) -> None:
    other = tmp_path / "elsewhere" / "pen-1"
    other.mkdir(parents=True)
    (other / "experiment.yaml").write_text("name: forged\n")
    home = fetch(tmp_path / "runs", "pen-1", str(shared.parent), str(other))
    assert files(home) == files(shared)


@pytest.mark.parametrize("place", ["", "home", "pen-1", "elsewhere/pen-2"])
def test_local_folders_that_are_no_runs_are_not_copied(
    tmp_path: Path, shared: Path, place: str
) -> None:
    for name in ("home", "pen-1", "elsewhere/pen-2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "id_rsa").write_text("secret")
    assert refused(tmp_path, "pen-1", "", str(tmp_path / place))


@pytest.mark.parametrize("runs_dir", ["runs", ".", "../shared"])
def test_relative_folders_are_refused(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, runs_dir: str
) -> None:
    monkeypatch.chdir(shared.parent)
    assert "in full" in refused(tmp_path, "pen-1", runs_dir, str(shared))


@pytest.mark.parametrize("kind", ["file", "folder", "checkpoint", "whole", "dangling", "pipe"])
def test_links_and_devices_are_refused(tmp_path: Path, shared: Path, kind: str) -> None:
    match kind:
        case "file":
            (shared / "models" / "link").symlink_to(tmp_path / "id_rsa")
        case "folder":
            (shared / "models" / "link").symlink_to(tmp_path)
        case "checkpoint":
            (shared / "tune" / "trial").mkdir(parents=True)
            (shared / "tune" / "trial" / "checkpoint_000000").symlink_to(tmp_path)
        case "whole":
            shared.rename(tmp_path / "moved")
            shared.symlink_to(tmp_path / "moved")
        case "dangling":
            (shared / "link").symlink_to("nowhere")
        case "pipe":
            os.mkfifo(shared / "pipe")
    assert "is a link" in refused(tmp_path, "pen-1", str(shared.parent), str(shared))


def test_a_link_at_the_target_is_not_written_through(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "home" / "runs").mkdir(parents=True)
    (tmp_path / "home" / "runs" / "pen-1").symlink_to(tmp_path / "nowhere")
    assert "is here already" in refused(tmp_path, "pen-1", str(shared.parent), str(shared))


@pytest.mark.parametrize("key", ["../../EVIL", "models/../../../EVIL", "..", "models/./../.."])
def test_a_key_of_a_bucket_cannot_lead_out_of_the_target(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Keys of a bucket may hold anything; this storage lists one that points outside."""
    root = path_at(bucket)
    assert isinstance(root, RemotePath)
    run = root / "runs" / "pen-1"
    run.filesystem.create_dir(run.path, recursive=True)
    (run / "experiment.yaml").write_bytes(b"name: pen\n")
    home = fetch(tmp_path / "runs", "pen-1", str(run.parent), "anything")
    assert files(home) == {"experiment.yaml": b"name: pen\n"}

    class Listing:
        def get_file_info(self, selector: Any) -> list[Any]:
            (info,) = run.filesystem.get_file_info(selector)
            evil = run.filesystem.get_file_info(run.path + "/experiment.yaml")
            return [
                info,
                type("Info", (), {"path": f"{run.path}/{key}", "type": evil.type, "size": 1}),
            ]

        def open_input_stream(self, _: str) -> Any:
            return run.filesystem.open_input_stream(run.path + "/experiment.yaml")

    hostile = RemotePath(cast("Any", Listing()), run.path, run.scheme, run.query)
    monkeypatch.setattr("raymeta.deploy.jobs.fetch.path_at", lambda _: hostile.parent)
    assert "leads out of it" in refused(tmp_path, "pen-1", "s3://bucket", "anything")


def test_jobs_with_invalid_run_names_are_ignored_with_a_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from raymeta.deploy.jobs.client import _is_own  # noqa: PLC0415

    class Details:
        submission_id = "job"

        def __init__(self, metadata: dict[str, str]) -> None:
            self.metadata = metadata

    assert _is_own(cast("Any", Details({"raymeta_run": "pen-1"})))
    assert not _is_own(cast("Any", Details({})))
    assert caplog.text == ""
    assert not _is_own(cast("Any", Details({"raymeta_run": "../../EVIL"})))
    assert "../../EVIL" in caplog.text


def test_a_folder_of_any_size_fills_no_disk(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymeta.deploy.jobs.fetch.FOLDER_BYTES", 1 << 20)
    with (shared / "models" / "huge").open("wb") as file:
        file.truncate(1 << 40)
    began = time.monotonic()
    told = refused_without_contents(tmp_path, shared)
    assert "bytes or more, and at most 1,048,576 are copied" in told
    assert time.monotonic() - began < 10


def refused_without_contents(tmp_path: Path, shared: Path) -> str:
    """As `refused`, without reading what is there."""
    with pytest.raises(RaymetaError) as error:
        fetch(tmp_path / "runs", "pen-1", str(shared.parent), str(shared))
    assert list((tmp_path / "runs").iterdir()) == []
    return str(error.value)


def test_a_bucket_of_any_size_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    monkeypatch.setattr("raymeta.deploy.jobs.fetch.FOLDER_BYTES", 1000)
    runs_dir = path_at(bucket)
    (runs_dir / "pen-1" / "huge").write_bytes(bytes(1001))
    with pytest.raises(RaymetaError, match=r"holds 1,001 bytes or more, and at most 1,000 are"):
        fetch(tmp_path / "runs", "pen-1", bucket, str(runs_dir / "pen-1"))


def test_what_comes_through_ssh_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymeta.deploy.jobs.fetch.FOLDER_BYTES", 1 << 20)
    endless = "import sys, time; open(sys.argv[1], 'wb').truncate(1 << 30); time.sleep(20)"
    command = [sys.executable, "-c", endless, str(tmp_path / "huge")]
    began = time.monotonic()
    with pytest.raises(RaymetaError, match="at most 1,048,576 are copied"):
        _received(command, Path("/theirs"), tmp_path)
    assert time.monotonic() - began < 15


def test_only_the_head_of_a_log_is_received(tmp_path: Path) -> None:
    sent = 0

    class Long(Cluster):
        async def output(self, _: Job) -> AsyncIterator[str]:
            nonlocal sent
            while sent < 100:
                sent += 1
                yield "x" * 100_000

    cluster = Long("pen-1", "", "")
    with pytest.raises(RaymetaError, match="pen-1: has no run folder"):
        fetch_run(cast("Jobs", cluster), "job", tmp_path, None)
    assert sent < 20
