"""Every registered acquisition function is allowed in its place, and proposes points."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from raymeta.acquisitions import ACQUISITIONS, AUTO, Acquisition
from raymeta.errors import SearchError
from raymeta.experiment.parameter import Parameter
from raymeta.experiment.schema import Search
from raymeta.search.ax_model import AxModel
from raymeta.search.records import TrialRecord
from raymeta.search.settings import Mode, SearchSettings
from raymeta.search.space import Space

SPACE = Space(
    (
        Parameter(name="x", low=0, high=1),
        Parameter(name="rate", low=1e-4, high=1, log=True),
        Parameter(name="cell", choices=("rnn", "gru", "lstm")),
    )
)
LOSS: tuple[str, Mode] = ("loss", "min")
SECONDS: tuple[str, Mode] = ("seconds", "min")
every_acquisition = pytest.mark.parametrize("acquisition", ACQUISITIONS, ids=lambda a: a.name)


def settings_for(acquisition: Acquisition, *, fits: bool = True) -> SearchSettings:
    objectives = (LOSS, SECONDS) if acquisition.is_multi_objective == fits else (LOSS,)
    return SearchSettings(objectives=objectives, acquisition=acquisition.name, num_sobol=3)


def test_names_are_distinct_and_none_is_the_default() -> None:
    names = [acquisition.name for acquisition in ACQUISITIONS]
    assert len({*names, AUTO}) == len(names) + 1


@every_acquisition
def test_settings_allow_it_for_its_number_of_objectives_only(acquisition: Acquisition) -> None:
    assert settings_for(acquisition).acquisition == acquisition.name
    with pytest.raises(SearchError, match=f"acquisition {acquisition.name} is for"):
        settings_for(acquisition, fits=False)


@every_acquisition
def test_experiment_files_allow_those_for_one_objective(acquisition: Acquisition) -> None:
    values = {"acquisition": acquisition.name}
    if acquisition.is_multi_objective:
        with pytest.raises(ValidationError, match="acquisition"):
            Search.model_validate(values)
    else:
        assert Search.model_validate(values).acquisition == acquisition.name


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SearchError) as caught:
        SearchSettings(acquisition="eii")
    for name in (AUTO, *(acquisition.name for acquisition in ACQUISITIONS)):
        assert name in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("num_failed", [0, 2])
@every_acquisition
def test_its_model_proposes_a_point_of_the_space(acquisition: Acquisition, num_failed: int) -> None:
    records = {}
    for number, x in enumerate((0.1, 0.3, 0.5, 0.7, 0.85, 0.95)):
        point = {"x": x, "rate": 10 ** (-4 * x), "cell": ("rnn", "gru", "lstm")[number % 3]}
        is_failed = number >= 6 - num_failed
        records[str(number)] = (
            TrialRecord(point, "sobol", "failed")
            if is_failed
            else TrialRecord(
                point, "sobol", "completed", [(1, 1 - x, None)], {"seconds": [(1, x**2, None)]}
            )
        )
    proposal = AxModel(SPACE, settings_for(acquisition)).propose(records)
    assert proposal is not None
    assert (proposal.source, proposal.reason) == ("bo", "")
    assert SPACE.contains(proposal.point)
