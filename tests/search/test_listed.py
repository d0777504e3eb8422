"""A searcher of listed points, as Tune calls it."""

from __future__ import annotations

from pathlib import Path

from ray.tune.search import Searcher

from raymeta.search.listed import ListedPoints
from raymeta.search.records import TrialRecord
from raymeta.search.saved import read_state
from raymeta.search.settings import SearchSettings

SETTINGS = SearchSettings(objectives=(("score", "max"),), step_metric="step", max_steps=4)
POINTS = [{"x": 1}, {"x": 2}, {"x": 3}]


def test_each_point_is_tried_once_and_as_many_at_once_as_there_is_room_for() -> None:
    searcher = ListedPoints(POINTS, SETTINGS, {})
    assert searcher.set_search_properties(None, None, {})
    searcher.set_max_concurrency(2)
    assert (searcher.metric, searcher.mode) == ("score", "max")
    assert [searcher.suggest(name) for name in "abc"] == [*POINTS[:2], None]
    searcher.on_trial_complete("a", {"score": 0.5, "step": 4})
    assert searcher.suggest("c") == POINTS[2]
    searcher.on_trial_complete("b", error=True)
    assert searcher.suggest("d") == Searcher.FINISHED
    assert [r.status for r in searcher.records.values()] == ["completed", "failed", "running"]


def test_an_interrupted_trial_goes_on_with_its_curve_and_takes_a_slot(tmp_path: Path) -> None:
    ended = TrialRecord({"x": 0}, "given", "completed", [(4, 0.1, None)])
    before = TrialRecord({"x": 9}, "given", "failed", [(2, 0.3, 0.1)])
    searcher = ListedPoints(POINTS[:1], SETTINGS, {"ended": ended})
    searcher.set_max_concurrency(1)
    assert searcher.run_again("old", before) == {"x": 9}
    assert searcher.suggest("new") is None
    searcher.on_trial_result("old", {"score": 0.3, "step": 2, "score_sem": 0.1})
    searcher.on_trial_complete("old", {"score": 0.4, "step": 4, "score_sem": 0.1})
    assert searcher.suggest("new") == POINTS[0]
    assert searcher.records["old"].curve == [(2, 0.3, 0.1), (4, 0.4, 0.1)]
    assert searcher.records["old"].status == "completed"
    searcher.save(str(tmp_path / "state"))
    assert read_state(tmp_path / "state").records == searcher.records
