"""Imports point one way, and each third-party library is known to few modules."""

from __future__ import annotations

import ast
import subprocess
import sys
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
    "raymeta.deploy.jobs",
    "raymeta.deploy.driver",
    "raymeta.deploy.probe",
    "raymeta.deploy.check",
    "raymeta.deploy",
    "raymeta.search",
    "raymeta.evaluation",
    "raymeta.trial",
    "raymeta.training",
    "raymeta.pretraining",
    "raymeta.distributed",
    "raymeta.outer",
    "raymeta.meta",
    "raymeta.models",
    "raymeta.recurrence",
    "raymeta.native",
    "raymeta.scans",
    "raymeta.tasks",
    "raymeta.runs",
    "raymeta.storage",
    "raymeta.files",
    "raymeta.experiment_file",
    "raymeta.experiments",
    "raymeta.placement",
    "raymeta.experiment",
    "raymeta.remote",
    "raymeta.errors",
)
NUMERICS = (
    "raymeta.recurrence",
    "raymeta.scans",
    "raymeta.models",
    "raymeta.meta",
    "raymeta.outer",
    "raymeta.pretraining",
)
# Library -> the only modules that import it.
KNOWN_TO = {
    "ax": {"raymeta.search.ax_model", "raymeta.search.explain"},
    "botorch": {"raymeta.search.ax_model", "raymeta.search.categorical_gp"},
    "yaml": {
        "raymeta.deploy.cluster_file",
        "raymeta.experiment_file",
    },
    "pydantic": {"raymeta.experiment", "raymeta.experiment_file"},
    "typer": {"raymeta.cli"},
    "rich": {"raymeta.cli", "raymeta.console"},
    "fsspec": {"raymeta.storage"},
    "pyarrow": {"raymeta.remote", "raymeta.storage"},
    "ray": {
        "raymeta.api",
        "raymeta.deploy.cluster_file",
        "raymeta.deploy.jobs",
        "raymeta.deploy.local_nodes",
        "raymeta.deploy.probe",
        "raymeta.search.saved",
        "raymeta.search.searcher",
        "raymeta.search.tune_space",
        "raymeta.search.tuner",
        "raymeta.trial",
    },
}
# What numerics know nothing of: Ray, files, processes, settings.
NOT_FOR_NUMERICS = {
    "ax",
    "io",
    "json",
    "multiprocessing",
    "os",
    "pathlib",
    "ray",
    "raymeta.errors",
    "raymeta.experiment",
    "raymeta.experiment_file",
    "raymeta.files",
    "raymeta.runs",
    "raymeta.storage",
    "safetensors",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "torch.distributed",
    "yaml",
}
SLOW_LIBRARIES = {"ax", "botorch", "ray", "torch"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


def imports(module: str) -> Iterator[str]:
    """All modules that a module imports, wherever in its text."""
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
    found = [number for number, name in enumerate(LAYERS) if is_within(module, name)]
    assert found, f"{module} has no place in LAYERS"
    return found[0]


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


@pytest.mark.parametrize("module", [m for m in MODULES if any(is_within(m, n) for n in NUMERICS)])
def test_numerics_know_nothing_of_ray_files_processes_and_settings(module: str) -> None:
    found = [n for n in imports(module) if any(is_within(n, other) for other in NOT_FOR_NUMERICS)]
    assert not found, f"{module} imports {found}"
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "exec", "eval"}


def test_numerics_are_where_they_are_looked_for() -> None:
    assert set(NUMERICS) | {"raymeta.meta.maml"} <= set(MODULES)


@pytest.mark.parametrize(
    "module",
    [
        module
        for module in ("raymeta", "raymeta.runs", "raymeta.console", "raymeta.cli")
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
