"""Limits the reading of files that strangers may have written: none may unfold to gigabytes.

JSON takes some 100 bytes of memory for each bracket, and the header of a safetensors file 25 times
its own size.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

JSON_BYTES = 64 << 20  # of a file of JSON
JOURNAL_BYTES = 256 << 20  # of a record of trials: a million reports
TEXT_BYTES = 2 << 30  # of a file of data that is text
TABLE_BYTES = 4 << 30  # of a table in memory
TENSOR_BYTES = 2 << 30  # of a file of safetensors
FOLDER_BYTES = 100 << 30  # of a run folder that is copied: fifty networks of the largest size
# Of a safetensors file's header; that of a network with 16 layers has 60 kB.
HEADER_BYTES = 1_000_000
_LENGTH_BYTES = 8
FREE_BRACKETS = 1_000_000  # of a file
_BYTES_A_BRACKET = 16  # beyond those; raymeta's own files have 25 and more


def parse_json(
    content: bytes, made_of: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """The value of a JSON text.

    Args:
        content: of a file, or a line of one.
        made_of: makes a mapping of its pairs; None for a dict.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has too many lists and mappings.
    """
    check_json(content)
    try:
        return json.loads(content, object_pairs_hook=made_of)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_json(content: bytes) -> None:
    """Refuses a JSON text that would take gigabytes of memory.

    Raises:
        ValueError: it has too many lists and mappings.
    """
    if brackets_beyond(content) > FREE_BRACKETS:
        brackets = content.count(b"[") + content.count(b"{")
        raise ValueError(f"it has {brackets} lists and mappings, more than are read")


def brackets_beyond(content: bytes) -> int:
    """The lists and mappings of a JSON text beyond those that its length explains."""
    brackets = content.count(b"[") + content.count(b"{")
    return max(0, brackets - len(content) // _BYTES_A_BRACKET)


def header_fault(start: bytes) -> str:
    """Says what is wrong with the length of a safetensors header, given a file's first bytes.

    Empty if nothing is.
    """
    size = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if len(start) >= _LENGTH_BYTES and size <= HEADER_BYTES:
        return ""
    return f"its header must have at most {HEADER_BYTES:,} bytes, but says {size:,}"


def parse_tensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file.

    Raises:
        ValueError: it is none, or its header is too long.
    """
    fault = header_fault(content)
    if fault:
        raise ValueError(fault)
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
