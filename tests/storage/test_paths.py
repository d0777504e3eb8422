"""Paths in a storage: moto's S3, over HTTP, by Arrow's own client."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

from raymeta import api
from raymeta.errors import RunError
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run, runs
from raymeta.storage import paths
from raymeta.storage.paths import RemotePath, list_matching, path_at, remove_folder
from raymeta.tasks.settings import PEN_DIR
from tests.conftest import TINY


@pytest.fixture
def folder(bucket: str) -> RemotePath:
    found = path_at(bucket)
    assert isinstance(found, RemotePath)
    return found / "folder"


def test_written_files_are_read_back(folder: RemotePath) -> None:
    file = folder / "deep" / "file.bin"
    assert not file.is_file()
    file.write_bytes(b"one")
    file.write_bytes(b"two \xc3\xa4")
    assert file.is_file()
    assert (file.read_bytes(), file.read_text()) == (b"two \xc3\xa4", "two ä")
    assert file.stat().st_size == len(b"two \xc3\xa4")
    assert file.stat().st_mtime > 0
    assert (folder / "deep").is_dir()
    assert not file.is_dir()


def test_removing_a_folder_removes_its_content(folder: RemotePath) -> None:
    for name in ("one", "deep/two"):
        (folder / "removed" / name).write_bytes(b"1")
    (folder / "kept").write_bytes(b"1")
    remove_folder(folder / "removed")
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_missing_file_is_an_error_of_the_operating_system(folder: RemotePath) -> None:
    with pytest.raises(FileNotFoundError):
        (folder / "gone").read_bytes()
    with pytest.raises(FileNotFoundError):
        (folder / "gone").stat()


def test_a_folder_is_made_once(folder: RemotePath) -> None:
    folder.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    with pytest.raises(FileExistsError):
        folder.mkdir()


def test_name_stem_and_parent_follow_the_uri(bucket: str) -> None:
    path = path_at(bucket) / "runs" / "pen.yaml"
    base, _, query = bucket.partition("?")
    assert str(path) == f"{base}/runs/pen.yaml?{query}"
    assert path_at(str(path)) == path
    assert (path.name, path.stem, path.parent.name) == ("pen.yaml", "pen", "runs")
    assert path.resolve() == path
    copy = pickle.loads(pickle.dumps(path))  # noqa: S301  (our own)
    assert copy == path
    copy.write_bytes(b"x")
    assert path.read_bytes() == b"x"


def test_patterns_find_what_fits_in_order(folder: RemotePath) -> None:
    for name in ("b/state.json", "a/state.json", "a/other.json", "c/deep/state.json", "x.txt"):
        (folder / name).write_bytes(b"")

    def found(pattern: str) -> list[str]:
        uris = [str(path).split("?")[0] for path in list_matching(folder, pattern)]
        return [uri.partition("/folder/")[2] for uri in uris]

    assert found("*/state.json") == ["a/state.json", "b/state.json"]
    assert found("*/*.json") == ["a/other.json", "a/state.json", "b/state.json"]
    assert found("*.txt") == ["x.txt"]
    assert list_matching(folder / "absent", "*") == []


@pytest.mark.parametrize(
    "uri",
    [
        "gs://bucket/runs",
        "abfs://account.dfs.core.windows.net/container/runs",
        "abfs://container@account.dfs.core.windows.net/runs",
    ],
)
def test_the_text_of_a_place_leads_to_it_again(uri: str) -> None:
    path = path_at(uri) / "first"
    again = path_at(str(path))
    assert isinstance(path, RemotePath)
    assert isinstance(again, RemotePath)
    assert again.path == path.path
    assert str(again) == str(path)
    assert again.filesystem.type_name == path.filesystem.type_name


def test_places_of_this_machine_are_paths(tmp_path: Path) -> None:
    assert path_at("runs") == Path("runs")
    assert path_at(tmp_path.as_uri()) == tmp_path
    assert path_at(tmp_path) is tmp_path


@pytest.mark.parametrize(
    ("uri", "message"),
    [("quux://bucket/runs", "is not a storage that Arrow can open"), ("s3://", "name a bucket")],
)
def test_an_unknown_storage_is_refused(uri: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        path_at(uri)


@pytest.mark.parametrize(
    "uri", ["s3://KEY:hush@bucket/runs", "abfs://host/runs?client_secret=hush", "s3://b/r?sig=hush"]
)
def test_a_password_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(RunError, match="AWS_SECRET_ACCESS_KEY") as error:
        path_at(uri)
    assert "hush" not in str(error.value)
    assert "KEY" not in str(error.value).replace("ACCESS_KEY", "")


def test_a_storage_that_cannot_be_written_is_named(bucket: str) -> None:
    experiment = load_experiment("sinusoid", TINY)
    absent = bucket.replace("s3://", "s3://absent-")
    with pytest.raises(RunError, match="cannot be made"):
        Run.create(path_at(absent), experiment)


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_on_data_in_a_bucket_is_kept_there_and_found_again(bucket: str) -> None:
    data = path_at(bucket) / "data"
    for file in PEN_DIR.glob("UJIpenchars-w*"):
        (data / file.name).write_bytes(file.read_bytes())
    root = path_at(bucket) / "runs"
    overrides = [
        *TINY,
        f"tasks.data_dir={data}",
        "search.space={maml.inner_lr: {low: 0.01, high: 1.0, log: true}}",
        "search.num_trials=3",
        "evaluation.num_episodes=5",
    ]
    report = api.tune("pen-maml", overrides=overrides, runs_dir=root, name="first")
    (run,) = runs(root)
    assert run == report.run == Run.open("first", root)
    assert str(run.path) == str(root / "first")
    assert {record.status for record in report.trials.values()} == {"completed"}
    again = api.evaluate("first", runs_dir=root)
    assert again.meta_test == report.meta_test
    finished = api.tune(resume=str(run.path))
    assert finished.trials == report.trials
    with pytest.raises(RunError, match="there is such a run"):
        api.tune("pen-maml", overrides=overrides, runs_dir=root, name="first")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "evaluate", "explain", "tune"])
def test_a_storage_that_cannot_be_reached_is_one_message(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert_unreachable(address, command, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "evaluate", "explain", "tune"])
def test_a_storage_that_never_answers_is_one_message_in_time(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_REQUEST_S", 1.0)  # a whole number: curl counts seconds
    asked: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        Thread(target=accept_all, args=(silent, asked), daemon=True).start()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert_unreachable(address, command, monkeypatch)
        assert 1 <= len(asked) <= ATTEMPTS  # with the limits of the product: half a minute
        silent.shutdown(socket.SHUT_RDWR)
    for connection in asked:
        connection.close()


ATTEMPTS = 3


def accept_all(silent: socket.socket, asked: list[socket.socket]) -> None:
    with suppress(OSError):  # the end of the test
        while True:
            asked.append(silent.accept()[0])


def test_the_limits_of_a_storage_go_with_it_to_other_processes() -> None:
    path = path_at("s3://bucket/runs?region=us-east-1")
    assert isinstance(path, RemotePath)
    for each in (path, pickle.loads(pickle.dumps(path))):  # noqa: S301  (our own)
        _, (options,) = each.filesystem.__reduce__()
        assert (options["connect_timeout"], options["request_timeout"]) == (5, 10)
        assert ATTEMPTS * (5 + 10) < 60


def assert_unreachable(address: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    root = f"s3://bucket/runs?endpoint_override={address}&region=us-east-1"
    calls: dict[str, Callable[[], object]] = {
        "list": lambda: runs(root),
        "evaluate": lambda: api.evaluate("one", runs_dir=root),
        "explain": lambda: api.explain("one", runs_dir=root),
        "tune": lambda: api.tune(resume="one", runs_dir=root),
    }
    with pytest.raises(RunError) as error:
        calls[command]()
    assert str(error.value).startswith("s3://bucket/runs")
    assert "cannot be reached" in str(error.value)
    assert "check its address" in str(error.value)


@pytest.mark.parametrize("place", ["a\0b", "s3://bucket/a\0b"])
def test_a_nul_character_in_a_place_is_refused(place: str) -> None:
    with pytest.raises(RunError, match="a path holds no NUL character"):
        path_at(place)
