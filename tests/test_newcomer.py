"""A new part needs one file and one line, as `raymeta/CONTRIBUTING.md` says.

The files are added to a copy of the package in a temporary folder, the lines to its registries, and
an experiment file uses them all.  The parts' contracts are tested beside the registered ones.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import raymeta
from tests.meta.learners.test_registry import TOY as LEARNER
from tests.tasks.test_contract import TOY as SOURCE
from tests.tasks.test_contract import write_toy

LEARNER_SETTINGS = '''

@dataclass(frozen=True, kw_only=True)
class FrozenSettings(LearnerSettings, learner="frozen"):
    """Never adapts."""

    scale: float = _setting(1.0, gt=0, description="factor of the loss")
'''
CONTROL = '''
from raymeta.evaluation.controls.contract import Control, Judgement


class AlwaysFirst(Control):
    """Answers class 0."""

    name = "first"
    label = "always the first class"
    problems = frozenset({"classification"})

    def judge(self, contest):
        queries = contest.own.tasks.episodes("test", range(contest.num_episodes)).query
        return Judgement((queries.y == 0).double())
'''
ACQUISITION = """
from raymeta.acquisitions.base import Acquisition


def _load():
    from botorch.acquisition.monte_carlo import qSimpleRegret

    return qSimpleRegret


MEAN = Acquisition("mean", is_multi_objective=False, load=_load)
"""
PROVIDER = """
from functools import partial

from raymeta.deploy.files.launcher import head_and_counts, provider, typed_nodes

PROVIDER = provider(
    "do",
    needed=("region",),
    optional=(),
    rules=(head_and_counts,),
    nodes=partial(typed_nodes, lambda _: False),
)
"""
PLOT = '''
import pandas as pd
import plotly.express as px
from ax.analysis.plotly.plotly_analysis import create_plotly_analysis_card


def sizes(search):
    """Shows how long the names of the parameters are."""
    names = [parameter.name for parameter in search.space.parameters]
    table = pd.DataFrame({"key": names, "length": [len(name) for name in names]})
    figure = px.bar(table, x="key", y="length")
    yield "sizes names", create_plotly_analysis_card("Sizes", "", "", table, figure)
'''
EXPERIMENT = """
name: own
learner: frozen
frozen: {{scale: 2.0}}
tasks: {{source: toy, data_dir: '{folder}'}}
model: {{hidden_size: 4}}
training: {{meta_steps: 2, meta_batch_size: 2, val_episodes: 2}}
search:
  acquisition: mean
  space: {{frozen.scale: {{low: 1.0, high: 3.0}}, learner: {{choices: [frozen, maml]}}}}
evaluation: {{num_episodes: 4, adaptation_steps: 1}}
"""
USE = """
from types import SimpleNamespace

from raymeta.deploy.files.load import PROVIDERS
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.meta_test import meta_test
from raymeta.experiment.file import load_experiment, to_yaml
from raymeta.report.facts import Analysis
from raymeta.report.model_plots import analysis_figure
from raymeta.search.plots import PLOTS
from raymeta.search.space import search_space
from raymeta.training.trainer import build_trainer
from torch import device

experiment = load_experiment("own.yaml")
(sizes,) = [plot for plot in PLOTS if plot.__name__ == "sizes"]
((name, card),) = sizes(SimpleNamespace(space=search_space(experiment)))
columns = {column: [str(value) for value in values] for column, values in card.df.items()}
assert analysis_figure(Analysis("sizes", "names", columns), experiment).data[0].type == "bar"
assert "do" in PROVIDERS
trainer = build_trainer(experiment)
trainer.train(2)
network = Network(trainer.tasks, trainer.recipe, trainer.meta_params)
for row in meta_test(network, {}, label="tuned", num_episodes=4).rows:
    print(row.name, row.score.mean)
print(trainer.recipe.learner)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies the package and adds one part of each kind."""
    top = tmp_path_factory.mktemp("newcomer")
    package = top / "raymeta"
    leave_out = shutil.ignore_patterns("__pycache__", "uci_sentences", "uji_pen", "us_employment")
    shutil.copytree(Path(raymeta.__file__).parent, package, ignore=leave_out)

    def add(file: str, text: str, registry: str, name: str, before: str, line: str) -> None:
        (package / file).write_text(text)
        module = "raymeta." + file.removesuffix(".py").replace("/", ".")
        path = package / registry
        content = path.read_text()
        assert content.count(before) == 1, (registry, before)
        content = content.replace(before, before + "\n    " + line)
        future = "from __future__ import annotations\n"
        path.write_text(content.replace(future, f"{future}from {module} import {name}\n"))

    learner = LEARNER.replace("{REFUSES}", "{}").replace("BROKEN", "")
    learner = learner.replace("class Frozen(Learner)", "class Frozen(FrozenSettings, Learner)")
    learner = learner.replace("    scale: float = 1.0\n", "").partition("LEARNERS[")[0]
    imported = "from raymeta.meta.learners import LEARNERS\n"
    learner = learner.replace(imported, "from raymeta.meta.settings import FrozenSettings\n")
    with (package / "meta/settings.py").open("a") as file:
        file.write(LEARNER_SETTINGS)
    registry = "meta/learners/__init__.py"
    line = "Frozen.name: Frozen,"
    add("meta/learners/frozen.py", learner, registry, "Frozen", "    Maml.name: Maml,", line)

    head, _, rest = SOURCE.partition("class ToyTasks(TaskSettings):")
    section, _, rest = rest.partition("\n\n\n")
    with (package / "tasks/settings.py").open("a") as file:
        file.write(f"\n\nclass ToyTasks(TaskSettings):{section}\n")
    line = '"toy": Source(load_toy),'
    registry = "tasks/load.py"
    before = "SOURCES: dict[str, Source] = {"
    add("tasks/toy.py", head + rest, registry, "load_toy", before, line)

    registry, before = "evaluation/controls/__init__.py", "    KernelRidge(),"
    add("evaluation/controls/first.py", CONTROL, registry, "AlwaysFirst", before, "AlwaysFirst(),")
    registry, before = "acquisitions/__init__.py", "    LOG_EI,"
    add("acquisitions/mean.py", ACQUISITION, registry, "MEAN", before, "MEAN,")
    registry, before = "search/plots/__init__.py", "    importance,"
    add("search/plots/sizes.py", PLOT, registry, "sizes", before, "sizes,")
    registry, before = "deploy/files/load.py", "        aws.PROVIDER,"
    name = "PROVIDER as DO"
    add("deploy/files/do.py", PROVIDER, registry, name, before, "DO,")

    data = top / "data"
    data.mkdir()
    for unit in range(12):
        write_toy(data, unit)
    (top / "own.yaml").write_text(EXPERIMENT.format(folder=data))
    return top


def run(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_an_experiment_file_uses_every_new_part(tree: Path) -> None:
    ended = run(tree, "-c", USE)
    assert ended.returncode == 0, ended.stderr[-3000:]
    *rows, learner = ended.stdout.splitlines()
    assert learner == "Frozen(scale=2.0)"
    scores = {name: float(score) for name, score in (row.split() for row in rows)}
    assert {"tuned", "first"} <= scores.keys()
    assert scores["first"] == 0.5  # two ways


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("scale: 2.0", "scale: 0", "frozen.scale must be > 0, but got 0"),
        ("scale: 2.0", "scal: 2", "did you mean frozen.scale?"),
        ("learner: frozen\n", "learner: frozn\n", "'alpaca' or 'frozen', but got 'frozn'"),
        ("source: toy", "source: toi", "toy"),
        ("acquisition: mean", "acquisition: men", "'mean', 'log_nei'"),
    ],
)
def test_mistakes_about_new_parts_are_reported_like_any_other(
    tree: Path, before: str, after: str, message: str
) -> None:
    text = (tree / "own.yaml").read_text()
    (tree / "wrong.yaml").write_text(text.replace(before, after))
    code = "from raymeta.experiment.file import load_experiment; load_experiment('wrong.yaml')"
    ended = run(tree, "-c", code)
    assert ended.returncode == 1
    assert message in ended.stderr, ended.stderr[-2000:]
