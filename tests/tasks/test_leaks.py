"""An independent checker finds planted leaks of each kind, and none in sound splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raymeta.data.sequences import Sequences
from raymeta.episodes import SPLITS, Split
from raymeta.tasks.leaks import WINDOW, find_leaks


def sound() -> dict[Split, Sequences]:
    rng = np.random.default_rng(0)
    return {
        split: Sequences(
            x=tuple(rng.normal(size=(20, 2)) for _ in range(4)),
            classes=tuple(f"{split} class {n % 2}" for n in range(4)),
            groups={"person": tuple(f"{split} person {n % 2}" for n in range(4))},
            ids=tuple(f"{split} {n}" for n in range(4)),
        )
        for split in SPLITS
    }


def with_first(sequences: Sequences, x: np.ndarray) -> Sequences:
    return replace(sequences, x=(x, *sequences.x[1:]))


def test_sound_splits_have_no_leak() -> None:
    assert find_leaks(sound(), ["", "person"]) == []


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("val", "test"), ("train", "val")])
@pytest.mark.parametrize("kind", ["class", "person", "copies", "overlap"])
def test_a_planted_leak_is_found(kind: str, one: Split, other: Split) -> None:
    splits = sound()
    own = splits[one]
    match kind:
        case "class":
            splits[other] = replace(splits[other], classes=own.classes)
        case "person":
            splits[other] = replace(splits[other], groups=own.groups)
        case "copies":
            splits[other] = with_first(splits[other], own.x[2])
        case _:
            splits[other] = with_first(splits[other], own.x[2][20 - WINDOW :])
    (found,) = find_leaks(splits, ["", "person"])
    assert found.subject == kind
    assert found.level == ("warning" if kind == "overlap" else "error")
    assert one in found.text
    assert other in found.text


def test_silence_is_no_overlap() -> None:
    splits = sound()
    for split in SPLITS:
        x = np.vstack([np.zeros((15, 2)), splits[split].x[0]])
        splits[split] = with_first(splits[split], x)
    assert find_leaks(splits, ["", "person"]) == []
