"""Ensembles against a plain loop over episodes, networks and queries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raymeta.evaluation.ensemble import ensemble_curves
from raymeta.training.curves import EVALUATION_CHUNK, adaptation_curves
from raymeta.training.recipe import initial_meta_params

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["pen-maml", "sinusoid", "sentiment"])
def test_the_mean_answer_is_scored(name, untrained):
    first = untrained(name, "training.precision=float64")
    recipes = [replace(first.recipe, seed=seed) for seed in range(3)]
    networks = [replace(first, recipe=r, params=initial_meta_params(r, CPU)) for r in recipes]
    found = ensemble_curves(networks, 3, 2)
    for episode in range(3):
        batch = first.tasks.episodes("test", [episode]).to(CPU, torch.float64)
        for step in range(3):
            answers = []
            for network in networks:
                recipe = network.recipe
                outputs = list(
                    recipe.learner.query_outputs(
                        recipe.spec, recipe.problem, network.params, batch.support, batch.query, 2
                    )
                )[step][0]
                if name == "sinusoid":
                    answers.append(outputs)
                else:
                    exponentials = (outputs - outputs.max(dim=1, keepdim=True).values).exp()
                    answers.append(exponentials / exponentials.sum(dim=1, keepdim=True))
            mean = sum(answers) / 3
            targets = batch.query.y[0]
            for query, target in enumerate(targets):
                if name == "sinusoid":
                    expected = float(((mean[query] - target) ** 2).mean())
                else:
                    expected = float(int(mean[query].argmax()) == int(target))
                assert found[episode, query, step].item() == pytest.approx(expected, abs=1e-9)


def test_one_network_answers_as_itself_in_every_chunk(untrained):
    own, count = untrained("sinusoid"), EVALUATION_CHUNK + 3
    alone = adaptation_curves(
        own.tasks, own.recipe, own.params, "test", num_episodes=count, num_steps=2
    )
    found = ensemble_curves([own], count, 2)
    assert found.shape == alone.shape
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=0)


def test_an_answer_that_is_not_finite_has_no_score(untrained):
    own = untrained("pen-maml")
    broken = replace(own, params={n: v * float("nan") for n, v in own.params.items()})
    assert ensemble_curves([own, broken], 2, 1).isnan().all()
