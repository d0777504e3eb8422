"""Every learner and source: attributions of an adapted network's answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import raymeta
from raymeta.data import token_vectors
from raymeta.errors import DataError
from raymeta.evaluation.calibration import Calibration
from raymeta.inference.adapted import Adapted
from raymeta.inference.attribution import Attribution
from raymeta.inference.model import Model
from raymeta.meta.learners import LEARNERS
from raymeta.tasks.load import SOURCES
from tests.encoders import MAX_TOKENS, write_encoder
from tests.inference.conftest import RunOf

WORDS = ("good", "bad", "not", "really", "film", "phone", "waste")
PROTOTYPES, MATCHING = "learner=prototypes", "learner=matching"
SERVED = [
    (source, learner)
    for source in SOURCES
    for learner, kind in LEARNERS.items()
    if ("regression" if source == "sinusoid" else "classification") not in kind.refuses
]


def task_of(source: str, num: int, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Makes examples of a new task, of several lengths where the source allows, and targets."""
    rng = np.random.default_rng(seed)
    match source:
        case "table" | "python":
            x: list[Any] = [80 * rng.normal(size=(4 + n % 4, 2)) for n in range(num)]
            return x, [f"kind {n % 3}" for n in range(num)]
        case "table-1":
            return [80 * rng.normal(size=(4 + n % 4, 1)) for n in range(num)], [
                f"kind {n % 3}" for n in range(num)
            ]
        case "pen":
            points = [rng.normal(size=(9 + n, 2)).cumsum(axis=0) for n in range(num)]
            x = [np.c_[p, np.arange(len(p)) > 5] for p in points]
            return x, [n % 5 for n in range(num)]
        case "sinusoid":
            at = rng.uniform(-5, 5, (num, 1, 1))
            return list(at), [2 * np.sin(one[0, 0]) for one in at]
        case "sentiment":
            return [" ".join(rng.choice(WORDS, 3 + n % 4)) for n in range(num)], [
                n % 2 for n in range(num)
            ]
        case "text":
            words = [f"word{n}" for n in range(40)]
            return [" ".join(rng.choice(words, 3 + n % 4)) for n in range(num)], [
                ("fine", "poor")[n % 2] for n in range(num)
            ]
    raise LookupError(source)


def adapted_of(model: Model, source: str) -> Adapted:
    num = {"pen": 5, "table": 6, "python": 6, "table-1": 6, "sinusoid": 10}.get(source, 10)
    return model.adapt(*task_of(source, num))


def answers(adapted: Adapted, x: Any) -> np.ndarray:
    """Returns all answers `[N, K]` or `[N, O]`."""
    if adapted.labels is None:
        found = adapted.predict(x)
        return found[:, None] if found.ndim == 1 else found
    return adapted.predict_proba(x)


def assert_complete(found: Attribution) -> None:
    scale = np.maximum(1, np.abs(found.outputs - found.baseline_outputs))
    assert (np.abs(found.residuals) <= 1e-6 * scale).all()


@pytest.mark.parametrize(("source", "learner"), SERVED)
def test_attributions_add_up_to_the_answers_difference_from_the_baselines(
    run_of: RunOf, tmp_path: Path, source: str, learner: str
) -> None:
    model = raymeta.load(str(run_of(source, f"learner={learner}").path))
    adapted = adapted_of(model, source)
    x, _ = task_of(source, 4, seed=1)
    found = adapted.attribute(x)
    all_answers = answers(adapted, x)
    np.testing.assert_allclose(
        found.outputs,
        all_answers.max(axis=1) if adapted.labels is not None else all_answers[:, 0],
        rtol=1e-9,
    )
    assert_complete(found)
    assert found.values.any()
    assert found.values.shape == (4, found.lengths.max(), len(found.channels))
    beyond = np.arange(found.values.shape[1]) >= found.lengths[:, None]
    assert (found.values[beyond] == 0).all()
    if adapted.labels is not None:
        # Probabilities of all classes add up to one: what one gains the others lose.
        each = [adapted.attribute(x, label) for label in adapted.labels]
        np.testing.assert_allclose(sum(one.values for one in each), 0, atol=2e-6)
        for number, one in enumerate(each):
            np.testing.assert_allclose(one.outputs, all_answers[:, number], rtol=1e-9)
    lost = adapted.attribute(x, method="occlusion", window=99)
    if len(lost.channels) == 1:  # all of an example is the baseline
        np.testing.assert_allclose(
            lost.values[:, 0, 0], lost.outputs - lost.baseline_outputs, atol=1e-12
        )
    adapted.save(tmp_path / "mine.raymeta")
    again = raymeta.load_adapted(tmp_path / "mine.raymeta").attribute(x)
    np.testing.assert_array_equal(again.values, found.values)


def test_every_source_has_a_task_here() -> None:
    for source in SOURCES:
        x, y = task_of(source, 4)
        assert len(x) == len(y) == 4, source


@pytest.mark.slow
@pytest.mark.parametrize("source", ["table", "sinusoid", "sentiment"])
def test_several_networks_are_averaged_as_their_answers_are(run_of: RunOf, source: str) -> None:
    learner = "cavia" if source == "sinusoid" else "maml"
    model = raymeta.load(str(run_of(source, f"learner={learner}", seeds=2).path))
    adapted = adapted_of(model, source)
    x, _ = task_of(source, 3, seed=1)
    target = None if adapted.labels is None else adapted.labels[0]
    for options in ({}, {"method": "occlusion", "window": 2}, {"baseline": "zeros"}):
        both = adapted.attribute(x, target, **options)
        assert adapted.support is not None
        each = [
            replace(
                adapted, params=(own,), support=replace(adapted.support, means=(mean,))
            ).attribute(x, target, **options)
            for own, mean in zip(adapted.params, adapted.support.means, strict=True)
        ]
        assert not np.allclose(each[0].values, each[1].values)
        for name in ("values", "outputs", "baseline_outputs"):
            wanted = np.mean([getattr(one, name) for one in each], axis=0)
            np.testing.assert_allclose(getattr(both, name), wanted, rtol=1e-9, atol=1e-12)


def test_a_task_of_fewer_classes_than_ways_has_its_own_probabilities(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table", "learner=maml").path))
    support_x, _ = task_of("table", 4)
    adapted = model.adapt(support_x, ["a", "b"] * 2)
    x, _ = task_of("table", 3, seed=1)
    found = adapted.attribute(x, "b")
    np.testing.assert_allclose(found.outputs, adapted.predict_proba(x)[:, 1], rtol=1e-9)
    other = adapted.attribute(x, "a")
    np.testing.assert_allclose(found.values, -other.values, atol=2e-6)
    owed = model.influence(support_x, ["a", "b"] * 2, x, target="b")
    np.testing.assert_allclose(owed.outputs, found.outputs, rtol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_attributions_are_complete_at_any_training_precision(run_of: RunOf, precision: str) -> None:
    model = raymeta.load(str(run_of("table", PROTOTYPES, f"training.precision={precision}").path))
    adapted = adapted_of(model, "table")
    x, _ = task_of("table", 4, seed=1)
    found = adapted.attribute(x)
    assert found.values.dtype == np.float64
    assert_complete(found)
    tolerance = 1e-4 if precision == "float32" else 5e-2
    np.testing.assert_allclose(found.outputs, adapted.predict_proba(x).max(axis=1), atol=tolerance)


@pytest.mark.parametrize("temperature", [0.3, 4.0])
def test_explanations_are_of_calibrated_probabilities(run_of: RunOf, temperature: float) -> None:
    model = raymeta.load(str(run_of("table", PROTOTYPES).path))
    model = replace(model, calibration=Calibration(temperature))
    x, _ = task_of("table", 4, seed=1)
    support_x, support_y = task_of("table", 6)
    adapted = model.adapt(support_x, support_y)
    wanted = adapted.predict_proba(x).max(axis=1)
    found = adapted.attribute(x)
    assert_complete(found)
    np.testing.assert_allclose(found.outputs, wanted, rtol=1e-9)
    np.testing.assert_allclose(model.influence(support_x, support_y, x).outputs, wanted, rtol=1e-9)


def test_the_baseline_is_the_mean_of_what_the_network_reads_in_the_support(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table", "learner=maml").path))
    x, y = task_of("table", 6)
    adapted = model.adapt(x, y)
    facts = model.trained.identity.facts
    steps = (np.concatenate(x) - facts["mean"]) / facts["deviation"]
    assert adapted.support is not None
    np.testing.assert_allclose(adapted.support.means[0], steps.mean(axis=0), rtol=1e-6)
    query, _ = task_of("table", 2, seed=1)
    mean = np.concatenate(x).mean(axis=0)
    found = adapted.attribute(query, adapted.labels[0])  # type: ignore[index]
    at_mean = [np.tile(mean, (len(one), 1)) for one in query]
    wanted = adapted.predict_proba(at_mean)[:, 0]
    np.testing.assert_allclose(found.baseline_outputs, wanted, rtol=1e-5)
    # The numbers beside the attributions are the user's.
    assert found.x is not None
    np.testing.assert_array_equal(found.x[0, : len(query[0])], query[0])
    texts = raymeta.load(str(run_of("sentiment", "learner=maml").path))
    words = texts.adapt(*task_of("sentiment", 10))
    (own,) = words.params
    prepared = texts.trained.inputs.prepare(task_of("sentiment", 10)[0], [""] * 10)
    rows = own["embedding.weight"][0][np.concatenate(prepared)]
    assert words.support is not None
    torch.testing.assert_close(words.support.means[0], rows.mean(dim=0), rtol=1e-9, atol=1e-12)


def test_attention_over_the_time_steps_is_that_of_the_pooling(run_of: RunOf) -> None:
    model = raymeta.load(
        str(run_of("table", "learner=maml", "model.pooling=attention", "model.cell=rnn").path)
    )
    adapted = adapted_of(model, "table")
    x, _ = task_of("table", 4, seed=1)
    found = adapted.attribute(x, num_nodes=1)
    assert found.attention is not None
    (own,) = ({name: value[0] for name, value in p.items()} for p in adapted.params)
    rnn = torch.nn.RNN(2, 6, batch_first=True, dtype=torch.float64)
    rnn.load_state_dict({k.removeprefix("rnn."): v for k, v in own.items() if k.startswith("rnn.")})
    facts = model.trained.identity.facts
    for row, one in enumerate(x):
        steps = ((one - facts["mean"]) / facts["deviation"]).astype(np.float32)
        with torch.no_grad():
            states, _ = rnn(torch.from_numpy(steps)[None].double())
        wanted = (states[0] @ own["attention.weight"][0]).softmax(dim=0).numpy()
        np.testing.assert_allclose(found.attention[row, : len(one)], wanted, rtol=1e-9)
        assert (found.attention[row, len(one) :] == 0).all()
    plain = adapted_of(raymeta.load(str(run_of("table", "learner=maml").path)), "table")
    assert plain.attribute(x, num_nodes=1).attention is None


def test_steps_that_are_read_at_once_share_their_attention(run_of: RunOf) -> None:
    stacked = ("learner=prototypes", "model.pooling=attention", "model.stacked_steps=4")
    adapted = adapted_of(raymeta.load(str(run_of("table", *stacked).path)), "table")
    x, _ = task_of("table", 4, seed=1)
    found = adapted.attribute(x, num_nodes=1)
    assert found.attention is not None
    assert found.attention.shape[1] == max(map(len, x))
    for row, one in enumerate(x):
        weights = found.attention[row, : len(one)]
        assert weights.sum() == pytest.approx(1)
        assert (found.attention[row, len(one) :] == 0).all()
        for start in range(0, len(one), 4):
            assert len(set(weights[start : start + 4].tolist())) == 1
    assert found.values.shape[1] == found.attention.shape[1]


def test_the_attention_of_matching_networks_is_over_the_users_support(run_of: RunOf) -> None:
    model = raymeta.load(str(run_of("table", MATCHING, seeds=2).path))
    support_x, y = task_of("table", 7)
    x, _ = task_of("table", 4, seed=1)
    adapted = model.adapt(support_x, y)
    found = adapted.attribute(x, num_nodes=1).support_weights
    assert found is not None
    for number, label in enumerate(adapted.labels):  # type: ignore[arg-type]
        of_class = found[:, np.array(y) == label].sum(axis=1)
        np.testing.assert_allclose(of_class, adapted.predict_proba(x)[:, number], rtol=1e-9)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_prototypes_name_the_nearest_support_example(run_of: RunOf, distance: str) -> None:
    run = run_of("table", PROTOTYPES, f"prototypes.distance={distance}")
    model = raymeta.load(str(run.path))
    support_x, y = task_of("table", 7)
    x, _ = task_of("table", 4, seed=1)
    found = model.adapt(support_x, y).attribute(x, num_nodes=1)
    assert found.support_weights is not None
    assert found.nearest is not None
    np.testing.assert_allclose(found.support_weights.sum(axis=1), 1)
    # An example of the support is nearest to itself, wherever its class was put.
    own = model.adapt(support_x, y).attribute(support_x, num_nodes=1)
    assert own.nearest is not None
    assert own.nearest.tolist() == list(range(7))
    # With one example a class, the weights are the probabilities.
    with pytest.warns(UserWarning, match="has 1 support examples"):
        single = model.adapt(support_x[:3], ["c", "a", "b"])
    weights = single.attribute(x, num_nodes=1).support_weights
    assert weights is not None
    np.testing.assert_allclose(weights[:, [1, 2, 0]], single.predict_proba(x), rtol=1e-9)
    others = adapted_of(raymeta.load(str(run_of("table", "learner=ridge").path)), "table")
    assert others.attribute(x, num_nodes=1).support_weights is None
    assert others.attribute(x, num_nodes=1).nearest is None


@pytest.mark.slow
def test_random_weights_give_another_map(run_of: RunOf) -> None:
    """The sanity check of Adebayo et al. 2018: maps depend on the weights, not on x alone."""
    adapted = adapted_of(raymeta.load(str(run_of("pen", "learner=maml").path)), "pen")
    x, _ = task_of("pen", 10, seed=1)
    own = adapted.attribute(x, 0, num_nodes=16).values
    inside = own != 0

    def correlation(seed: int, *prefixes: str) -> float:
        generator = torch.Generator().manual_seed(seed)
        params = {
            k: v.std() * torch.randn(v.shape, generator=generator, dtype=v.dtype)
            if k.startswith(prefixes)
            else v
            for k, v in sorted(adapted.params[0].items())
        }
        other = replace(adapted, params=(params,)).attribute(x, 0, num_nodes=16).values
        return float(spearmanr(own[inside], other[inside]).statistic)

    assert correlation(0, "no layer") == pytest.approx(1)
    for layers in (("head",), ("rnn",), ("rnn", "head")):
        found = np.abs([correlation(seed, *layers) for seed in range(6)])
        assert found.mean() < 0.5, (layers, found)
        assert found.max() < 0.9, (layers, found)


def test_words_of_an_encoder_are_its_tokens(
    run_of: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_vectors, "cache_folder", lambda _: tmp_path / "cache")
    encoder = write_encoder(tmp_path / "encoder")
    folder = tmp_path / "sentences"
    folder.mkdir()
    for domain in ("books", "films", "phones"):
        rows = [
            {"text": f"{domain} {judgement} {one} {other} {third}", "class": label}
            for label, judgement in enumerate(("bad", "good"))
            for one in ("red", "green", "blue")
            for other in ("red", "green", "blue")
            for third in ("red", "green", "blue")
        ]
        (folder / f"{domain}.json").write_text(json.dumps(rows))
    run = run_of(
        "sentiment",
        f"tasks.data_dir={folder}",
        "tasks.test_domain=phones",
        "tasks.num_queries=1",
        f"tasks.encoder={encoder}",
        f"tasks.max_tokens={MAX_TOKENS}",
        "tasks.num_shots=1",
        PROTOTYPES,
    )
    adapted = raymeta.load(str(run.path)).adapt(["good films!", "bad phones"], [1, 0])
    for method in ("integrated_gradients", "occlusion"):
        found = adapted.attribute(["good red books!", "blue"], method=method)
        assert found.words == (
            ("[CLS]", "good", "red", "books", "!", "[SEP]"),
            ("[CLS]", "blue", "[SEP]"),
        )
        assert found.lengths.tolist() == [6, 3]
        assert found.values.shape == (2, 6, 1)
        assert found.values[0].all()
    assert_complete(adapted.attribute(["good red books!", "blue"]))


def test_a_file_of_an_older_raymeta_is_explained_only_from_zeros(run_of: RunOf) -> None:
    adapted = adapted_of(raymeta.load(str(run_of("table", PROTOTYPES).path)), "table")
    old = replace(adapted, support=None)
    x, _ = task_of("table", 3, seed=1)
    with pytest.raises(DataError, match="adapt again, or set the baseline to zeros"):
        old.attribute(x)
    found = old.attribute(x, baseline="zeros")
    assert_complete(found)
    assert found.support_weights is None
    zeros = [np.tile(adapted.trained.identity.facts["mean"], (len(one), 1)) for one in x]
    wanted = adapted.predict_proba(zeros)
    columns = [adapted.labels.tolist().index(t) for t in found.targets]  # type: ignore[union-attr]
    np.testing.assert_allclose(found.baseline_outputs, wanted[range(3), columns], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "shap"}, "method must be one of integrated_gradients, occlusion"),
        ({"baseline": "mean"}, "baseline must be one of support, zeros, but got 'mean'"),
        ({"window": 2}, "window is for the method occlusion"),
        ({"method": "occlusion", "num_nodes": 2}, "num_nodes is for the method integrated"),
        ({"method": "occlusion", "window": 0}, "window must be a whole number of at least 1"),
        ({"num_nodes": 2.5}, r"num_nodes must be a whole number of at least 1, but got 2\.5"),
        (
            {"target": "kind 9"},
            r"must be a class \('kind 0', 'kind 1', 'kind 2'\), but got 'kind 9'",
        ),
        ({"target": ["kind 1"] * 2}, r"one for each of the 3 examples, but has the shape \[2\]"),
    ],
)
def test_unknown_options_are_refused(run_of: RunOf, options: dict[str, Any], said: str) -> None:
    adapted = adapted_of(raymeta.load(str(run_of("table", PROTOTYPES).path)), "table")
    with pytest.raises(DataError, match=said):
        adapted.attribute(task_of("table", 3)[0], **options)


def test_a_regression_explains_its_outputs_by_number(run_of: RunOf) -> None:
    adapted = adapted_of(raymeta.load(str(run_of("sinusoid", "learner=ridge").path)), "sinusoid")
    x, _ = task_of("sinusoid", 3, seed=1)
    found = adapted.attribute(x)
    assert found.targets.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(adapted.attribute(x, 0).values, found.values)
    with pytest.raises(DataError, match=r"number of an output \(0\), but got 1"):
        adapted.attribute(x, 1)


def test_an_answer_that_is_not_finite_is_refused_by_name(run_of: RunOf) -> None:
    adapted = adapted_of(raymeta.load(str(run_of("table", "learner=maml").path)), "table")
    params = {k: v * torch.inf if k == "head.bias" else v for k, v in adapted.params[0].items()}
    with pytest.raises(DataError, match="example 1: the network's answer is not finite"):
        replace(adapted, params=(params,)).attribute(task_of("table", 2)[0])
