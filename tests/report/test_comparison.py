"""Runs side by side: their paired differences, and the pairs that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raymeta import api
from raymeta.errors import RunError
from raymeta.evaluation.query_scores import DrawnQueries, QueryScores
from raymeta.report.comparison import paired_lead
from raymeta.uncertainty import Units
from tests.browser import chromium
from tests.report.runs import EPISODES, finished_run, query_scores


def test_the_lead_is_the_mean_difference_with_the_interval_over_units() -> None:
    first, other = query_scores(0), query_scores(1)
    lead = paired_lead(first, other, 1)
    difference = other.own[0] - first.own[0]
    units = Units(first.queries.units, *difference.shape).estimate(difference)
    assert lead.score is not None
    assert lead.score.mean == pytest.approx(difference.mean(), abs=1e-12)
    assert lead.score.half_width == pytest.approx(units.half_width, abs=1e-12)
    assert "another training seed" in lead.note
    opposite = paired_lead(first, other, -1).score  # a loss: lower is better
    assert opposite is not None
    assert opposite.mean == pytest.approx(-lead.score.mean)


def test_pairing_cancels_the_difficulty_of_shared_queries() -> None:
    first = query_scores(0)
    better = QueryScores(first.own + 0.01, first.unadapted, first.controls, first.queries)
    lead = paired_lead(first, better, 1)
    assert lead.verdict == "better"
    assert lead.score is not None
    assert lead.score.half_width == pytest.approx(0, abs=1e-9)
    assert paired_lead(better, first, 1).verdict == "worse"


def test_trainings_count_where_both_runs_have_several() -> None:
    first, other = query_scores(0, trainings=3), query_scores(1, trainings=2)
    lead = paired_lead(first, other, 1)
    values = other.own - first.own[:2]
    units = Units(first.queries.units, *values.shape[1:]).of_trainings(2)
    assert lead.score is not None
    assert lead.score.half_width == pytest.approx(units.estimate(values).half_width, abs=1e-12)
    assert lead.note == "the first 2 trainings of each"


def test_a_longer_meta_test_is_compared_over_the_episodes_that_both_have() -> None:
    first, other = query_scores(0), query_scores(0, episodes=2 * EPISODES)
    lead = paired_lead(first, other, 1)
    assert lead.score is not None
    assert lead.note.startswith(f"over the first {EPISODES} episodes, which both have, of up to 48")


def test_other_episodes_are_not_paired() -> None:
    first, other = query_scores(0), query_scores(1)
    digests = other.queries.digests.copy()
    digests[5] += 1
    moved = DrawnQueries(other.queries.units, digests)
    changed = QueryScores(other.own, other.unadapted, other.controls, moved)
    lead = paired_lead(first, changed, 1)
    assert lead.score is None
    assert lead.verdict == "not paired"
    assert "different episodes" in lead.note


@pytest.mark.slow
def test_runs_are_compared_from_their_folders(tmp_path: Path) -> None:
    finished_run(tmp_path, name="one", seed=0)
    finished_run(tmp_path, name="two", seed=1)
    origin = finished_run(tmp_path, name="three", seed=2)
    content = origin.read_json("run.json")
    origin.write_json("run.json", content | {"data": "other data"})
    found = api.compare(["one", "two", "three"], runs_dir=tmp_path, output=tmp_path / "all.html")
    assert [lead.verdict == "not paired" for lead in found.leads] == [False, True]
    assert any("their data differ" in note for note in found.notes())
    rate = found.differences["maml.inner_lr"]
    assert len(set(rate)) == 3
    assert "name" not in found.differences
    page = (tmp_path / "all.html").read_text()
    assert "two and one" in page
    assert "Ahead of one by" in page


@pytest.mark.slow
def test_a_run_without_scores_is_listed_and_says_how_to_get_them(tmp_path: Path) -> None:
    finished_run(tmp_path, name="one")
    other = finished_run(tmp_path, name="two", seed=1)
    (Path(str(other.path)) / "scores.safetensors").unlink()
    found = api.compare(["one", "two"], runs_dir=tmp_path)
    assert found.leads[0].score is None
    assert "`raymeta evaluate two` records them" in found.notes()[0]
    assert len(found.rows()) == 2


def test_one_run_and_a_run_twice_are_refused(tmp_path: Path) -> None:
    finished_run(tmp_path, name="one")
    with pytest.raises(RunError, match="at least two runs, but got 1"):
        api.compare(["one"], runs_dir=tmp_path)
    with pytest.raises(RunError, match="name each run once"):
        api.compare(["one", str(tmp_path / "one")], runs_dir=tmp_path)


@pytest.mark.slow
def test_chromium_draws_the_page_of_a_comparison(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two")):
        finished_run(tmp_path, name=name, seed=number)
    api.compare(["one", "two"], runs_dir=tmp_path, output=tmp_path / "both.html")
    with chromium() as tab:
        tab.open(tmp_path / "both.html", width=390)
        assert tab.messages == []
        assert tab.value("document.querySelectorAll('.plot .trace').length") == 3
        assert tab.value("document.documentElement.scrollWidth") <= 390


def test_the_standard_error_is_not_that_of_independent_queries() -> None:
    # A bias of whole writers: the interval must be wider than over queries alone.
    first, other = query_scores(0), query_scores(0)
    shifted = other.own + (other.queries.units["writer"] - 1.5) * 0.2
    lead = paired_lead(first, QueryScores(shifted, other.unadapted, {}, other.queries), 1)
    assert lead.score is not None
    assert lead.score.half_width is not None
    naive = 1.96 * np.std(shifted - first.own) / np.sqrt(shifted.size)
    assert lead.score.half_width > 3 * naive
