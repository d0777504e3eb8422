"""The storage of Ray Tune's files: state, results and checkpoints of trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fsspec.implementations.local import LocalFileSystem
from pyarrow import NativeFile, PythonFile
from pyarrow.fs import FileSelector, FileSystem, FileType, FSSpecHandler, PyFileSystem

from raymeta.storage.atomic import WholeFile
from raymeta.storage.paths import AnyPath, RemotePath


class _WholeFilesHandler(FSSpecHandler):
    """Arrow's local files, each written whole or not at all."""

    def open_output_stream(self, path: str, metadata: object) -> NativeFile:  # noqa: ARG002
        return PythonFile(WholeFile(Path(path)), mode="w")


def run_storage(path: AnyPath) -> tuple[FileSystem, str]:
    """Returns the file system of a run folder, and the folder's path there.

    Tune empties each of its files before rewriting it about every second; a kill at that moment, or
    a full disk, would leave an empty file.
    """
    if isinstance(path, RemotePath):
        return path.filesystem, path.path
    return PyFileSystem(_WholeFilesHandler(LocalFileSystem(auto_mkdir=True))), str(path)


def usable_checkpoint(
    filesystem: FileSystem, checkpoint: str, name: str, is_whole: Callable[[bytes], bool]
) -> str:
    """The folder of a checkpoint; if it was removed or is damaged, of the nearest that can be used.

    Later checkpoints come first, then earlier ones.  If none can be used, the folder itself.

    Args:
        filesystem: that of Tune's files.
        checkpoint: a folder whose neighbours are the trial's other checkpoints, in order.
        name: of the file in a checkpoint.
        is_whole: tests that file's content.
    """
    wanted = PurePosixPath(checkpoint)
    selector = FileSelector(str(wanted.parent), allow_not_found=True, recursive=True)
    files = (
        PurePosixPath(i.path) for i in filesystem.get_file_info(selector) if i.type == FileType.File
    )
    kept = sorted(
        file.parent for file in files if file.name == name and file.parent.parent == wanted.parent
    )
    later = [folder for folder in kept if folder.name >= wanted.name]
    earlier = [folder for folder in kept if folder.name < wanted.name]
    for folder in [*later, *reversed(earlier)]:
        with filesystem.open_input_stream(str(folder / name)) as stream:
            if is_whole(stream.read()):
                return str(folder)
    return str(wanted)
