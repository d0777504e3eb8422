"""Hostile YAML: bombs, tags and damage are refused at once, wherever YAML is read."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raymeta.deploy.files.load import load_cluster
from raymeta.errors import MAX_MESSAGE, ClusterError, ExperimentError, RaymetaError
from raymeta.experiment.file import load_experiment
from raymeta.experiment.yaml_lines import (
    MAX_CHARACTERS,
    YamlError,
    read_document,
    read_documents,
    read_file,
    write,
)
from raymeta.run_folder import Run
from raymeta.tasks.load import load_tasks

DEADLINE_S = 10  # what is refused takes a hundredth of it; machines may be busy


def nested_aliases(levels: int, width: int, form: str = "[{}]") -> str:
    """Builds a few hundred bytes that stand for width ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        items = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {form.format(items)}")
    return "\n".join(lines) + "\n"


MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], k{n}: 1}}\n" for n in range(1, 12)
)
HOSTILE = {
    "aliases": nested_aliases(10, 9),
    "aliases of mappings": nested_aliases(12, 2, "{{k: [{}]}}").replace("{{", "{"),
    "merges": MERGES,
    "text": f"a: &a {'x' * 50_000}\nb: [{', '.join(['*a'] * 200)}]\n",
    "an alias within itself": "a: &a [*a]\n",
    "depth": "[" * 100_000,
    "depth of mappings": "{a: " * 50_000,
    "depth of blocks": "- " * 50_000,
    "values": "- x\n" * 60_000,
    "characters": "a: " + "x" * (MAX_CHARACTERS + 1),
    "a number": "a: " + "9" * 5000,
    "a hexadecimal number": "a: 0x" + "f" * 5000,
    "a number of base 60": "a: 1" + ":1" * 50_000,
    "control characters": "a: \x07\n",
    "a tag of Python": "a: !!python/object/apply:os.system [id]\n",
    "a tag": "a: !secret x\n",
    "binary": "a: !!binary aGVsbG8=\n",
    "a set": "a: !!set {x, y}\n",
    "a number that is none": "a: !!int x\n",
    "a truth value that is none": "a: !!bool perhaps\n",
    "a time that is none": "a: !!timestamp x\n",
    "a date that is none": "a: 2020-13-45\n",
    "an empty number": 'a: !!float ""\n',
    "a list as a key": "? [1]\n: 2\n",
    "an equals sign": "a: =\n",
}


def refusals(tmp_path: Path, text: str) -> dict[str, Callable[[], object]]:
    """Reads hostile YAML in every way that raymeta has."""
    experiment, cluster = tmp_path / "own.yaml", tmp_path / "cluster.yaml"
    crds = tmp_path / "crds"
    crds.mkdir(exist_ok=True)
    for path in (experiment, cluster, crds / "crd.yaml"):
        path.write_text(text, encoding="utf-8")
    (tmp_path / "child.yaml").write_text("base: own.yaml\n")
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("apiVersion: ray.io/v1\nkind: RayCluster\n")
    return {
        "experiment": lambda: load_experiment(str(experiment)),
        "base": lambda: load_experiment(str(tmp_path / "child.yaml")),
        "override": lambda: load_experiment("pen", [f"tasks={text}"]),
        "cluster": lambda: load_cluster(cluster),
        "CRDs": lambda: load_cluster(manifest, crds=crds),
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_at_once_wherever_it_is_read(tmp_path: Path, name: str) -> None:
    for place, read in refusals(tmp_path, HOSTILE[name]).items():
        began = time.monotonic()
        with pytest.raises(RaymetaError) as error:
            read()
        assert time.monotonic() - began < DEADLINE_S, place
        assert len(str(error.value)) <= MAX_MESSAGE, place
        assert all(c.isprintable() or c == "\n" for c in str(error.value)), place


def test_a_bomb_takes_neither_memory_nor_time(tmp_path: Path) -> None:
    """Runs in a process limited to 3 GB, most of which its imports take."""
    (tmp_path / "bomb.yaml").write_text(HOSTILE["aliases"])
    script = "from raymeta.experiment.file import load_experiment; load_experiment('bomb.yaml')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, 3 * 10**9)),
    )
    assert "more than 10000 values, aliases included" in done.stderr.splitlines()[-1]
    assert len(done.stderr) < 5000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfen\x00a\x00", "not UTF-8 text"),
        (b"\x00\x01\x02", "not allowed"),
        (b"", "expected"),
        (b"\n\n# nothing\n", "expected"),
        (b"---\n---\n", "expected one"),
        ("a: \ud800".encode("utf-8", "surrogatepass"), "not UTF-8 text"),
        (b'a: "\\ud800"', "."),
    ],
)
def test_files_that_hold_no_mapping_are_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ExperimentError, match=reason):
        load_experiment(str(path))
    with pytest.raises(ClusterError, match=reason):
        load_cluster(path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "nothing", "loop"])
def test_paths_that_are_no_files_are_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "own.yaml"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "loop":
            path.symlink_to(path)
    with pytest.raises(ExperimentError, match="neither a readable file") as error:
        load_experiment(str(path))
    assert len(str(error.value)) <= MAX_MESSAGE
    with pytest.raises(ClusterError, match="cannot be read"):
        load_cluster(path)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 256, "é" * 200, "x/" * 3000, "a\0b"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "own.yaml"
    quoted = json.dumps(name, ensure_ascii=False)
    path.write_text(f"base: {quoted}\n", encoding="utf-8")
    for read in (
        lambda: load_experiment(str(path)),
        lambda: load_experiment(name),
        lambda: load_tasks(load_experiment("pen", [f"tasks.data_dir={quoted}"])),
        lambda: Run.open(name, tmp_path),
        lambda: load_cluster(Path(name)),
    ):
        with pytest.raises(RaymetaError) as error:
            read()
        assert len(str(error.value)) <= MAX_MESSAGE


def test_a_chain_of_bases_has_an_end(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    (tmp_path / "200.yaml").write_text("base: pen\n")
    with pytest.raises(ExperimentError, match="more than 20 files build on one another"):
        load_experiment(str(tmp_path / "0.yaml"))
    assert load_experiment(str(tmp_path / "185.yaml")).name == "pen"


def test_a_byte_order_mark_and_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\r\ntasks: {source: pen}\r\nseed: -1\r\n")
    with pytest.raises(ExperimentError, match=r"seed must be >= 0, but got -1 \(own.yaml, line 3"):
        load_experiment(str(path))
    assert read_file(path).startswith("name: a\ntasks")


@pytest.mark.parametrize("text", ["010", "-017", "+0_7", "1:30", "1:30.5", "00"])
def test_numbers_that_yaml_reads_in_another_base_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(f"base: pen\nname: a\nsearch: {{constraints: [{text}]}}\n")
    calls: dict[str, Callable[[], object]] = {
        "search.constraints.0 .*own.yaml, line 3": lambda: load_experiment(
            str(tmp_path / "own.yaml")
        ),
        "seed .*--set": lambda: load_experiment("pen", [f"seed={text}"]),
        "tasks.num_shots .*--set": lambda: load_experiment("pen", [f"tasks={{num_shots: {text}}}"]),
    }
    for where, call in calls.items():
        place, at = where.split(" ", 1)
        with pytest.raises(ExperimentError) as error:
            call()
        assert str(error.value).startswith(f"{place} must be in base 10, or in quotes"), where
        assert f"but got {text}," in str(error.value)
        assert re.search(at, str(error.value)), where


@pytest.mark.parametrize(("text", "seed"), [("0", 0), ("10", 10), ("0x10", 16), ("1_000", 1000)])
def test_other_whole_numbers_are_read(text: str, seed: int) -> None:
    assert load_experiment("pen", [f"seed={text}"]).seed == seed


def test_text_of_digits_goes_in_quotes() -> None:
    assert load_experiment("pen", ["name='010'"]).name == "010"


def test_lines_are_those_of_keys_and_items() -> None:
    document = read_document("a:\n  b: 1\n  c:\n  - x\n  - {d: 2}\n")
    assert document.lines == {
        ("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 5,
        ("a", "c", 1, "d"): 5,
    }  # fmt: skip
    assert document.data == {"a": {"b": 1, "c": ["x", {"d": 2}]}}


def test_merged_mappings_fill_missing_keys() -> None:
    document = read_document("x: &x {a: 1, b: 1}\ny:\n  <<: *x\n  b: 2\nz: {<<: [{a: 3}, *x]}\n")
    assert document.data["y"] == {"a": 1, "b": 2}
    assert document.data["z"] == {"a": 3, "b": 1}
    assert document.repeated == []
    assert document.lines["y", "b"] == 4


@pytest.mark.parametrize("text", ["a: 1\na: 2", "1: x\n'1': y", "true: 1\nyes: 2", "1: a\n0x1: b"])
def test_a_key_given_twice_is_noted_however_it_is_written(text: str) -> None:
    assert len(read_document(text).repeated) == 1


def test_redundant_tags_are_accepted() -> None:
    text = "!!map {a: !!int 1, b: !!str 2, c: !!seq [!!float 1.5], d: !!null null, e: !!bool yes}"
    assert read_document(text).data == {"a": 1, "b": "2", "c": [1.5], "d": None, "e": True}


def test_a_large_search_stays_within_the_limits() -> None:
    data = {f"key{n}": {"choices": [f"choice {m}" for m in range(90)]} for n in range(90)}
    assert read_document(write(data)).data == data


def test_several_documents_know_their_lines() -> None:
    assert [d.line for d in read_documents("a: 1\n---\nb: 2\n---\nc: 3\n")] == [1, 2, 4]
    with pytest.raises(YamlError, match="another document"):
        read_document("a: 1\n---\nb: 2\n")
