"""The sections within the settings of tables: spectra, and targets that are numbers."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from raymeta.sections import Section


class Spectrum(Section):
    """The part of an example's spectrum that a network reads in place of its time steps."""

    frequencies: int = Field(
        64,
        ge=2,
        le=65536,
        description="the lowest ones, from 0; frequency k is k / max_steps (k / window) cycles a "
        "row",
    )
    per_step: int = Field(
        1, ge=1, le=4096, description="neighbouring frequencies that one time step holds"
    )

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        if self.frequencies % self.per_step:
            raise ValueError(
                f"frequencies must be a multiple of per_step, but got (frequencies="
                f"{self.frequencies}, per_step={self.per_step})"
            )
        return self


class NumberTarget(Section):
    """A number is to be predicted for every example."""

    number: str = Field(description="column of the numbers; that at an example's last row counts")


class RemainingLife(Section):
    """The remaining life, after an example's last row, of a unit that ran to its failure."""

    rul: str = Field(
        description="column of the times, such as cycles; a sequence's last one is its failure"
    )
    cap: float | None = Field(
        None, gt=0, description="longer lives count as this: a unit that is well shows no age"
    )
