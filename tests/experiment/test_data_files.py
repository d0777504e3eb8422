"""Only the files that the loader reads go with a job or a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raymeta.deploy import check
from raymeta.deploy.jobs.client import Jobs
from raymeta.errors import DataError
from raymeta.experiment.data_files import DATA, data_files
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.run_folder import Run
from raymeta.tasks.settings import PEN_DIR, SENTENCES_DIR

SHIPPED = {
    "pen": (PEN_DIR, "UJIpenchars-w*"),
    "sentiment": (SENTENCES_DIR, "*.json"),
}


@pytest.fixture(params=SHIPPED)
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, source: str) -> Path:
    """Makes a data folder that also holds secrets, as a home folder does."""
    shipped, pattern = SHIPPED[source]
    data = tmp_path / "home"
    (data / ".ssh").mkdir(parents=True)
    for file in shipped.glob(pattern):
        shutil.copy(file, data)
    for name in (".env", "notes.txt", ".ssh/id_rsa", ".ssh/UJIpenchars-w99", ".ssh/x.json"):
        (data / name).write_text("secret")
    return data


def experiment(source: str, folder: Path) -> Experiment:
    return load_experiment(source, [f"tasks.data_dir={folder}"])


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_only_the_data_files_are_listed(source: str, folder: Path) -> None:
    shipped, pattern = SHIPPED[source]
    listed = {Path(str(file)).name for file in data_files(experiment(source, folder))}
    assert listed == {file.name for file in shipped.glob(pattern)}
    assert list(data_files(load_experiment(source))) == []


def test_a_job_takes_only_the_data_files(source: str, folder: Path, tmp_path: Path) -> None:
    shipped, pattern = SHIPPED[source]
    Jobs._pack(object.__new__(Jobs), experiment(source, folder), tmp_path / "job")
    expected = {f"{DATA}/{file.name}" for file in shipped.glob(pattern)}
    assert names(tmp_path / "job") == {*expected, "experiment.yaml"}
    packed = load_experiment(str(tmp_path / "job" / "experiment.yaml"))
    assert packed.value("tasks.data_dir") == DATA


def test_a_run_keeps_only_the_data_files(source: str, folder: Path, tmp_path: Path) -> None:
    shipped, pattern = SHIPPED[source]
    asked = experiment(source, folder)
    run = Run.create(tmp_path / "runs", asked, keep_data=True)
    assert isinstance(run.path, Path)
    expected = {f"{DATA}/{file.name}" for file in shipped.glob(pattern)}
    assert names(run.path) == {*expected, "experiment.yaml", "run.json"}
    without = Run.create(tmp_path / "runs", asked, "without")
    assert isinstance(without.path, Path)
    assert names(without.path) == {"experiment.yaml", "run.json"}


@pytest.mark.parametrize("through", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused(
    source: str, folder: Path, tmp_path: Path, through: str
) -> None:
    name = {"pen": "UJIpenchars-w98", "sentiment": "zz.json"}[source]
    (tmp_path / "outside").mkdir()
    shipped, pattern = SHIPPED[source]
    shutil.copy(min(shipped.glob(pattern)), tmp_path / "outside" / name)
    if through == "folder":
        (folder / "beside").symlink_to(tmp_path / "outside")
        (folder / name).symlink_to(folder / "beside" / name)
    else:
        (folder / name).symlink_to(tmp_path / "outside" / name)
    asked = experiment(source, folder)
    with pytest.raises(DataError, match=f"{name}: is a link to a file outside"):
        Jobs._pack(object.__new__(Jobs), asked, tmp_path / "job")
    assert not (tmp_path / "job" / DATA / name).exists()
    with pytest.raises(DataError, match=f"{name}: is a link to a file outside"):
        Run.create(tmp_path / "runs", asked, keep_data=True)
    assert not (tmp_path / "runs").exists()
    assert [finding.level for finding in check._data(asked)] == ["error"]


def test_a_link_within_the_folder_is_copied_as_a_file(
    source: str, folder: Path, tmp_path: Path
) -> None:
    pattern = SHIPPED[source][1]
    first = min(folder.glob(pattern))
    link = first.with_name(f"{first.stem}9{first.suffix}")
    link.symlink_to(first.name)
    Jobs._pack(object.__new__(Jobs), experiment(source, folder), tmp_path / "job")
    copy = tmp_path / "job" / DATA / link.name
    assert not copy.is_symlink()
    assert copy.read_bytes() == first.read_bytes()


def test_the_folder_itself_may_be_a_link(source: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    Jobs._pack(object.__new__(Jobs), experiment(source, tmp_path / "link"), tmp_path / "job")
    assert len(names(tmp_path / "job")) > 1
