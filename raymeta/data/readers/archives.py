"""Reads files of time-series archives as long tables: UEA and UCR `.ts`, Monash `.tsf`.

Both begin with lines of `@keys`, then `@data`, then one case or series a line.  As tables they have
one row a time step, and names of columns that `raymeta new` knows:

- `.ts`: `case_id` (file and number, so unique over files), `timepoint` (0, 1, … or the time stamps
  of the file), `class` (text) or `target` (a number), `dim_0`, `dim_1`, …
- `.tsf`: the attributes that the file declares, such as `series_name` and `start_timestamp`,
  `series_id` (as `case_id`), `time_idx` (0, 1, …) and `target`.

A `?` is a missing number, null in the table.

Formats: https://www.sktime.net/en/stable/api_reference/file_specifications/ts.html and Godahewa et
al. 2021, "Monash Time Series Forecasting Archive".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from raymeta.data.files import read_utf8
from raymeta.errors import DataError, shown
from raymeta.storage.paths import AnyPath

_MISSING = "?"
_STAMPED = re.compile(r"\(([^(),]*),([^(),]*)\)")  # a value with its time stamp
_YES = {"true": True, "false": False}
_TS_KEYS = (
    *("problemname", "timestamps", "missing", "univariate", "dimensions", "dimension"),
    *("equallength", "serieslength", "classlabel", "targetlabel"),
)
_TSF_KEYS = ("relation", "attribute", "frequency", "horizon", "missing", "equallength")


def read_ts(path: AnyPath) -> pa.Table:
    """The cases of a `.ts` file, a row a time step.

    Raises:
        DataError: naming the file and the line.
    """
    header, lines = _parts(path, "a .ts file", _TS_KEYS)
    stamped = _flag(path, header, "timestamps")
    label = next((key for key in ("classlabel", "targetlabel") if _flag(path, header, key)), None)
    declared = ""
    if label == "classlabel":
        declared = header["classlabel"][-1][1].partition(" ")[2].strip()
    columns: dict[str, list[Any]] = {"timepoint": [], "values": [], "label": []}
    lengths = []
    for number, line in lines:
        fields = line.split(":")
        if label is not None:
            columns["label"].append(_label(path, number, label, fields.pop().strip(), declared))
        if not fields:
            raise DataError(
                f"{path}, line {number}: has no : between the values and the class or target; "
                "mend or remove the case"
            )
        dims = [_dimension(path, number, place, text, stamped) for place, text in enumerate(fields)]
        first = dims[0]
        for place, (at, values) in enumerate(dims):
            if len(values) != len(first[1]) or not np.array_equal(at, first[0]):
                raise DataError(
                    f"{path}, line {number}: dimension {place} has {len(values)} steps, but "
                    f"dimension 0 has {len(first[1])}, or they are at other times; bring the "
                    "dimensions of a case to the same steps"
                )
        if columns["values"] and len(dims) != columns["values"][0].shape[1]:
            raise DataError(
                f"{path}, line {number}: must have {columns['values'][0].shape[1]} dimensions as "
                f"the first case has, but has {len(dims)}; the dimensions are parted by :"
            )
        columns["timepoint"].append(first[0])
        columns["values"].append(np.stack([values for _, values in dims], axis=1))
        lengths.append(len(first[1]))
    own = np.repeat(np.arange(len(lengths)), lengths)
    values = np.concatenate(columns["values"])
    found = {
        "case_id": _named(path, own),
        "timepoint": pa.array(np.concatenate(columns["timepoint"])),
    }
    if label is not None:
        name = "class" if label == "classlabel" else "target"
        found[name] = _repeated(columns["label"], own)
    found |= {f"dim_{place}": _nullable(values[:, place]) for place in range(values.shape[1])}
    return pa.table(found)


def read_tsf(path: AnyPath) -> pa.Table:
    """The series of a `.tsf` file, a row a time step.

    Raises:
        DataError: naming the file and the line.
    """
    header, lines = _parts(path, "a .tsf file", _TSF_KEYS)
    attributes = [_attribute(path, number, text) for number, text in header.get("attribute", [])]
    for name, count in Counter(name for name, _ in attributes).items():
        if count > 1 or name in ("series_id", "time_idx", "target"):
            raise DataError(
                f"{path}: @attribute {shown(name)} is declared twice, or is the name of a column "
                "that every .tsf file has (series_id, time_idx, target); rename it"
            )
    facts: list[list[Any]] = []
    series: list[np.ndarray] = []
    for number, line in lines:
        # A time such as 00:00 in an attribute would part the line where it should not.
        fields = line.split(":")
        if len(fields) != len(attributes) + 1:
            raise DataError(
                f"{path}, line {number}: must have {len(attributes)} attributes and the values, "
                f"parted by :, but has {len(fields)} parts; a time is written 00-00-00"
            )
        series.append(_numbers(path, number, fields[-1], "the series"))
        facts.append(
            [
                _as_declared(path, number, name, kind, text.strip())
                for (name, kind), text in zip(attributes, fields, strict=False)
            ]
        )
    lengths = [len(values) for values in series]
    own = np.repeat(np.arange(len(series)), lengths)
    found = {"series_id": _named(path, own)}
    for place, (name, _) in enumerate(attributes):
        found[name] = _repeated([row[place] for row in facts], own)
    found["time_idx"] = pa.array(np.concatenate([np.arange(length) for length in lengths]))
    found["target"] = _nullable(np.concatenate(series))
    return pa.table(found)


# How a file's name ends -> the function that makes it a table.
ARCHIVES: dict[str, Callable[[AnyPath], pa.Table]] = {"ts": read_ts, "tsf": read_tsf}


def _parts(
    path: AnyPath, what: str, known: tuple[str, ...]
) -> tuple[dict[str, list[tuple[int, str]]], list[tuple[int, str]]]:
    """Splits a file into the header's keys and the numbered data lines."""
    header: dict[str, list[tuple[int, str]]] = {}
    lines = _lines(read_utf8(path, what))
    for number, line in lines:
        if not line.startswith("@"):
            raise DataError(
                f"{path}, line {number}: must be @data or a key before it, such as @{known[0]}, "
                f"but is {shown(line)}; is this {what}?"
            )
        key, _, value = line[1:].partition(" ")
        if key.lower() == "data":
            rest = list(lines)
            if not rest:
                raise DataError(f"{path}: has no rows after @data")
            return header, rest
        if key.lower() not in known:
            raise DataError(
                f"{path}, line {number}: {shown('@' + key)} is not a key of {what}; known are "
                f"@{', @'.join(known)}"
            )
        header.setdefault(key.lower(), []).append((number, value.strip()))
    raise DataError(f"{path}: has no line @data, which begins the cases; is this {what}?")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbers the lines that are neither empty nor comments."""
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith(("#", "%")):
            yield number, stripped


def _flag(path: AnyPath, header: dict[str, list[tuple[int, str]]], key: str) -> bool:
    """Reads a boolean key; a missing one is false."""
    if key not in header:
        return False
    number, value = header[key][-1]
    word = value.split(" ")[0].lower()
    if word not in _YES:
        raise DataError(
            f"{path}, line {number}: @{key} must be true or false, but is {shown(word)}"
        )
    return _YES[word]


def _label(path: AnyPath, number: int, key: str, text: str, declared: str) -> str | float:
    """Reads a case's class, one of the `declared` ones if there are any, or its target number."""
    if key == "classlabel":
        if not text or text == _MISSING:
            raise DataError(
                f"{path}, line {number}: has no class after the last :, though @classLabel says "
                "that cases have one; add it, or remove the case"
            )
        # Spaces part the declared classes, and may be in them.
        if declared and f" {text} " not in f" {declared} ":
            raise DataError(
                f"{path}, line {number}: has the class {shown(text)}, which @classLabel does not "
                f"name ({shown(declared)}); mend the case, or add the class to @classLabel"
            )
        return text
    value = _number(path, number, text, "@targetLabel")
    if np.isnan(value):
        raise DataError(f"{path}, line {number}: the target is missing; remove the case")
    return value


def _dimension(
    path: AnyPath, number: int, place: int, text: str, stamped: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Reads the times and values of one dimension of a case."""
    what = f"dimension {place}"
    if not stamped:
        values = _numbers(path, number, text, what)
        return np.arange(len(values)), values
    pairs = _STAMPED.findall(text)
    if not pairs or _STAMPED.sub("", text).strip(" ,"):
        raise DataError(
            f"{path}, line {number}: {what} must be pairs such as (0,1.5),(1,2.5), since "
            "@timeStamps is true; dates that hold a : are not read"
        )
    at = _numbers(path, number, ",".join(time for time, _ in pairs), f"a time of {what}")
    return at, _numbers(path, number, ",".join(value for _, value in pairs), what)


def _numbers(path: AnyPath, number: int, text: str, what: str) -> np.ndarray:
    """Parses comma-separated numbers; a missing one is NaN."""
    words = [word.strip() for word in text.split(",")]
    try:
        values = np.array([np.nan if word == _MISSING else float(word) for word in words])
    except ValueError:
        word = next(word for word in words if not _is_number(word))
        raise DataError(
            f"{path}, line {number}: {what} has {shown(word)}, not a number; a missing one "
            f"is written {_MISSING}"
        ) from None
    wrong = [word for word, value in zip(words, values, strict=True) if np.isinf(value)]
    if wrong:
        raise DataError(f"{path}, line {number}: {what} has {shown(wrong[0])}; mend or remove it")
    return values


def _number(path: AnyPath, number: int, text: str, what: str) -> float:
    """Parses one number; a missing one is NaN."""
    values = _numbers(path, number, text, what)
    if len(values) > 1:
        raise DataError(f"{path}, line {number}: {what} must be one number, but is {shown(text)}")
    return float(values[0])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word == _MISSING
    return True


def _attribute(path: AnyPath, number: int, text: str) -> tuple[str, str]:
    """Reads the name and type that an `@attribute` declares."""
    name, _, kind = text.rpartition(" ")
    if not name.strip() or kind not in ("string", "numeric", "date"):
        raise DataError(
            f"{path}, line {number}: @attribute must have a name and string, numeric or date, but "
            f"has {shown(text)}"
        )
    return name.strip(), kind


def _as_declared(path: AnyPath, number: int, name: str, kind: str, text: str) -> str | float:
    if kind == "numeric":
        return _number(path, number, text, f"attribute {shown(name)}")
    return text


def _named(path: AnyPath, own: np.ndarray) -> pa.Array:
    """Gives each case an id that is unique across files: the file's name and a number from 1."""
    return _repeated([f"{path.stem}-{n + 1}" for n in range(own[-1] + 1)], own)


def _repeated(values: list[Any], own: np.ndarray) -> pa.Array:
    """Gives each step the value of its case, as a code: a long text is kept once."""
    return pa.DictionaryArray.from_arrays(pa.array(own, pa.int32()), pa.array(values))


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))
