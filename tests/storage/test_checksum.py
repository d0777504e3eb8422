"""JSON files with a checksum."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raymeta.storage.checksum import CHECKSUM, from_json, to_json

CONTENT: dict[str, Any] = {"rows": [{"score": 0.8725, "name": "ä"}], "count": 12, "none": None}


@pytest.mark.parametrize(
    "content", [CONTENT, {}, {"b": float("nan"), "a": 1e-300}, [1, 2], "text", {"a": (1, 2)}]
)
def test_content_is_read_back(content: Any) -> None:
    assert json.dumps(from_json(to_json(content))) == json.dumps(content)


def test_numbers_as_keys_become_text_as_in_any_json() -> None:
    assert from_json(to_json({10: 1, 9: 2})) == {"10": 1, "9": 2}


def test_any_flipped_bit_is_noticed_or_changes_nothing() -> None:
    text = to_json(CONTENT)
    noticed = 0
    for number in range(len(text)):
        for bit in range(8):
            flipped = bytearray(text)
            flipped[number] ^= 1 << bit
            try:
                found = from_json(bytes(flipped))
            except ValueError:
                noticed += 1
            else:
                assert found == CONTENT
    assert noticed > 7 * len(text)


def test_a_changed_number_is_refused() -> None:
    with pytest.raises(ValueError, match="its checksum is wrong"):
        from_json(to_json(CONTENT).replace(b"0.8725", b"0.9725"))


def test_a_file_without_a_checksum_is_read_as_it_is() -> None:
    assert CHECKSUM not in CONTENT
    assert from_json(json.dumps(CONTENT).encode()) == CONTENT
