"""Spectra of periodic signals, for networks, and the signals themselves, for controls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from raymeta.episodes import SPLITS
from raymeta.evaluation.controls.class_means import ClassMeans, class_mean_scores
from raymeta.evaluation.controls.contract import Contest, Network
from raymeta.evaluation.controls.spectrum_means import SpectrumMeans
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.tasks.inspection import inspect_tasks
from raymeta.tasks.load import load_inputs, load_tasks
from raymeta.tasks.preparation import spectrum_of
from raymeta.tasks.table_sections import Spectrum
from raymeta.training.recipe import build_recipe, initial_meta_params

EXPERIMENT = """
name: tones
tasks:
  source: table
  data_dir: {folder}
  sequence: recording
  target: tone
  features: [x]
  max_steps: 48
  spectrum: {{frequencies: 24, per_step: 4}}
  num_ways: 3
  num_queries: 3
  val_classes: 3
  test_classes: 3
model: {{hidden_size: 4}}
"""


def tones() -> pd.DataFrame:
    """Makes nine tones in any phase, four recordings each, of 40 to 48 rows."""
    rng, rows = np.random.default_rng(0), []
    for tone in range(9):
        for repeat in range(4):
            steps = np.arange(rng.integers(40, 49))
            x = np.sin(2 * np.pi * (2 + 2 * tone) / 48 * steps + rng.uniform(0, 6))
            facts = {"recording": f"t{tone}r{repeat}", "tone": f"tone {tone}"}
            rows.append(pd.DataFrame(facts | {"x": x + rng.normal(0, 0.2, len(steps))}))
    return pd.concat(rows, ignore_index=True)


Load = Callable[..., Experiment]


@pytest.fixture
def experiment(tmp_path: Path) -> Load:
    tones().to_csv(tmp_path / "tones.csv", index=False)
    file = tmp_path / "own.yaml"
    file.write_text(EXPERIMENT.format(folder=tmp_path))
    return lambda *sets: load_experiment(str(file), sets)


def test_a_spectrum_has_the_roots_of_the_amplitudes_in_order() -> None:
    steps = np.arange(48)
    x = 3.0 + 2.0 * np.cos(2 * np.pi * 5 / 48 * steps + 0.7)
    found = spectrum_of(x[:, None], Spectrum(frequencies=24, per_step=4), 48).reshape(-1)
    expected = np.zeros(24)
    expected[0], expected[5] = 3.0 * np.sqrt(48), np.sqrt(48)
    np.testing.assert_allclose(found**2, expected, atol=1e-9)


def test_a_frequency_is_at_the_same_place_whatever_the_length() -> None:
    spectrum = Spectrum(frequencies=24)
    peaks = [
        spectrum_of(np.sin(2 * np.pi * 9 / 48 * np.arange(length))[:, None], spectrum, 48).argmax()
        for length in (30, 41, 48)
    ]
    assert peaks == [9, 9, 9]


def test_columns_stay_apart_within_a_step() -> None:
    x = np.random.default_rng(0).normal(size=(16, 2))
    both = spectrum_of(x, Spectrum(frequencies=8, per_step=4), 16)
    assert both.shape == (2, 8)
    for column in range(2):
        own = spectrum_of(x[:, [column]], Spectrum(frequencies=8, per_step=4), 16)
        np.testing.assert_array_equal(both[:, column::2], own)


def test_networks_read_spectra_and_controls_the_same_episodes_as_recorded(
    experiment: Load,
) -> None:
    tasks = load_tasks(experiment())
    recorded = tasks.recorded
    assert recorded is not None
    mean, deviation = np.array(tasks.facts["mean"]), np.array(tasks.facts["deviation"])
    (center,), (spread,) = recorded.facts["mean"], recorded.facts["deviation"]
    for split in SPLITS:
        one, other = tasks.episode(split, 3), recorded.episode(split, 3)
        np.testing.assert_array_equal(one.query_ids, other.query_ids)
        np.testing.assert_array_equal(one.query_y, other.query_y)
        assert one.query_x.shape[1:] == (6, 4)
        assert other.query_lengths is not None
        for read, x, length in zip(one.query_x, other.query_x, other.query_lengths, strict=True):
            series = x[:length].astype(np.float64) * spread + center
            expected = spectrum_of(series, Spectrum(frequencies=24, per_step=4), 48)
            np.testing.assert_allclose(read * deviation + mean, expected, atol=1e-3)


def test_features_of_meta_training_are_standardised(experiment: Load) -> None:
    tasks = load_tasks(experiment())
    x = np.concatenate([tasks.episode("train", index).query_x for index in range(300)])
    np.testing.assert_allclose(x.mean(axis=(0, 1)), 0, atol=0.1)
    np.testing.assert_allclose(x.std(axis=(0, 1)), 1, atol=0.1)


def test_class_means_of_spectra_tell_tones_apart(experiment: Load) -> None:
    settings = experiment()
    tasks = load_tasks(settings)
    recipe = build_recipe(settings, tasks)
    own = Network(tasks, recipe, initial_meta_params(recipe, torch.device("cpu")))
    contest = Contest(own, torch.zeros(50, 9, 1), {})
    assert SpectrumMeans().serves(tasks)
    assert not SpectrumMeans().serves(load_tasks(experiment("tasks.spectrum=null")))
    assert SpectrumMeans().judge(contest).scores.mean() > 0.95
    # Level and deviation, which is what the other control compares, say little of a tone.
    plain = ClassMeans().judge(contest).scores
    assert tasks.recorded is not None
    assert plain.equal(class_mean_scores(tasks.recorded, "test", 50))
    assert plain.mean() < 0.6


def test_a_trained_network_reads_further_examples_in_the_same_way(experiment: Load) -> None:
    settings = experiment()
    tasks = load_tasks(settings)
    inputs = load_inputs(settings.tasks, tasks.facts)
    assert inputs.channels == ("x",)
    assert len(inputs.features) == 4
    dealt = inspect_tasks(settings).dealt
    episode = tasks.episode("test", 0)
    assert episode.query_ids is not None
    series = [dealt.chosen["test"].x[row] for row in episode.query_ids]
    found = inputs.prepare(series, [str(row) for row in episode.query_ids])
    np.testing.assert_allclose(np.stack(found), episode.query_x, atol=1e-5)
