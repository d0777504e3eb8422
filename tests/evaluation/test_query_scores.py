"""The scores of single queries: kept, read back, refused when damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from raymeta.errors import RunError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.meta_test import meta_test
from raymeta.evaluation.query_scores import SCORES_FILE, DrawnQueries, QueryScores
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from raymeta.tasks.load import load_tasks
from tests.report.runs import query_scores


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path, load_experiment("pen-maml"))


def test_what_was_written_is_read_back(run: Run) -> None:
    assert QueryScores.read(run) is None
    scores = query_scores(trainings=2)
    scores.write(run)
    found = QueryScores.read(run)
    assert found is not None
    np.testing.assert_array_equal(found.own, scores.own)
    np.testing.assert_array_equal(found.controls["random"], scores.controls["random"])
    np.testing.assert_array_equal(found.queries.units["writer"], scores.queries.units["writer"])
    np.testing.assert_array_equal(found.queries.digests, scores.queries.digests)


def test_the_table_of_the_meta_test_follows_from_the_kept_scores(
    untrained: Callable[..., Network],
) -> None:
    kept: list[QueryScores] = []
    own = untrained("pen-maml")
    result = meta_test(own, {}, label="tuned", num_episodes=6, keep=kept.append)
    (scores,) = kept
    assert result.rows[0].score.mean == pytest.approx(scores.own.mean(), abs=1e-12)
    for row in result.rows[1:]:
        lead = scores.own.mean(axis=0) - scores.controls[row.name]
        found = scores.units.estimate(lead)
        assert row.ahead is not None
        assert row.ahead.mean == pytest.approx(found.mean, abs=1e-12)
        assert row.ahead.half_width == pytest.approx(found.half_width, abs=1e-9)


@pytest.mark.parametrize(
    ("overrides", "is_same"),
    [
        ([], True),
        (["model.hidden_size=7", "training.seed=3"], True),
        (["seed=1"], False),
        (["tasks.num_ways=4"], False),
        (["tasks.num_queries=2"], False),
    ],
)
def test_episodes_are_known_by_their_examples(overrides: list[str], is_same: bool) -> None:
    one, other = (
        DrawnQueries.of(load_tasks(load_experiment("pen-maml", o)), 4) for o in ([], overrides)
    )
    assert len(set(one.digests.tolist())) == 4
    assert np.array_equal(one.digests, other.digests) == is_same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own": np.zeros((2, 3))}, "own has the shape"),
        ({"own": np.zeros((1, 24, 6), "float32")}, "own is float32"),
        ({"episodes": np.zeros(3, "int64")}, "episodes is int64"),
        ({"unit writer": np.zeros((24, 6))}, "unit writer is float64"),
        ({"control x": np.zeros((24, 5))}, "control x is float64"),
    ],
)
def test_damaged_scores_are_refused_with_their_remedy(
    run: Run, change: dict[str, np.ndarray], message: str
) -> None:
    scores = query_scores()
    whole = {
        "own": scores.own,
        "unadapted": scores.unadapted,
        "episodes": scores.queries.digests,
    }
    file = Path(str(run.path)) / SCORES_FILE
    file.write_bytes(save(whole | change))
    with pytest.raises(RunError, match=f"{message}.*`raymeta evaluate .* makes it anew"):
        QueryScores.read(run)
    file.write_bytes(b"no safetensors")
    with pytest.raises(RunError, match="is damaged"):
        QueryScores.read(run)
