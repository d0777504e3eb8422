"""Reads UNIPEN text files: one writer's handwritten characters.

Shape legend: P points.
"""

from __future__ import annotations

import re

import numpy as np

from raymeta.data.files import read_utf8
from raymeta.data.sequences import Sequences
from raymeta.errors import DataError, shown
from raymeta.storage.paths import AnyPath

_GROUP = re.compile(r"^\.COMMENT Class #\d+: \[\S+\] = \{(?P<members>.*)\}$")
# `.SEGMENT CHARACTER 0-3 GOOD "a"`: hierarchy, delineation, quality (? for unknown), label.
_SEGMENT = re.compile(r'^\.SEGMENT\s+CHARACTER\s+\S+\s+(?:\?|[A-Za-z]+)\s+"(?P<character>.)"$')
_POINT = re.compile(r"^\s*(?P<x>-?\d{1,9})\s+(?P<y>-?\d{1,9})$", re.ASCII)


def read_unipen(path: AnyPath) -> tuple[Sequences, tuple[frozenset[str], ...]]:
    """Reads one writer's file.

    The quality of a segment is ignored: a badly written character is still that character.

    Returns:
        The characters in file order, each as its points `[P, 3]`: x, y and the number of the
        stroke; the axis `writer` holds the file's name.  And the groups of characters of one shape
        that the file's `.COMMENT Class` lines declare.

    Raises:
        DataError: the file cannot be read, holds no character or breaks the format.
    """
    lines = read_utf8(path, "UNIPEN text").splitlines()
    x: list[np.ndarray] = []
    characters: list[str] = []
    ids: list[str] = []
    groups: list[frozenset[str]] = []
    character: str | None = None
    start = stroke = 0
    points: list[tuple[int, int, int]] = []
    pen_is_down = False

    def finish() -> None:
        if character is None:
            return
        if pen_is_down:
            raise DataError(f'{path}: the character "{character}" ends without .PEN_UP')
        if len(points) < 2:
            raise DataError(f'{path}: the character "{character}" has fewer than two points')
        x.append(np.array(points, dtype=np.float64))
        characters.append(character)
        ids.append(f"{path.name}, line {start}")

    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip()
        if segment := _SEGMENT.match(line):
            finish()
            character, points, pen_is_down = segment["character"], [], False
            start, stroke = number, -1
        elif line == ".PEN_DOWN":
            stroke += 1
            pen_is_down = True
        elif line == ".PEN_UP":
            pen_is_down = False
        elif line.startswith(".SEGMENT"):
            raise DataError(
                f'{path}, line {number}: expected .SEGMENT CHARACTER … "x", but got {shown(line)}'
            )
        elif group := _GROUP.match(line):
            groups.append(frozenset(re.findall(r'"(.)"', group["members"])))
        elif point := _POINT.match(line):
            if not pen_is_down or character is None:
                raise DataError(f"{path}, line {number}: a point outside .PEN_DOWN … .PEN_UP")
            points.append((int(point["x"]), int(point["y"]), stroke))
        elif line and not line.startswith("."):
            raise DataError(
                f"{path}, line {number}: expected a keyword or two integers, but got {shown(line)}"
            )
    finish()
    if not x:
        raise DataError(f"{path}: no character found; is the file in UNIPEN format?")
    sequences = Sequences(
        x=tuple(x),
        classes=tuple(characters),
        groups={"writer": (path.name,) * len(x)},
        ids=tuple(ids),
    )
    return sequences, tuple(groups)
