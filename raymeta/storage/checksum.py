"""JSON files that carry a checksum: a damaged number is noticed, even if the file is valid JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from raymeta.storage.bounds import parse_json

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


def _checksum(content: Mapping[str, Any]) -> str:
    return _KIND + hashlib.sha256(json.dumps(content).encode()).hexdigest()
