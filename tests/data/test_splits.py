"""Deals by the hash of names: stable, complete, and for the shipped data those of version 0.1."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymeta.data.splits import deal_sealed, deal_units, is_held_back
from raymeta.episodes import Split
from raymeta.errors import DataError
from raymeta.experiment.file import load_experiment
from raymeta.tasks.load import load_tasks

# What version 0.1 dealt, by split_seed: writers and first letters of test and validation.
OF_VERSION_0_1 = [
    ({"w02", "w08"}, {"w04", "w11"}, "BIKLRTVY"),
    ({"w03", "w08"}, {"w05", "w07"}, "BFGHKNRZ"),
    ({"w01", "w09"}, {"w03", "w11"}, "AEKNPQRS"),
    ({"w05", "w08"}, {"w02", "w11"}, "BCHKPRSU"),
]

names = st.sets(st.text(max_size=8), min_size=8, max_size=20)


@pytest.mark.parametrize("split_seed", range(4))
def test_shipped_characters_and_writers_are_dealt_as_in_version_0_1(split_seed: int) -> None:
    deal = load_tasks(load_experiment("pen", [f"tasks.split_seed={split_seed}"])).deal
    test, val, letters = OF_VERSION_0_1[split_seed]

    def dealt(axis: str, split: Split) -> set[str]:
        return {unit.removeprefix("UJIpenchars-") for unit, s in deal[axis].items() if s == split}

    assert (dealt("writer", "test"), dealt("writer", "val")) == (test, val)
    assert dealt("shape", "test") == set("0123456789")
    assert dealt("shape", "val") == set(letters)
    assert len(dealt("writer", "train")) == 7
    assert len(dealt("shape", "train")) == 17


@settings(deadline=None)
@given(units=names, new=st.text(max_size=8), salt=st.text(max_size=4))
def test_a_new_unit_pushes_others_only_towards_training(
    units: set[str], new: str, salt: str
) -> None:
    before = deal_units(units, num_test=2, num_val=3, salt=salt)
    after = deal_units(units | {new}, num_test=2, num_val=3, salt=salt)
    rank = {"test": 0, "val": 1, "train": 2}
    assert all(rank[after[unit]] >= rank[split] for unit, split in before.items())
    assert sorted(after.values()).count("test") == 2
    assert sorted(after.values()).count("val") == 3


@settings(deadline=None)
@given(units=names, salt=st.text(max_size=4))
def test_a_deal_does_not_depend_on_the_order_of_the_units(units: set[str], salt: str) -> None:
    ordered = sorted(units)
    one = deal_units(ordered, num_test=2, num_val=2, salt=salt)
    assert one == deal_units(ordered[::-1] + ordered[:3], num_test=2, num_val=2, salt=salt)


def test_units_that_go_first_fill_the_test() -> None:
    units = [*"abcdefgh", "1", "2"]
    dealt = deal_units(units, num_test=3, num_val=2, salt="s", goes_first=str.isdigit)
    assert {unit for unit, split in dealt.items() if split == "test"} > {"1", "2"}


def test_salts_give_different_deals() -> None:
    units = [f"unit {n}" for n in range(12)]
    deals = [deal_units(units, num_test=3, num_val=3, salt=str(salt)) for salt in range(20)]
    assert len({tuple(sorted(deal.items())) for deal in deals}) == 20


@pytest.mark.parametrize("name", ["pen", "sentiment"])
def test_the_sealed_units_of_shipped_data_were_in_meta_training(name: str) -> None:
    ordinary = load_tasks(load_experiment(name)).deal
    sealed = load_tasks(load_experiment(name, ["evaluation.sealed=true"])).deal
    for axis, units in sealed.items():
        test = [unit for unit, split in units.items() if split == "test"]
        assert test
        assert {ordinary[axis][unit] for unit in test} == {"train"}


def test_a_sealed_deal_needs_training_units_for_its_test_on_one_axis() -> None:
    def ordinary(num_train: int) -> dict[str, Split]:
        names = [f"u{n}" for n in range(num_train + 3)]
        return deal_units(names, num_test=2, num_val=1, salt="s")

    deal_sealed({"few": ordinary(1), "many": ordinary(2)}, salt="s")
    with pytest.raises(DataError, match=r"fewer.*few: 1 for 2, less: 0 for 2.*hold out fewer"):
        deal_sealed({"few": ordinary(1), "less": ordinary(0)}, salt="s")


def test_the_share_held_back_is_met() -> None:
    held = [is_held_back(f"sentence {n}", share=0.2, salt="s") for n in range(5000)]
    assert sum(held) / len(held) == pytest.approx(0.2, abs=0.02)
