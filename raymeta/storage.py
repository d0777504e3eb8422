"""Where Ray Tune keeps its state, its results and the checkpoints of trials."""

from __future__ import annotations

from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from pyarrow import NativeFile, PythonFile
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from raymeta.files import WholeFile
from raymeta.remote import AnyPath, RemotePath


class _WholeFilesHandler(FSSpecHandler):
    """Local files as Arrow sees them, each written whole or not at all."""

    def open_output_stream(self, path: str, metadata: object) -> NativeFile:  # noqa: ARG002
        return PythonFile(WholeFile(Path(path)), mode="w")


def run_storage(path: AnyPath) -> tuple[FileSystem, str]:
    """The file system that a run folder is in, and the path there.

    Tune empties each of its state files before it writes it anew, every second or so; a driver
    killed at that moment, or a full disk, would leave a search that cannot be resumed.
    """
    if isinstance(path, RemotePath):
        return path.filesystem, path.path
    return PyFileSystem(_WholeFilesHandler(LocalFileSystem(auto_mkdir=True))), str(path)
