"""The settings of a search are checked at once."""

from __future__ import annotations

from typing import Any

import pytest

from raymeta.errors import SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.search import AxSearcher


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": "1"}, r"seed must be a whole number >= 0 and < 2\*\*64, but got '1'"),
        ({"seed": -1}, "seed must be a whole number .*, but got -1"),
        ({"seed": 2**64}, "seed must be a whole number .*, but got 18446744073709551616"),
        ({"step_metric": None}, "step_metric must be a text, but got None"),
        ({"sem_suffix": 1}, "sem_suffix must be a text, but got 1"),
    ],
)
def test_settings_of_another_type_are_refused_at_once(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        AxSearcher([Parameter(name="x", low=0, high=1)], metric="score", mode="max", **settings)
