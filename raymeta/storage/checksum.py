"""JSON files that carry a checksum: a damaged number is noticed, even if the file is valid JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from raymeta.errors import RunError
from raymeta.storage.bounds import JSON_BYTES, parse_json
from raymeta.storage.paths import AnyPath, StorageError, read_regular

CHECKSUM = "checksum"  # the first key of the file
_KIND = "sha256:"


def to_json(content: Any) -> bytes:
    """Formats plain values; a mapping gets a checksum of its other keys."""
    if isinstance(content, Mapping):
        content = {CHECKSUM: _checksum(content), **content}
    return json.dumps(content, indent=1).encode()


def from_json(text: bytes) -> Any:
    """Parses what `to_json` formatted, without the checksum; files of earlier versions have none.

    Raises:
        ValueError: it is no JSON, unfolds to more than is read, or its checksum is wrong.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        return content
    found = content.pop(CHECKSUM, None)
    if found is None:  # a checksum under another key: the key itself is damaged
        is_whole = not any(str(value).startswith(_KIND) for value in content.values())
    else:
        is_whole = found == _checksum(content)
    if not is_whole:
        raise ValueError("its checksum is wrong")
    return content


def read_json(path: AnyPath, remedy: str) -> Any:
    """Reads a file that `to_json` formatted; None if there is none.

    Args:
        path: of the file.
        remedy: for a damaged one.

    Raises:
        RunError: it is damaged or cannot be read.
    """
    try:
        return from_json(read_regular(path, most=JSON_BYTES))
    except FileNotFoundError:
        return None
    except StorageError:
        raise
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path}: is damaged: {error}; {remedy}") from error


def _checksum(content: Mapping[str, Any]) -> str:
    return _KIND + hashlib.sha256(json.dumps(content).encode()).hexdigest()
