"""The report's table of the tasks that gain from adaptation."""

from __future__ import annotations

import numpy as np
import pytest

from raymeta.evaluation.query_scores import DrawnQueries, QueryScores
from raymeta.evaluation.scores import MetaTest, Row, Score
from raymeta.report.per_unit import MAX_UNITS, unit_table

SCORE = Score(0.5, 0.1)


def judged(*, steps: int, higher: bool) -> MetaTest:
    own = Row("tuned", "network", SCORE, SCORE, steps, (SCORE,) * (steps + 1))
    controls = [
        Row(name, name, SCORE, SCORE, ahead=Score(lead, 0.1))
        for name, lead in (("easy", 0.4), ("hard", 0.1))
    ]
    return MetaTest("accuracy", higher, 2, {"person": 3}, "", (own, *controls))


def scores(num_people: int = 3) -> QueryScores:
    """Makes two episodes by `num_people` people, one query each."""
    people = np.tile(np.arange(num_people), (2, 1))
    own = np.stack([people / 10, people / 10 + 0.2])  # the mean: people / 10 + 0.1
    unadapted = np.where(people == 1, 0.0, 0.25)
    hard, easy = np.full(people.shape, 0.2), np.zeros(people.shape)
    drawn = DrawnQueries({"person": people}, np.arange(2))
    return QueryScores(own, unadapted, {"easy": easy, "hard": hard}, drawn)


@pytest.mark.parametrize(
    ("higher", "rows"),
    [
        (
            True,
            [
                ["1", "2", "0.200", "0.000", "0.200"],
                ["2", "2", "0.300", "0.100", "0.050"],
                ["0", "2", "0.100", "-0.100", "-0.150"],
            ],
        ),
        (
            False,
            [
                ["0", "2", "0.100", "0.100", "0.150"],
                ["2", "2", "0.300", "-0.100", "-0.050"],
                ["1", "2", "0.200", "-0.000", "-0.200"],
            ],
        ),
    ],
)
def test_units_are_in_the_order_of_their_gain(higher: bool, rows: list[list[str]]) -> None:
    head, found = unit_table(judged(steps=2, higher=higher), scores(), "person")
    assert head == ["person", "queries", "accuracy", "ahead of: hard", "gain by adaptation"]
    assert [[text.replace("-0.000", "0.000") for text in row] for row in found] == [
        [text.replace("-0.000", "0.000") for text in row] for row in rows
    ]


def test_what_adapts_at_once_is_in_the_order_of_its_lead() -> None:
    head, found = unit_table(judged(steps=0, higher=True), scores(), "person")
    assert head[-1] == "ahead of: hard"
    assert [row[0] for row in found] == ["2", "1", "0"]


@pytest.mark.parametrize("num_people", [1, MAX_UNITS + 1])
def test_one_unit_or_very_many_have_no_table(num_people: int) -> None:
    found = unit_table(judged(steps=0, higher=True), scores(num_people), "person")
    assert found == ([], [])
