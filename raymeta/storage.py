"""Where Ray Tune keeps its state, its results and the checkpoints of trials."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from fsspec.implementations.local import LocalFileSystem
from pyarrow import NativeFile, PythonFile
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem

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


def first_kept(filesystem: FileSystem, checkpoint: str, name: str) -> str:
    """A checkpoint's folder or, where it has been removed, the next later one that is whole.

    Args:
        filesystem: the one that Tune keeps its own in.
        checkpoint: a folder whose neighbours are the trial's other checkpoints, in order.
        name: of the file that a whole checkpoint has.
    """
    wanted = PurePosixPath(checkpoint)
    selector = FileSelector(str(wanted.parent), allow_not_found=True, recursive=True)
    files = (
        PurePosixPath(i.path) for i in filesystem.get_file_info(selector) if i.type == FileType.File
    )
    later = (f.parent for f in files if f.name == name and f.parent.name >= wanted.name)
    return str(min((f for f in later if f.parent == wanted.parent), default=wanted))
