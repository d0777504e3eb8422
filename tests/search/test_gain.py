"""The model's bound on the remaining gain against one by hand, and a search that it ends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from raymeta.experiment.parameter import Parameter
from raymeta.search.ax_model import AxModel
from raymeta.search.gain import confidence, gain_bound
from raymeta.search.records import TrialRecord
from raymeta.search.settings import Mode, SearchSettings
from raymeta.search.space import Space

OPTIONS: dict[str, Any] = {"num_restarts": 8, "raw_samples": 256}
XS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)


def model_of(mode: Mode, **settings: Any) -> AxModel:
    objectives = (("score", mode),)
    space = Space((Parameter(name="x", low=0, high=1),))
    return AxModel(space, SearchSettings(objectives=objectives, num_sobol=4, **settings))


def trials(sign: float, scale: float = 10.0) -> dict[str, TrialRecord]:
    values = [sign * scale * math.exp(-8 * (x - 0.7) ** 2) for x in XS]
    return {
        str(x): TrialRecord({"x": x}, "sobol", "completed", [(1, value, None)])
        for x, value in zip(XS, values, strict=True)
    }


def test_confidence_is_that_of_the_paper() -> None:
    # 2 log(2 * 10^2 * pi^2 / (6 * 0.1)) / 5
    assert confidence(2, 10) == pytest.approx(0.4 * math.log(200 * math.pi**2 / 0.6), rel=1e-12)
    assert confidence(6, 40) > confidence(6, 20) > confidence(2, 20)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "sign"), [("max", 1.0), ("min", -1.0)])
def test_the_bound_is_that_on_a_grid_in_the_metrics_own_units(mode: Mode, sign: float) -> None:
    model = model_of(mode)
    model.learn(trials(sign))
    _, adapter = model.fitted()
    found = gain_bound(adapter, OPTIONS)

    surrogate = adapter.generator.surrogate.model
    deviations = math.sqrt(confidence(1, len(XS)))
    units = {"any": torch.linspace(0, 1, 4001).double(), "tried": torch.tensor(XS).double()}
    bounds = {}
    with torch.no_grad():
        for name, xs in units.items():
            posterior = surrogate.posterior(xs[:, None])
            mean, std = sign * posterior.mean.ravel(), posterior.variance.sqrt().ravel()
            way = 1 if name == "any" else -1
            bounds[name] = sign * float((mean + way * deviations * std).max())
    transforms = adapter.transforms
    (power,) = transforms["PowerTransformY"].power_transforms.values()
    (scale,) = transforms["StandardizeY"].Ystd.values()
    (shift,) = transforms["StandardizeY"].Ymean.values()
    ends = [
        float(power.inverse_transform(np.array([[value]]))[0, 0]) * scale + shift
        for value in (bounds["any"], bounds["tried"])
    ]
    assert found > 0
    assert found == pytest.approx(sign * (ends[0] - ends[1]), rel=1e-3)


@pytest.mark.slow
def test_the_bound_is_asked_for_by_its_setting_and_falls_as_trials_are_made() -> None:
    assert model_of("max").propose(trials(1.0)).gain is None  # type: ignore[union-attr]
    model = model_of("max", stop_when_gain_below=0.1)
    changes = {key: record for key, record in trials(1.0).items() if float(key) < 0.5}
    gains = []
    for number in range(8):
        proposal = model.propose(changes)
        assert proposal is not None
        gains.append(proposal.gain)
        x = proposal.point["x"]
        value = 10 * math.exp(-8 * (x - 0.7) ** 2)
        record = TrialRecord({"x": x}, proposal.source, "completed", [(1, value, None)])
        changes = {f"t{number}": record}
    assert gains[0] is None  # of a quasi-random point
    assert gains[1] is not None
    assert gains[-1] is not None
    assert gains[-1] < 0.1 < gains[1]
