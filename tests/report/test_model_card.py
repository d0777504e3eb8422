"""A model card says what is known of a network, in the form that the Hub reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import raymeta
from raymeta import api
from raymeta.evaluation.scores import MetaTest, Row, Score
from raymeta.inference.hub import CARD_FILE
from raymeta.run_folder import Run
from raymeta.storage.paths import remove_file
from tests.inference.conftest import make_run

RESULT = MetaTest(
    metric="accuracy",
    higher_is_better=True,
    num_episodes=40,
    units={"class": 3},
    note="one | two <b>",
    rows=(
        Row("tuned", "meta-trained network", Score(0.8125, 0.1), Score(0.8125, 0.02), 0),
        Row(
            "class_means",
            "class-mean nearest neighbour",
            Score(0.7, 0.1),
            Score(0.7, 0.02),
            ahead=Score(0.11, 0.04),
        ),
        Row("dtw", "neighbour by DTW", Score(0.8, 0.1), Score(0.8, 0.02), ahead=Score(0.01, 0.04)),
    ),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("card") / "run", "table", "learner=prototypes")


def card_of(run: Run, folder: Path) -> str:
    raymeta.write_hub_folder(run.path, folder)
    return (folder / CARD_FILE).read_text()


def test_the_card_of_a_run_without_a_meta_test_claims_nothing(run: Run, tmp_path: Path) -> None:
    remove_file(run.path / "results.json")
    text = card_of(run, tmp_path / "shared")
    assert "model-index" not in text
    assert "nothing is known of how well it does" in text


def test_the_card_has_the_meta_test_with_every_control(run: Run, tmp_path: Path) -> None:
    run.write_json("results.json", {"meta_test": RESULT.to_json()})
    text = card_of(run, tmp_path / "shared")
    assert "| meta-trained network | 0.812 ± 0.100 | 0 |  |  |" in text
    assert "| class-mean nearest neighbour | 0.700 ± 0.100 |  | 0.110 ± 0.040 | beaten |" in text
    assert "| neighbour by DTW | 0.800 ± 0.100 |  | 0.010 ± 0.040 | undecided |" in text
    assert "does as well and is simpler: neighbour by DTW." in text
    assert "volt (" in text
    assert "one | two &lt;b>" in text
    assert "raymeta train experiment.yaml" in text


def test_the_hub_reads_the_front_matter(run: Run, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    run.write_json("results.json", {"meta_test": RESULT.to_json()})
    card = hub.ModelCard(card_of(run, tmp_path / "shared"))
    assert (card.data.library_name, card.data.license) == ("raymeta", "unknown")
    assert {"few-shot-learning", "prototypes", "gru"} <= set(card.data.tags)
    (found,) = card.data.eval_results
    assert (found.metric_type, found.metric_value) == ("accuracy", 0.8125)
    assert (found.dataset_split, found.task_name) == ("meta-test", "3-way 2-shot classification")


def test_the_experiment_of_a_card_can_be_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = card_of(run, tmp_path / "shared")
    (tmp_path / "experiment.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    shutil.copytree(str(run.best_experiment().tasks.data_dir), tmp_path / "data")
    found = api.check_experiment(tmp_path / "experiment.yaml")
    best = run.best_experiment()
    assert found.model == best.model
    assert found.training == best.training
    assert found.learner_settings == best.learner_settings
