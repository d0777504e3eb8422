from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from raymeta.evaluation.scores import Z_95, MetaTest, Row, Score
from raymeta.uncertainty import Units


def scored(mean: float, half_width: float | None, name: str = "row") -> Row:
    score, over_episodes = Score(mean, half_width), Score(mean, 0.01)
    return Row(name, name, score, over_episodes, 5, (Score(0.2, 0.01), over_episodes))


def result(*rows: Row, higher_is_better: bool = True) -> MetaTest:
    return MetaTest("accuracy", higher_is_better, 600, {"writer": 2, "shape": 10}, "", rows)


def test_score_is_the_mean_with_its_normal_95_percent_interval():
    values = torch.tensor([0.2, 0.4, 0.9, 0.5])
    score = Score.of(values)
    standard_error = np.std(values.numpy(), ddof=1) / math.sqrt(4)
    assert score.mean == pytest.approx(0.5)
    assert score.half_width == pytest.approx(Z_95 * standard_error, rel=1e-6)


def test_interval_covers_the_true_mean_in_95_of_100_samples():
    samples = torch.randn(4000, 200, generator=torch.Generator().manual_seed(0))
    covered = [abs(s.mean) <= (s.half_width or 0.0) for s in map(Score.of, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


NAN = math.nan


@pytest.mark.parametrize(
    ("ahead", "verdict"),
    [
        (Score(0.1, 0.09), "beaten"),
        (Score(0.1, 0.1), "undecided"),
        (Score(0.1, 0.2), "undecided"),
        (Score(-0.1, 0.2), "undecided"),
        (Score(0.0, 0.0), "undecided"),
        (Score(-0.1, 0.09), "better"),
        (Score(0.1, None), "too few units"),
        (Score(-0.1, None), "too few units"),
        (Score(NAN, NAN), "not finite"),
        (Score(0.1, NAN), "not finite"),
        (Score(math.inf, 0.1), "not finite"),
    ],
)
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_control_is_beaten_only_where_the_interval_of_the_difference_lies_above_zero(
    ahead, verdict, higher_is_better
):
    control = replace(scored(0.7, 0.5), ahead=ahead)
    judged = result(scored(0.8, 0.5), control, higher_is_better=higher_is_better)
    assert judged.verdict(control) == verdict


@pytest.mark.parametrize("score", [Score(NAN, NAN), Score(0.8, NAN), Score(math.inf, 0.0)])
def test_nothing_is_beaten_by_a_network_without_a_finite_score(score):
    control = replace(scored(0.7, 0.1), ahead=Score(0.1, 0.01))
    network = replace(scored(0.8, 0.1), score=score)
    assert result(network, control).verdict(control) == "not finite"


def test_one_unit_of_every_axis_is_too_few_for_an_interval():
    values = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    one = {"writer": np.zeros((20, 4), dtype=np.int64)}
    score = Score.over(values, Units(one, 20, 4))
    assert score.mean == pytest.approx(values.mean().item())
    assert score.half_width is None
    both = one | {"sentence": np.arange(80).reshape(20, 4) % 30}
    assert (Score.over(values, Units(both, 20, 4)).half_width or 0) > 0
    assert (Score.over(values, Units({}, 20, 4)).half_width or 0) > 0


def test_a_meta_test_survives_a_round_trip_through_json():
    ahead = replace(scored(0.7, 0.02), ahead=Score(0.1, 0.01), detail="rate 1")
    few = replace(scored(0.7, None), ahead=Score(0.1, None))
    original = result(scored(0.8, 0.01, "tuned"), ahead, few)
    assert MetaTest.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_json_has_null_for_a_score_that_is_not_finite():
    broken = Row("random", "random", Score(NAN, NAN), Score(NAN, NAN), ahead=Score(NAN, NAN))
    original = result(scored(0.8, 0.01, "tuned"), broken)
    text = json.dumps(original.to_json(), allow_nan=False)
    again = MetaTest.from_json(json.loads(text))
    assert again.verdict(again.rows[1]) == "not finite"
    assert math.isnan(again.rows[1].score.mean)
    assert again.rows[0] == original.rows[0]
