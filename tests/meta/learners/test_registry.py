"""A learner from elsewhere needs one class and one line."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from raymeta.experiment.schema import Experiment
from raymeta.meta.learners import LEARNERS
from raymeta.meta.settings import SETTINGS

TOY = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from raymeta.meta.gradient import MetaGradient
from raymeta.meta.inner import as_leaves, bind_network, expand_meta_params
from raymeta.meta.learner import Learner
from raymeta.meta.learners import LEARNERS


@dataclass(frozen=True, kw_only=True)
class Frozen(Learner):
    """Never adapts: ordinary training on the query sets."""

    name: ClassVar[str] = "frozen"
    keeps_graphs: ClassVar[bool] = False
    refuses: ClassVar[dict] = {REFUSES}
    scale: float = 1.0

    def query_outputs(self, spec, problem, meta_params, support, query, num_steps):
        expanded = expand_meta_params(spec, meta_params, len(query.y))
        for _ in range(num_steps + 1):
            yield bind_network(spec, None)(expanded, query).detach()

    def adapted_params(self, spec, problem, meta_params, support, num_steps):
        return expand_meta_params(spec, meta_params, len(support.y))

    def adapted_outputs(self, spec, adapted, query):
        return bind_network(spec, None)(adapted, query).detach()

    def adapted_network(self, spec, adapted):
        return adapted

    def adapted_answers(self, spec, adapted, features):
        return features @ adapted["head.weight"].mT + adapted["head.bias"].unsqueeze(1)

    def masked_meta_gradient(self, spec, problem, meta_params, support, query, masks, *,
                             graph_steps=None):
        leaves = as_leaves(expand_meta_params(spec, meta_params, len(query.y)))
        outputs = bind_network(spec, masks)(leaves, query)
        losses = problem.loss(outputs, query.y) * self.scale
        grads = torch.autograd.grad(losses.sum(), list(leaves.values()))
        return MetaGradient.summed(
            meta_params, dict(zip(leaves, grads)), losses.detach() BROKEN,
            problem.score(outputs.detach(), query.y)
        )


LEARNERS[Frozen.name] = Frozen
'''
CONTRACT = Path(__file__).with_name("test_contract.py")


def run_contract(folder: Path, *, refuses: str = "{}", broken: str = "") -> tuple[int, str]:
    """Runs the contract's tests of the toy learner, in a process that loads it as a plug-in."""
    text = TOY.replace("{REFUSES}", refuses).replace("BROKEN", broken)
    (folder / "toy_learner.py").write_text(text)
    root = CONTRACT.parents[3]
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "toy_learner"),
            *("-p", "no:cacheprovider", "-k", "frozen", str(CONTRACT)),
        ],
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(root)])},
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_learner_of_one_class_and_one_line_meets_the_contract(tmp_path: Path) -> None:
    status, output = run_contract(tmp_path)
    assert status == 0, output[-3000:]
    assert "passed" in output


@pytest.mark.slow
def test_a_learner_that_refuses_a_problem_is_held_to_the_others(tmp_path: Path) -> None:
    reason = '{"regression": "it counts right answers only"}'
    status, output = run_contract(tmp_path, refuses=reason)
    assert status == 0, output[-3000:]


@pytest.mark.slow
def test_the_contract_notices_a_mean_in_place_of_a_sum(tmp_path: Path) -> None:
    status, output = run_contract(tmp_path, broken="/ len(query.y)")
    assert status == 1
    assert "test_a_meta_gradient_does_not_depend_on_the_number_of_workers" in output


@pytest.mark.parametrize("name", LEARNERS)
def test_settings_section_and_learner_have_the_same_keys_and_defaults(name: str) -> None:
    section = Experiment.model_fields[name].annotation
    assert section is not None
    assert section().model_dump() == {field.name: field.default for field in fields(SETTINGS[name])}
    assert {f.name for f in fields(LEARNERS[name])} == {f.name for f in fields(SETTINGS[name])}
    assert LEARNERS[name]() == LEARNERS[name](**section().model_dump())


def test_every_registered_learner_can_be_chosen() -> None:
    assert set(LEARNERS) == set(SETTINGS)
    for name in SETTINGS:
        assert name in Experiment.model_fields
