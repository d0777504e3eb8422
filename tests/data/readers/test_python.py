"""A user's own code gives a table, runs only where it is allowed, and is refused in one message."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from raymeta import api
from raymeta.data.readers.python import ALLOW_CODE, PythonReader, allowance, allowed_code
from raymeta.errors import DataError, ExperimentError
from raymeta.evaluation.controls.contract import Network
from raymeta.evaluation.meta_test import meta_test
from raymeta.experiment.file import load_experiment
from raymeta.search.session import connect, stop_ray
from raymeta.training.trainer import build_trainer


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment file of CONTRIBUTING's example, with its code beside it, in this folder."""
    text = (resources.files("raymeta") / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code, yaml = (
        re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("python", "yaml")
    )
    (tmp_path / "machines.py").write_text(code[0])
    (tmp_path / "machines.yaml").write_text(yaml[0])
    assert len(code[0].splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    return tmp_path / "machines.yaml"


def returned(folder: Path, code: str, *, function: str = "load", options: str = "{}") -> object:
    """Writes the code, allows it and calls its function."""
    file = folder / "own.py"
    file.write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ALLOW_CODE, str(file))
        return PythonReader(function, options)(file)


@pytest.mark.slow
def test_the_example_of_the_guide_runs_from_its_file_to_the_meta_test(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOW_CODE, "machines.py")
    overrides = ["training.meta_steps=2", "model.hidden_size=8", "training.val_episodes=2"]
    trainer = build_trainer(load_experiment(str(example), overrides))
    trainer.train(2)
    network = Network(trainer.tasks, trainer.recipe, trainer.meta_params)
    found = meta_test(network, {}, label="trained", num_episodes=4)
    assert found.num_episodes == 4
    assert np.isfinite(found.rows[0].score.mean)
    assert len(found.rows) > 1
    assert set(trainer.tasks.deal) == {"machine"}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("load = 3", "must have the function 'load'"),
        ("def other(): pass", "has other"),
        ("def load(:", "raised SyntaxError: invalid syntax (own.py, line 1)"),
        ("import nothing_of_this_name", "line 1: raised ModuleNotFoundError"),
        ("def load():\n    return 1 / 0", "line 2: raised ZeroDivisionError"),
        ("def load():\n    raise SystemExit(0)", "line 2: raised SystemExit"),
        ("def load(): return 3", "must return a table"),
        ("def load(): return {'a': [1, 2], 'b': [1]}", "columns of one length"),
        ("def load(): return {'a': [1, 'b']}", "columns of one length"),
        ("def load(): return {'a': [[1, 2], 3]}", "columns of one length"),
        ("def load(size): return {}", "raised TypeError"),
        ("import random\ndef load(): return {'a': [random.random()]}", "whenever it is called"),
        ("n = []\ndef load():\n    n.append(1)\n    return {'a': n}", "whenever it is called"),
    ],
)
def test_code_that_gives_no_table_is_refused_in_one_message(
    tmp_path: Path, code: str, why: str
) -> None:
    with pytest.raises(DataError, match=re.escape(why)) as error:
        returned(tmp_path, code)
    assert str(tmp_path / "own.py") in str(error.value)


def test_values_of_the_table_are_checked_like_those_of_files(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (example.parent / "machines.py").read_text()
    (example.parent / "machines.py").write_text(
        code.replace("volt.tolist()", "(volt / 0).tolist()")
    )
    monkeypatch.setenv(ALLOW_CODE, "machines.py")
    with np.errstate(divide="ignore"), pytest.raises(DataError, match="row 1, column volt"):
        build_trainer(load_experiment(str(example)))


@pytest.mark.parametrize(
    "table",
    ["pandas.DataFrame(columns)", "pyarrow.table(columns)", "columns"],
)
def test_tables_of_every_form_are_the_same(tmp_path: Path, table: str) -> None:
    code = (
        "import pandas\nimport pyarrow\n"
        "columns = {'a': ['x', 'y'], 'b': [1.5, float('nan')]}\n"
        f"def load(): return {table}"
    )
    found = returned(tmp_path, code)
    assert str(found.to_pydict()["a"]) == "['x', 'y']"  # type: ignore[attr-defined]


def test_options_are_arguments_and_dataclasses_work(tmp_path: Path) -> None:
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: float\n"
        "def load(size): return {'a': [Point(1.0).x] * size}"
    )
    found = returned(tmp_path, code, options='{"size": 3}')
    assert found.to_pydict() == {"a": [1.0] * 3}  # type: ignore[attr-defined]


def test_no_code_runs_unless_its_content_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, ran = tmp_path / "own.py", tmp_path / "ran"
    file.write_text(f"open({str(ran)!r}, 'w')\ndef load(): return {{'a': [1]}}")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    other = tmp_path / "other.py"
    other.write_text("def load(): return {}")
    for given in ("", "1", str(other), str(tmp_path), "own", "0" * 64):
        monkeypatch.setenv(ALLOW_CODE, given)
        with pytest.raises(DataError, match=ALLOW_CODE):
            PythonReader("load", "{}")(file)
        assert not ran.exists()
    monkeypatch.setenv(ALLOW_CODE, os.pathsep.join([str(other), digest]))
    PythonReader("load", "{}")(file)
    assert ran.exists()
    # An edited file is another one; a path allows what is there now.
    file.write_text(file.read_text() + "\n")
    with pytest.raises(DataError, match=ALLOW_CODE):
        PythonReader("load", "{}")(file)
    monkeypatch.setenv(ALLOW_CODE, str(file))
    PythonReader("load", "{}")(file)


def test_what_is_allowed_travels_as_a_sha256(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ALLOW_CODE, "own.py:gone.py")
    digest = hashlib.sha256(b"x = 1").hexdigest()
    assert allowed_code() == (digest,)
    assert allowance() == {ALLOW_CODE: digest}
    monkeypatch.delenv(ALLOW_CODE)
    assert allowance() == {}


@pytest.mark.parametrize("function", ["load", "own:", ":load", "a.b:load", "../own:load", "a:b.c"])
def test_a_function_that_is_not_in_a_file_of_the_folder_is_refused(
    example: Path, function: str
) -> None:
    with pytest.raises(ExperimentError, match="must be module:function"):
        load_experiment(str(example), [f"tasks.function={function!r}"])


@pytest.mark.ray
def test_workers_in_other_folders_get_the_table(
    example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray  # noqa: PLC0415  (slow)

    monkeypatch.setenv(ALLOW_CODE, "machines.py")
    experiment = api.read_experiment(str(example))

    def fingerprint() -> str:
        os.chdir("/")
        return build_trainer(experiment).tasks.fingerprint

    connect(verbose=False)
    try:
        assert ray.get(ray.remote(fingerprint).remote()) == fingerprint()
    finally:
        stop_ray()


@pytest.mark.slow
def test_the_command_line_says_how_to_allow_the_code(example: Path) -> None:
    command = [sys.executable, "-m", "raymeta", "inspect", str(example)]
    environment = {k: v for k, v in os.environ.items() if k != ALLOW_CODE}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 1
    assert f"{ALLOW_CODE}={example.with_suffix('.py')}" in ended.stderr
