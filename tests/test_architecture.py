"""Imports point one way, and each third-party library is known to few modules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

import raymeta

ROOT = Path(raymeta.__file__).parent

# From the reader's first to the last: a module imports from its own layer and from those below.
LAYERS = (
    "raymeta.__main__",
    "raymeta.cli",
    "raymeta.console",
    "raymeta.api",
    "raymeta.running",
    "raymeta.console.watch",
    "raymeta.console.progress",
    "raymeta.console.notebook",
    "raymeta.console.terminal",
    "raymeta.tracking",
    "raymeta.report",
    "raymeta.deploy.jobs",
    "raymeta.deploy.check",
    "raymeta.deploy",
    "raymeta.serving",
    "raymeta.search",
    "raymeta.inference",
    "raymeta.evaluation",
    "raymeta.trial",
    "raymeta.training",
    "raymeta.meta",
    "raymeta.nn",
    "raymeta.tasks",
    "raymeta.data",
    "raymeta.episodes",
    "raymeta.run_folder",
    "raymeta.run_format",
    "raymeta.run_guard",
    "raymeta.experiment.data_files",
    "raymeta.experiment.json_schema",
    "raymeta.experiment.file",
    "raymeta.placement",
    "raymeta.ray_patches",
    "raymeta.experiment",
    "raymeta.tasks.settings",
    "raymeta.tasks.python_settings",
    "raymeta.tasks.table_settings",
    "raymeta.tasks.table_sections",
    "raymeta.tasks.base_settings",
    "raymeta.meta.settings",
    "raymeta.data.files",
    "raymeta.sections",
    "raymeta.storage",
    "raymeta.acquisitions",
    "raymeta.problem",
    "raymeta.uncertainty",
    "raymeta.console.text",
    "raymeta.finding",
    "raymeta.errors",
)
NUMERICS = (
    "raymeta.nn.recurrence",
    "raymeta.nn.cells",
    "raymeta.nn.checks",
    "raymeta.nn.linearised",
    "raymeta.nn.torch_scans",
    "raymeta.nn.networks",
    "raymeta.nn.stepwise",
    "raymeta.meta",
    "raymeta.training.outer",
    "raymeta.training.joint",
)
# Library -> the only modules that import it.
KNOWN_TO = {
    "ax": {
        "raymeta.search.ax_model",
        "raymeta.search.ax_parameters",
        "raymeta.search.ax_strategy",
        "raymeta.search.explain",
        "raymeta.search.gain",
        "raymeta.search.seconds",
        "raymeta.search.plots",
        "raymeta.search.plots.contour",
        "raymeta.search.plots.cross_validation",
        "raymeta.search.plots.fitted",
        "raymeta.search.plots.importance",
        "raymeta.search.plots.slices",
    },
    "botorch": {
        "raymeta.acquisitions.base",
        "raymeta.acquisitions.log_ehvi",
        "raymeta.acquisitions.log_ei",
        "raymeta.acquisitions.log_nehvi",
        "raymeta.acquisitions.log_nei",
        "raymeta.acquisitions.log_nei_per_second",
        "raymeta.acquisitions.per_second",
        "raymeta.acquisitions.ucb",
        "raymeta.search.ax_model",
        "raymeta.search.ax_strategy",
        "raymeta.search.categorical_gp",
        "raymeta.search.ensemble_gp",
        "raymeta.search.gain",
        "raymeta.search.seconds",
        "raymeta.search.transfer",
    },
    "yaml": {"raymeta.experiment.yaml_lines"},
    "pydantic": {
        "raymeta.run_format",
        "raymeta.experiment.schema",
        "raymeta.experiment.file",
        "raymeta.experiment.json_schema",
        "raymeta.experiment.learners",
        "raymeta.experiment.messages",
        "raymeta.experiment.resources",
        "raymeta.experiment.trackers",
        "raymeta.evaluation.drawings",
        "raymeta.inference.files",
        "raymeta.sections",
        "raymeta.serving.settings",
        "raymeta.tasks.base_settings",
        "raymeta.tasks.python_settings",
        "raymeta.tasks.settings",
        "raymeta.tasks.table_sections",
        "raymeta.tasks.table_settings",
    },
    "fastapi": {"raymeta.serving.app"},
    "mlflow": {"raymeta.storage.mlflow", "raymeta.tracking.meta_test"},
    "onnx": {"raymeta.inference.export.nodes"},
    "sklearn": {"raymeta.inference.estimators", "raymeta.search.feasibility"},
    "huggingface_hub": {"raymeta.data.encoder"},
    "tokenizers": {"raymeta.data.encoder"},
    "transformers": {"raymeta.data.encoder"},
    "statsmodels": {"raymeta.evaluation.controls.smoothing"},
    "typer": {
        "raymeta.cli",
        "raymeta.cli.cluster",
        "raymeta.cli.data",
        "raymeta.cli.export",
        "raymeta.cli.inference",
        "raymeta.cli.local",
        "raymeta.cli.options",
        "raymeta.cli.serving",
    },
    "rich": {
        "raymeta.api",
        "raymeta.cli.cluster",
        "raymeta.console.inspection",
        "raymeta.console.notebook",
        "raymeta.console.progress",
        "raymeta.console.tables",
        "raymeta.console.terminal",
        "raymeta.console.watch",
    },
    "plotly": {
        "raymeta.report.attribution_page",
        "raymeta.report.comparison",
        "raymeta.report.drawing_plots",
        "raymeta.report.model_plots",
        "raymeta.report.page",
        "raymeta.report.plots",
        "raymeta.report.trial_plots",
        "raymeta.search.plots.fitted",
    },
    "fsspec": {"raymeta.storage.tune"},
    "pyarrow": {
        "raymeta.data.calendar",
        "raymeta.data.mapped",
        "raymeta.data.readers.archives",
        "raymeta.data.readers.arrow",
        "raymeta.data.readers.unfolding",
        "raymeta.data.readers.columns",
        "raymeta.data.readers.python",
        "raymeta.data.readers.table",
        "raymeta.data.readers.values",
        "raymeta.inference.examples",
        "raymeta.inference.explanation_tables",
        "raymeta.inference.forecaster",
        "raymeta.inference.horizon",
        "raymeta.inference.tables",
        "raymeta.serving.arrow",
        "raymeta.serving.bodies",
        "raymeta.serving.forecasts",
        "raymeta.storage.paths",
        "raymeta.storage.tune",
        "raymeta.tasks.table_files",
    },
    "ray": {
        "raymeta.running",
        "raymeta.deploy.files.kuberay",
        "raymeta.deploy.files.launcher",
        "raymeta.deploy.jobs.client",
        "raymeta.deploy.local_nodes",
        "raymeta.deploy.jobs.probe",
        "raymeta.ray_patches",
        "raymeta.search.asha",
        "raymeta.search.progress",
        "raymeta.search.listed",
        "raymeta.search.recorder",
        "raymeta.search.refit",
        "raymeta.search.ax_process",
        "raymeta.search.hidden_domains",
        "raymeta.search.saved",
        "raymeta.search.searcher",
        "raymeta.search.tune_call",
        "raymeta.search.session",
        "raymeta.search.tune_space",
        "raymeta.search.trackers",
        "raymeta.search.tuner",
        "raymeta.search.wandb_callback",
        "raymeta.search.watchdog",
        "raymeta.serving.app",
        "raymeta.serving.server",
        "raymeta.trial.actor",
        "raymeta.trial.workers",
    },
}
# What numerics must not reach, directly or through other modules: Ray, files, processes, settings.
NOT_FOR_NUMERICS = {
    "ax",
    "io",
    "json",
    "multiprocessing",
    "os",
    "pathlib",
    "pydantic",
    "ray",
    "raymeta.data",
    "raymeta.experiment",
    "raymeta.run_folder",
    "raymeta.sections",
    "raymeta.storage",
    "raymeta.tasks",
    "safetensors",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "torch.distributed",
    "yaml",
}
# Modules below numerics that do reach them: the compiler's library, and the process group.
BEHIND_NUMERICS = {"raymeta.nn.native", "raymeta.training.distributed"}
SLOW_LIBRARIES = {"ax", "botorch", "ray", "torch"}


# Openings of docstrings without a noun, which make a reader look for the sentence before.
RIDDLES = re.compile(r"(As|By|Its|Nor|Of|That|They|Those|Whom)\b")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


def imports(module: str) -> Iterator[str]:
    """Returns all modules that a module imports, wherever in its text."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=level) if level:
                pytest.fail(f"{module}, line {node.lineno}: write imports in full")
            case ast.ImportFrom(module=str(source), names=names):
                # `from package import module` imports the module, `from module import name` not.
                inner = [f"{source}.{alias.name}" for alias in names]
                found = [name for name in inner if name in MODULES]
                yield from found
                if len(found) < len(inner):
                    yield source
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module")
            ) if module != "raymeta":  # which imports on first use what type checkers see
                pytest.fail(f"{module}, line {node.lineno}: imports must be readable from the text")


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(module: str) -> int:
    found = [name for name in LAYERS if is_within(module, name)]
    assert found, f"{module} has no place in LAYERS"
    return LAYERS.index(max(found, key=len))


@every_module
def test_imports_point_down(module: str) -> None:
    if module == "raymeta":
        return
    own = layer(module)
    upward = [name for name in imports(module) if name in MODULES and layer(name) < own]
    assert not upward, f"{module} imports from above: {upward}"


def test_no_modules_import_each_other() -> None:
    graph = {module: [n for n in imports(module) if n in MODULES] for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


@every_module
def test_each_library_is_known_to_few_modules(module: str) -> None:
    libraries = {name.split(".", maxsplit=1)[0] for name in imports(module)}
    strange = {name for name in libraries if module not in KNOWN_TO.get(name, {module})}
    assert not strange, f"{module} imports {strange}"


def test_the_modules_that_know_a_library_use_it() -> None:
    for library, modules in KNOWN_TO.items():
        for module in modules & set(MODULES):
            assert any(is_within(name, library) for name in imports(module)), (library, module)


@pytest.mark.slow
@pytest.mark.parametrize("tree", [ROOT, ROOT.parent / "scripts"], ids=lambda tree: tree.name)
def test_docstrings_name_what_they_are_about(tree: Path) -> None:
    riddles = [
        f"{path}, line {node.body[0].lineno}: {text.splitlines()[0]}"
        for path in tree.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if (text := ast.get_docstring(node)) and RIDDLES.match(text)
    ]
    assert not riddles, "\n".join(riddles)


def import_chains(module: str) -> Iterator[list[str]]:
    """Yields a chain of imports from `module` to each module it reaches, the shortest first."""
    chains = deque([[module]])
    seen = {module}
    while chains:
        chain = chains.popleft()
        yield chain
        if chain[-1] not in MODULES or (chain[-1] in BEHIND_NUMERICS and chain[-1] != module):
            continue
        for name in imports(chain[-1]):
            # An import runs the packages around a module as well.
            parts = name.split(".")
            around = [".".join(parts[:end]) for end in range(2, len(parts))]
            for reached in [*(package for package in around if package in MODULES), name]:
                if reached not in seen:
                    seen.add(reached)
                    chains.append([*chain, reached])


@pytest.mark.parametrize("module", [m for m in MODULES if any(is_within(m, n) for n in NUMERICS)])
def test_numerics_reach_neither_ray_nor_files_processes_and_settings(module: str) -> None:
    found = [
        " -> ".join(chain)
        for chain in import_chains(module)
        if any(is_within(chain[-1], other) for other in NOT_FOR_NUMERICS)
    ]
    assert not found, found
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "exec", "eval"}


def test_an_import_behind_another_module_is_seen() -> None:
    chains = {chain[-1]: chain for chain in import_chains("raymeta.training.recipe")}
    assert chains["pydantic"][0] == "raymeta.training.recipe"
    assert len(chains["pydantic"]) > 2


@pytest.mark.slow
def test_learners_load_without_pydantic_ray_and_tasks() -> None:
    script = "import sys, raymeta.meta.learners; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "raymeta.meta.learners.maml" in loaded
    strange = ("pydantic", "ray", "ax", "raymeta.tasks", "raymeta.experiment", "raymeta.storage")
    assert not [name for name in loaded if any(is_within(name, other) for other in strange)]


def test_numerics_are_where_they_are_looked_for() -> None:
    assert set(NUMERICS) | {"raymeta.meta.learners.maml"} <= set(MODULES)


@pytest.mark.slow
def test_torch_is_imported_in_a_trials_first_step_when_the_watchdogs_clock_runs() -> None:
    script = "import sys, raymeta.trial.actor; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "module",
    [
        module
        for module in (
            "raymeta",
            "raymeta.run_folder",
            "raymeta.console.tables",
            "raymeta.cli",
            "raymeta.meta.settings",
            "raymeta.acquisitions",
        )
        if find_spec(module)
    ],
)
def test_what_answers_at_once_imports_nothing_slow(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in loaded
    assert not SLOW_LIBRARIES & set(loaded)
