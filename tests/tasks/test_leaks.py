"""An independent checker finds planted leaks of each kind, and none in sound splits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from raymeta.data.sequences import Sequences
from raymeta.episodes import SPLITS, Episode, InputSpec, Split, TaskDistribution
from raymeta.tasks.cutter import Cutter
from raymeta.tasks.forecast import ForecastSampler
from raymeta.tasks.leaks import WINDOW, find_future_reads, find_leaks


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


def forecasts(cutter: Cutter) -> TaskDistribution:
    rng = np.random.default_rng(0)
    x = {split: [rng.normal(size=(30, 4)) for _ in range(3)] for split in SPLITS}
    return TaskDistribution(
        name="series",
        input_spec=InputSpec("forecast", 3, num_features=cutter.num_inputs(4)),
        seed=0,
        sample_episode=ForecastSampler(
            cutter,
            x,
            {split: [cutter.cuts(own) for own in x[split]] for split in SPLITS},
            {split: {} for split in SPLITS},
        ),
    )


CUTTER = Cutter(
    context=6,
    horizon=3,
    season=2,
    stride=2,
    num_shots=2,
    num_queries=2,
    difference="drift",
    num_known=2,
    num_calendar=1,
)


@dataclass(frozen=True)
class Cheat(Cutter):
    """Reads what it must not: its kind names what."""

    kind: str = ""

    def episode(self, x: np.ndarray, cut: int) -> Episode:
        found = super().episode(x, cut)
        assert found.query_past is not None
        match self.kind:
            case "target":
                found.query_x[0, -1, 0] = x[cut, 0]
            case "feature":
                found.support_x[0, 0, 2] = x[cut + 1, 1]
            case "unit":
                found.query_past.unit[1] = x[:, 0].std()
            case _:  # what is known, but of later steps
                found.query_x[0, -1, 3] = x[cut + 3, 2]
        return found


@pytest.mark.parametrize("num_known", [0, 2])
def test_forecasts_read_nothing_of_the_future(num_known: int) -> None:
    cutter = replace(CUTTER, num_known=num_known, num_calendar=num_known // 2)
    assert find_future_reads(forecasts(cutter), num_known) == []


@pytest.mark.parametrize("kind", ["target", "feature", "unit", "known later"])
def test_a_planted_look_into_the_future_is_found(kind: str) -> None:
    found = find_future_reads(forecasts(Cheat(**CUTTER.__dict__, kind=kind)), 2)
    assert [finding.level for finding in found] == ["error"] * 3
    assert "5 of 5 episodes of meta-train read it: query" in found[0].text


def test_a_column_that_is_called_unknown_is_found() -> None:
    assert len(find_future_reads(forecasts(CUTTER), 1)) == 3


def test_silence_is_no_overlap() -> None:
    splits = sound()
    for split in SPLITS:
        x = np.vstack([np.zeros((15, 2)), splits[split].x[0]])
        splits[split] = with_first(splits[split], x)
    assert find_leaks(splits, ["", "person"]) == []
