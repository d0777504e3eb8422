"""Deals units (writers, classes, domains) into the meta-splits.

A deal orders units by a hash of their own names: the first go to meta-test, the next to
meta-validation, the rest to meta-training.  So a new unit never moves a former meta-training unit
into meta-validation or meta-test: it can only take a place there, and push another one out.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from raymeta.episodes import Split
from raymeta.errors import DataError

# Axis -> unit -> split: {"writer": {"UJIpenchars-w01": "train", …}, …}.  JSON keeps it as it is.
Deal = Mapping[str, Mapping[str, Split]]


def deal_units(
    units: Iterable[str],
    *,
    num_test: int,
    num_val: int,
    salt: str,
    goes_first: Callable[[str], bool] | None = None,
) -> dict[str, Split]:
    """Deals units into the splits.

    Args:
        units: their names.
        num_test: how many go to meta-test.
        num_val: how many of the others go to meta-validation.
        salt: another one gives another deal.
        goes_first: units for which it holds are dealt before all others.
    """

    def place(unit: str) -> tuple[bool, bytes, str]:
        return goes_first is not None and not goes_first(unit), _hash(salt, unit), unit

    order = sorted(set(units), key=place)
    return {
        unit: "test" if rank < num_test else "val" if rank < num_test + num_val else "train"
        for rank, unit in enumerate(order)
    }


def deal_sealed(deal: Deal, *, salt: str) -> dict[str, dict[str, Split]]:
    """Makes the sealed deal of the same units, with split sizes as in `deal` on every axis.

    The sealed meta-test takes units from the meta-training of `deal`, so that they were in nobody's
    meta-validation or meta-test.

    Args:
        deal: the ordinary one.
        salt: another one gives another sealed deal.

    Raises:
        DataError: no axis has as many such units as the meta-test needs.
    """
    sealed = {}
    for axis, ordinary in deal.items():
        counts = Counter(ordinary.values())
        sealed[axis] = deal_units(
            ordinary,
            num_test=counts["test"],
            num_val=counts["val"],
            salt=f"sealed-{axis}-{salt}",
            goes_first=lambda unit, ordinary=ordinary: ordinary[unit] == "train",  # type: ignore[misc]
        )
    if all(
        any(split == "test" and deal[axis][unit] != "train" for unit, split in units.items())
        for axis, units in sealed.items()
    ):
        found = ", ".join(
            f"{axis}: {Counter(units.values())['train']} for {Counter(units.values())['test']}"
            for axis, units in deal.items()
        )
        raise DataError(
            "evaluation.sealed needs, on one axis at least, as many meta-training units as the "
            f"meta-test has, but there are fewer ({found}); add data, or hold out fewer units"
        )
    return sealed


def is_held_back(unit: str, *, share: float, salt: str) -> bool:
    """Whether a unit belongs to the held-back `share`; other units do not matter."""
    return int.from_bytes(_hash(salt, unit), "big") < share * 2**64


def _hash(salt: str, unit: str) -> bytes:
    return hashlib.blake2b(f"{salt}/{unit}".encode(), digest_size=8).digest()
