"""Folders in any storage that Arrow knows (`s3://…`, `gs://…`, …), used as `pathlib.Path` is."""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from raymeta.errors import RunError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem


# Secret options in URIs of Arrow's file systems.
_SECRETS = {"access_key", "account_key", "client_secret", "sas_token", "secret_key", "sig"}


class StorageError(RunError, OSError):
    """A storage that cannot be reached or refuses access."""


# Of Arrow's S3. Its own limits let a store that never answers hold a command for minutes.
_CONNECT_S, _REQUEST_S = 5.0, 10.0
_MAX_PATH, _MAX_NAME = 3000, 255  # characters, and bytes of a part: file systems take no more


@dataclass(frozen=True)
class FileStatus:
    """The result of `RemotePath.stat`, with the names of `os.stat_result`."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True)
class RemotePath:
    """A file or folder outside the local file system.

    It has the methods of `pathlib.Path` that raymeta needs, with the same errors. A write replaces
    the whole file at once, as in object stores.
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
        """Returns itself: a URI does not depend on the working folder."""
        return self

    def is_file(self) -> bool:
        """Whether it is an existing file."""
        return bool(self._info().is_file)

    def is_dir(self) -> bool:
        """Whether it is an existing folder."""
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
        return self.first_bytes(-1)

    def first_bytes(self, count: int) -> bytes:
        """The first `count` bytes, or all of a shorter file or for a negative `count`."""
        with self._access(), self.filesystem.open_input_stream(self.path) as stream:
            content: bytes = stream.read(count if count >= 0 else None)
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        """The file's content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Replaces the file's content."""
        with self._access(), self.filesystem.open_output_stream(self.path) as stream:
            stream.write(content)

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes the folder.

        Raises:
            FileExistsError: there is one, and `exist_ok` is false.
        """
        if not exist_ok and self._info().type.name != "NotFound":
            raise FileExistsError(17, "File exists", str(self))
        with self._access():
            self.filesystem.create_dir(self.path, recursive=parents)

    def iterdir(self) -> Iterator[RemotePath]:
        """Iterates over the folder's entries."""
        from pyarrow.fs import FileSelector  # noqa: PLC0415  (it takes a while to import)

        with self._access():
            found = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        for info in found:
            yield self._at(info.path)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Iterates over matches of a pattern, level by level."""
        first, _, rest = pattern.partition("/")
        for child in self.iterdir():
            if fnmatch.fnmatchcase(child.name, first):
                if not rest:
                    yield child
                elif any(character in rest for character in "*?["):
                    yield from child.glob(rest)
                elif (child / rest).is_file():  # without listing the whole folder
                    yield child / rest

    def _at(self, path: str) -> RemotePath:
        return RemotePath(self.filesystem, path, self.scheme, self.query)

    def _info(self) -> FileInfo:
        with self._access():
            return self.filesystem.get_file_info(self.path)

    @contextmanager
    def _access(self) -> Iterator[None]:
        """Names the storage in errors of Arrow's that have no kind.

        Raises:
            FileNotFoundError, FileExistsError: as Arrow says.
            StorageError: any other error.
        """
        try:
            yield
        except (FileNotFoundError, FileExistsError, StorageError):
            raise
        except OSError as error:
            reason = str(error).rpartition("Details: ")[2] or str(error)
            kind = "NETWORK_CONNECTION: " if "NETWORK_CONNECTION" in str(error) else ""
            raise StorageError(
                f"{self}: the storage cannot be reached, or refuses: {kind}{reason[:300]}; check "
                "its address, the keys and the network"
            ) from error


AnyPath = Path | RemotePath


def read_regular(path: AnyPath, count: int = -1, *, most: int | None = None) -> bytes:
    """Reads the first `count` bytes of a file, or all of it, but no pipe or device.

    Args:
        path: of the file.
        count: negative for all.
        most: bytes of the file, if it is read whole.

    Raises:
        OSError: the file cannot be read, is not a regular file, or has more than `most` bytes.
    """
    if isinstance(path, RemotePath):
        if most is not None:
            _refuse_size(path.stat().st_size, most, path)
        return path.first_bytes(count)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if most is not None:
            _refuse_size(found.st_size, most, path)
        return file.read(count)


def _refuse_size(size: int, most: int, path: AnyPath) -> None:
    if size > most:
        reason = f"it has {size} bytes, and at most {most} are read"
        raise OSError(errno.EFBIG, reason, str(path))


def copy_folder(source: RemotePath, target: Path, most: int) -> None:
    """Copies a folder with its contents to this machine.

    Args:
        source: the folder.
        target: that it becomes.
        most: bytes of all of its files.

    Raises:
        RunError: a key of the storage leads out of the folder (keys may hold `..`), or the folder
            is too large.
        OSError: the storage cannot be read, or the target cannot be written.
    """
    from pyarrow.fs import FileSelector, FileType  # noqa: PLC0415  (it takes a while to import)

    target.mkdir(parents=True, exist_ok=True)
    found = source.filesystem.get_file_info(FileSelector(source.path, recursive=True))
    if (size := sum(info.size or 0 for info in found)) > most:
        raise too_large(source, size, most)
    for info in found:
        parts = PurePosixPath(info.path.removeprefix(source.path).lstrip("/")).parts
        if not info.path.startswith(f"{source.path}/") or {"..", "."} & {*info.path.split("/")}:
            raise RunError(f"{source}: holds {info.path!r}, which leads out of it")
        copy = target.joinpath(*parts)
        if info.type != FileType.File:
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        with source.filesystem.open_input_stream(info.path) as original, copy.open("wb") as new:
            shutil.copyfileobj(original, new)


def too_large(folder: AnyPath, size: int, most: int) -> RunError:
    """The error about a folder that would fill this machine's disk."""
    return RunError(
        f"{folder}: holds {size:,} bytes or more, and at most {most:,} are copied; look at what is "
        "in it, and copy what you need yourself"
    )


def remove_folder(folder: AnyPath) -> None:
    """Removes a folder with its contents."""
    if isinstance(folder, RemotePath):
        folder.filesystem.delete_dir(folder.path)
    else:
        shutil.rmtree(folder)


def remove_file(file: AnyPath) -> None:
    """Removes a file, if there is one."""
    if not isinstance(file, RemotePath):
        file.unlink(missing_ok=True)
    elif file.is_file():
        with file._access():  # noqa: SLF001  (of this module)
            file.filesystem.delete_file(file.path)


def list_matching(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """The files and folders in `folder` that match a pattern, sorted by path."""
    fitting: list[AnyPath] = [*folder.glob(pattern)]
    return sorted(fitting, key=str)


def _bytes(name: str) -> int:
    return len(name.encode(errors="replace"))


def path_at(location: str | AnyPath) -> AnyPath:
    """Converts a path or URI; a `file:` URI becomes a local path.

    Raises:
        RunError: Arrow has no such storage, the URI holds a password, or the location is too long.
    """
    if not isinstance(location, str):
        return location
    if "\0" in location:
        raise RunError(f"{location!r}: a path holds no NUL character")
    if len(location) > _MAX_PATH:
        raise RunError(f"{location}: is too long for a path")
    if "://" not in location:
        if max(map(_bytes, location.split("/"))) > _MAX_NAME:
            raise RunError(f"{location}: has a name too long for a file")
        return Path(location)
    try:
        parts = urlsplit(location)
    except ValueError as error:
        raise RunError(f"{location}: is not a valid URI: {error}") from None
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
    # A key in a URI would appear in run folders, job logs and process lists.
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
        raise RunError(f"{shown}: is not a storage that Arrow can open: {error}") from error
    if not path.strip("/"):
        raise RunError(f"{shown}: name a bucket and a folder in it, such as s3://bucket/runs")
    if filesystem.type_name == "local":
        return Path(path)
    if filesystem.type_name == "s3":
        filesystem = _with_limits(filesystem)
    whole = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    return RemotePath(filesystem, path, whole.removesuffix(path), parts.query)


def _with_limits(filesystem: FileSystem) -> FileSystem:
    """The same S3 with time limits, which its URI cannot hold; three attempts a request.

    The attempts are the default of Arrow's class, not of its URIs, and stay so when it is pickled.
    """
    from pyarrow.fs import S3FileSystem  # noqa: PLC0415  (it takes a while to import)

    _, (options,) = filesystem.__reduce__()
    limits = {"connect_timeout": _CONNECT_S, "request_timeout": _REQUEST_S}
    return S3FileSystem(**{**options, **limits})
