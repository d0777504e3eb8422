"""The base of every section of an experiment, and the types that sections share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raymeta.errors import shown

Probability = Annotated[float, Field(ge=0, lt=1)]
NUM_SEEDS = 2**64  # what torch's generators take
Seed = Annotated[int, Field(ge=0, lt=NUM_SEEDS)]


class Section(BaseModel):
    """Base of every section: unknown keys refused, values never coerced, nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _at_most_64_bits(cls, value: object) -> object:
        if isinstance(value, int) and value.bit_length() > 64:
            raise ValueError(f"takes whole numbers of at most 64 bits, but got {shown(value)}")
        return value
