"""Folders in any storage that Arrow knows (`s3://…`, `gs://…`, …), used as `pathlib.Path` is."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from raymeta.errors import RunError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem


# What Arrow's file systems take as options of a URI, and nobody else should read.
_SECRETS = {"access_key", "account_key", "client_secret", "sas_token", "secret_key", "sig"}


@dataclass(frozen=True)
class FileStatus:
    """What `RemotePath.stat` tells, by the names of `os.stat_result`."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True)
class RemotePath:
    """A file or folder in a storage other than the machine's own file tree.

    It has those methods of `pathlib.Path` that raymeta needs, with the same errors.  What is
    written replaces the whole file at once, as object stores do by themselves.
    """

    filesystem: FileSystem = field(compare=False, repr=False)
    path: str  # within the file system
    scheme: str
    query: str = ""  # Arrow's options, such as endpoint_override

    def __str__(self) -> str:
        return f"{self.scheme}{self.path}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> RemotePath:
        return self._at(str(PurePosixPath(self.path) / name))

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.path).stem

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in."""
        return self._at(str(PurePosixPath(self.path).parent))

    def resolve(self) -> RemotePath:
        """Itself: it never depends on where a process stands."""
        return self

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Whether there is such a folder."""
        info = self._info()
        return info.type.name == "Directory"

    def stat(self) -> FileStatus:
        """Size and time of the last change.

        Raises:
            FileNotFoundError: there is no such file.
        """
        info = self._info()
        if info.type.name == "NotFound":
            raise FileNotFoundError(2, "No such file", str(self))
        return FileStatus(info.size or 0, (info.mtime_ns or 0) / 1e9)

    def read_bytes(self) -> bytes:
        """The file's content."""
        with self.filesystem.open_input_stream(self.path) as stream:
            content: bytes = stream.read()
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        """The file's content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Replaces the file's content."""
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(content)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes the folder.

        Raises:
            FileExistsError: there is one, and `exist_ok` is false.
        """
        if not exist_ok and self._info().type.name != "NotFound":
            raise FileExistsError(17, "File exists", str(self))
        self.filesystem.create_dir(self.path, recursive=parents)

    def iterdir(self) -> Iterator[RemotePath]:
        """What is in the folder."""
        from pyarrow.fs import FileSelector  # noqa: PLC0415  (it takes a while to import)

        for info in self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True)):
            yield self._at(info.path)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What fits a pattern, which `/` parts into one for each level."""
        first, _, rest = pattern.partition("/")
        for child in self.iterdir():
            if fnmatch.fnmatchcase(child.name, first):
                if not rest:
                    yield child
                elif any(character in rest for character in "*?["):
                    yield from child.glob(rest)
                elif (child / rest).is_file():  # without a list of all that is in the folder
                    yield child / rest

    def _at(self, path: str) -> RemotePath:
        return RemotePath(self.filesystem, path, self.scheme, self.query)

    def _info(self) -> FileInfo:
        return self.filesystem.get_file_info(self.path)


AnyPath = Path | RemotePath


def copy_folder(source: RemotePath, target: Path) -> None:
    """Copies a folder with all that is in it to this machine."""
    from pyarrow.fs import copy_files  # noqa: PLC0415  (it takes a while to import)

    target.mkdir(parents=True, exist_ok=True)
    copy_files(source.path, str(target), source_filesystem=source.filesystem)


def remove_folder(folder: AnyPath) -> None:
    """Removes a folder with all that is in it."""
    if isinstance(folder, RemotePath):
        folder.filesystem.delete_dir(folder.path)
    else:
        shutil.rmtree(folder)


def found_in(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """What fits a pattern in a folder, by its whole path."""
    fitting: list[AnyPath] = [*folder.glob(pattern)]
    return sorted(fitting, key=str)


def path_at(location: str | AnyPath) -> AnyPath:
    """The place of a path or URI; a URI of the machine's own file tree is a path.

    Raises:
        RunError: Arrow has no such storage, or the URI holds a password.
    """
    if not isinstance(location, str):
        return location
    parts = urlsplit(location)
    if "://" not in location:
        return Path(location)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    # A key in a URI would stand in run folders, job logs and process lists.
    if parts.password or _SECRETS & dict(parse_qsl(parts.query)).keys():
        raise RunError(
            f"{shown}: give the key by the storage's own means (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a role, GOOGLE_APPLICATION_CREDENTIALS), not within the URI"
        )
    from pyarrow import ArrowInvalid  # noqa: PLC0415  (it takes a while to import)
    from pyarrow.fs import FileSystem  # noqa: PLC0415

    if parts.scheme in ("abfs", "abfss") and parts.username:
        # abfs://CONTAINER@HOST/… is abfs://HOST/CONTAINER/…, of which Arrow's path is a part.
        moved = f"/{parts.username}{parts.path}"
        parts = parts._replace(netloc=parts.hostname or "", path=moved)
        location = parts.geturl()
    try:
        filesystem, path = FileSystem.from_uri(location)
    except (ArrowInvalid, OSError) as error:
        raise RunError(f"{shown}: is no storage that Arrow can open: {error}") from error
    if not path.strip("/"):
        raise RunError(f"{shown}: name a bucket and a folder in it, such as s3://bucket/runs")
    if filesystem.type_name == "local":
        return Path(path)
    whole = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    return RemotePath(filesystem, path, whole.removesuffix(path), parts.query)
