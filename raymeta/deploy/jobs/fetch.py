"""Copies a run folder from a cluster to this machine.

The cluster is not trusted: anyone who may submit a job there controls the job's metadata, its log
and its run folder. So the run's name is checked, the folder is the one given at submission, links
are refused, and every file is written inside the target.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from raymeta.deploy.files.load import load_cluster
from raymeta.deploy.jobs.tunnel import end_process
from raymeta.errors import ClusterError, RunError
from raymeta.run_folder import is_run_name
from raymeta.storage.bounds import FOLDER_BYTES
from raymeta.storage.paths import AnyPath, RemotePath, copy_folder, path_at, too_large

if TYPE_CHECKING:
    from raymeta.deploy.jobs.client import Job, Jobs

_SAID = re.compile(r"^run folder: (.+)\n", re.MULTILINE)

_HEAD = 1 << 20  # characters of a log in which the driver names its run folder
_HEAD_S = 20.0  # to receive them
_CHUNK = 1 << 20  # bytes copied at a time
_LOOK_S = 1.0  # between two looks at how much has come
_SAID_BYTES = 1 << 20  # of a command's output


def fetch_run(jobs: Jobs, run: str, target: Path, cluster: Path | None) -> Path:
    """Copies the folder of a run to `target`/RUN.

    A storage with a URI is read directly, a folder of the cluster through ssh to the head that the
    cluster file describes.

    Args:
        jobs: of the cluster.
        run: its name.
        target: the folder of run folders on this machine.
        cluster: the cluster's file, if there is one.

    Raises:
        ClusterError: the run has no folder yet, cannot be read from here, or holds a link.
        RunError: there is such a folder here, or it cannot be written.
    """
    job = jobs.find(run)
    if not is_run_name(job.run):
        raise ClusterError(f"{job.run!r} is not a name of a run; nothing was fetched")
    home = target / job.run
    if home.is_symlink() or home.exists():
        raise RunError(f"{home}: is here already; remove it, or name another place with --runs-dir")
    source = _source(job, _said(jobs, job), cluster)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as folder:
            copy = Path(folder) / job.run
            _copy(source, copy, cluster)
            if not (copy / "experiment.yaml").is_file():
                raise ClusterError(f"{source}: is not a run folder: it has no experiment.yaml")
            copy.rename(home)
    except OSError as error:
        raise RunError(f"{home}: cannot be written: {error.strerror or error}") from error
    return home


def _said(jobs: Jobs, job: Job) -> re.Match[str] | None:
    """What a job says about its run folder; None if that is not in the first `_HEAD` characters.

    The log may be of any size: no more of it is received than that.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    from aiohttp import ClientError  # noqa: PLC0415  (comes with the jobs of Ray)

    head = ""

    async def receive() -> None:
        nonlocal head
        async for text in jobs.output(job):
            head = (head + text)[:_HEAD]
            if len(head) == _HEAD or _SAID.search(head):
                return

    try:
        asyncio.run(asyncio.wait_for(receive(), _HEAD_S))
    except TimeoutError:
        pass  # a driver that still runs may say nothing more
    except (ClientError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise ClusterError(f"{job.run}: its log cannot be read: {reason[0]}") from error
    return _SAID.search(head)


def _source(job: Job, said: re.Match[str] | None, cluster: Path | None) -> AnyPath:
    """Finds the run folder, as a path on the cluster or a URI.

    The submission or the cluster file names it.  Only if both leave it to the head's environment is
    it taken from the log, to which any code of the job may write; it must end in the run's name.
    """
    if said is None:
        raise ClusterError(f"{job.run}: has no run folder; see `raymeta logs {job.run}`")
    runs_dir = job.runs_dir or (load_cluster(cluster).runs_dir if cluster else None)
    source = path_at(runs_dir) / job.run if runs_dir else path_at(said[1].strip())
    if source.name != job.run or (isinstance(source, Path) and not source.is_absolute()):
        raise ClusterError(
            f"{str(source)!r} is not the folder of {job.run} in full; nothing was fetched"
        )
    return source


def _copy(source: AnyPath, target: Path, cluster: Path | None) -> None:
    if isinstance(source, RemotePath):
        try:
            copy_folder(source, target, FOLDER_BYTES)
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise ClusterError(f"{source}: cannot be read from here: {reason}") from error
    elif source.is_dir():  # a file system shared with the cluster
        _copy_files(source, target)
    elif cluster is None:
        raise ClusterError(
            f"{source}: lies where only the cluster can read it; add --cluster FILE to fetch it "
            "through ssh, or copy it yourself"
        )
    else:
        target.mkdir()
        ray = [sys.executable, "-m", "ray.scripts.scripts"]  # wherever PATH leads
        command = [*ray, "rsync-down", str(cluster), f"{source}/", f"{target}/"]
        code, said = _received(command, source, target)
        if code != 0 or not any(target.iterdir()):
            lines = said.strip().splitlines()
            raise ClusterError(f"{source}: cannot be fetched: {lines[-1] if lines else 'nothing'}")
        _refuse_links(source, target)


def _received(command: list[str], source: AnyPath, target: Path) -> tuple[int, str]:
    """Runs a command that fills a folder, and ends it once that is too large.

    Returns:
        The exit code, and what the command said.

    Raises:
        RunError: the folder is too large.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_S)
                # A file that is being received may be gone, or have another name, at once.
                files = [file for file in target.rglob("*") if not file.is_symlink()]
                size = sum(_size(file) for file in files)
                if size > FOLDER_BYTES:
                    raise too_large(source, size, FOLDER_BYTES)
        finally:
            if process.poll() is None:
                end_process(process)
        log.seek(0)
        return process.returncode, log.read(_SAID_BYTES).decode(errors="replace")


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except FileNotFoundError:
        return 0


def _copy_files(source: Path, target: Path) -> None:
    """Copies a folder of plain files without following links, even new ones."""
    if source.is_symlink():
        raise ClusterError(f"{source}: is a link, which is not followed; nothing was fetched")
    size = 0
    for place, folders, files, descriptor in os.fwalk(source, follow_symlinks=False):
        copy = target / Path(place).relative_to(source)
        copy.mkdir()
        for name in (*folders, *files):
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                raise _no_plain_file(Path(place) / name)
        for name in files:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with (
                open(os.open(name, flags, dir_fd=descriptor), "rb") as original,  # noqa: PTH123
                (copy / name).open("xb") as new,
            ):
                while content := original.read(_CHUNK):
                    size += len(content)
                    if size > FOLDER_BYTES:
                        raise too_large(source, size, FOLDER_BYTES)
                    new.write(content)


def _refuse_links(source: Path, copy: Path) -> None:
    """Refuses a copied folder that holds anything but plain files and folders."""
    for place, folders, files in os.walk(copy, followlinks=False):
        for name in (*folders, *files):
            mode = (Path(place) / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise _no_plain_file(source / (Path(place) / name).relative_to(copy))


def _no_plain_file(path: Path) -> ClusterError:
    return ClusterError(
        f"{path}: is a link or a device, which no run folder holds; nothing was fetched"
    )
