"""Drawings for the report against the network, the data and the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raymeta.errors import RunError
from raymeta.evaluation.calibration import NO_CALIBRATION, query_logits
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.drawings import (
    DRAWINGS_FILE,
    MAX_BYTES,
    Drawings,
    draw_classification,
    draw_forecasts,
    draw_regression,
)
from raymeta.evaluation.own_units import forecasts_of
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run

Untrained = Callable[..., Network]


def test_characters_are_drawn_as_lines_with_the_networks_answers(untrained: Untrained) -> None:
    own = untrained("pen")
    drawn = draw_classification([own], NO_CALIBRATION, 5)
    logits, targets = query_logits([own], "test", range(5))
    first = drawn.episodes[0]
    assert (len(first.support), len(first.query), first.are_strokes) == (5, 15, True)
    episode, names = own.tasks.episode("test", 0), own.tasks.legend.classes
    order = np.argsort(episode.query_y, kind="stable")
    assert episode.way_classes is not None
    ways = [names[number] for number in episode.way_classes]
    assert [e.truth for e in first.query] == [ways[episode.query_y[row]] for row in order]
    answers = logits[0, 0].argmax(dim=-1).numpy()
    assert [e.answer for e in first.query] == [ways[answers[row]] for row in order]
    line = first.query[0].lines[0]
    steps = episode.query_x[order[0]]
    start = int(np.argmax(steps[1:, 2] > 0.5))
    np.testing.assert_allclose(line[:4], steps[start : start + 2, :2].ravel(), atol=1e-4)
    assert drawn.confusion is not None
    right = float((logits[0].argmax(dim=-1) == targets).sum())
    counts = np.array(drawn.confusion.counts)
    assert counts.trace() == pytest.approx(right)
    assert counts.sum() == pytest.approx(targets.numel())
    assert set(drawn.confusion.classes) <= set(names)
    assert sum(found.count for found in drawn.reliability) == targets.numel()
    share = sum(found.count * found.accuracy for found in drawn.reliability) / targets.numel()
    assert share == pytest.approx(right / targets.numel(), abs=1e-3)


def test_signals_are_drawn_in_the_units_of_the_table(untrained: Untrained) -> None:
    own = untrained("vowels")
    first = draw_classification([own], NO_CALIBRATION, 2).episodes[0]
    episode, legend = own.tasks.episode("test", 0), own.tasks.legend
    row = int(np.argsort(episode.support_y, kind="stable")[0])
    assert episode.support_lengths is not None
    steps = episode.support_x[row][: episode.support_lengths[row]]
    values = legend.mean + legend.deviation * steps
    assert first.channels == tuple(legend.channels[:6])
    np.testing.assert_allclose(first.support[0].lines, values[:, :6].T, rtol=1e-3, atol=1e-4)


def test_texts_are_drawn_as_they_were_written(untrained: Untrained) -> None:
    own = untrained("sentiment")
    drawn = draw_classification([own], NO_CALIBRATION, 2)
    episode = own.tasks.episode("test", 0)
    assert episode.query_ids is not None
    texts = {own.tasks.legend.texts[number] for number in episode.query_ids}
    shown = drawn.episodes[0].query
    assert {example.text for example in shown} <= texts
    assert {example.truth for example in shown} == {"0 (blame)", "1 (praise)"}


def test_forecasts_are_drawn_in_own_units_one_a_series(untrained: Untrained) -> None:
    own = untrained("employment")
    answers = forecasts_of([own], 8, own.recipe.num_steps)[0]
    drawn = draw_forecasts(
        own.tasks, own.recipe.problem, {"own": answers, "zero": 0 * answers}
    ).forecasts
    assert len({one.series for one in drawn}) == len(drawn) > 1
    past, episode = own.tasks.query_past("test", 1), own.tasks.episode("test", 0)
    np.testing.assert_allclose(drawn[0].past, past.values[0, 0], rtol=1e-4)
    truth = past.base[0, 0] + past.unit[0, 0] * episode.query_y[0]
    np.testing.assert_allclose(drawn[0].truth, truth, rtol=1e-4)
    np.testing.assert_allclose(drawn[0].forecasts["zero"], past.base[0, 0], rtol=1e-4)


def test_the_band_of_a_forecast_is_its_widest_interval(untrained: Untrained) -> None:
    levels = [0.1, 0.25, 0.5, 0.75, 0.8]
    own = untrained("employment", f"tasks.quantiles={levels}", "learner=maml")
    answers = forecasts_of([own], 8, own.recipe.num_steps)[0]
    drawn = draw_forecasts(own.tasks, own.recipe.problem, {"own": answers}).forecasts[0]
    assert drawn.band is not None
    assert drawn.band_share == 50  # 0.1 and 0.8 are no interval
    past = own.tasks.query_past("test", 1)
    ordered = np.sort(answers[0, 0].numpy().reshape(12, 5), axis=1)
    values = past.base[0, 0][:, None] + past.unit[0, 0] * ordered
    for found, wanted in zip(
        (*drawn.band, drawn.forecasts["own"]), values.T[[1, 3, 2]], strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_fits_are_drawn_in_the_order_of_their_inputs(untrained: Untrained) -> None:
    own = untrained("sinusoid")
    fits = draw_regression([own], 2).fits
    episode = own.tasks.episode("test", 1)
    expected = sorted(zip(episode.query_x.ravel(), episode.query_y.ravel(), strict=True))
    found = np.array(fits[1].query)
    np.testing.assert_allclose(found[:, :2], expected, rtol=1e-4)
    assert len(fits[1].support) == len(episode.support_y)


def test_the_file_is_read_back_small_and_whole_or_refused(
    tmp_path: Path, untrained: Untrained
) -> None:
    run = Run.create(tmp_path, load_experiment("pen"), "one")
    assert Drawings.read(run) is None
    drawn = draw_classification([untrained("pen")], NO_CALIBRATION, 3)
    drawn.write(run)
    assert Drawings.read(run) == drawn
    file = tmp_path / "one" / DRAWINGS_FILE
    assert file.stat().st_size < 300_000
    content = json.loads(file.read_text())
    content["episodes"][0]["query"][0]["lines"] = [["<script>"]]
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"is damaged .* `raymeta evaluate one` makes it anew"):
        Drawings.read(run)
    file.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(RunError, match="at most 4194304 are read"):
        Drawings.read(run)
