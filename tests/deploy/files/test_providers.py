"""The contract of every registered kind of cluster: a new one is added to PROVIDERS and here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from raymeta.deploy.check import growth, job_environment
from raymeta.deploy.files.cluster import Cluster, ClusterFile, NodeType, Provider
from raymeta.deploy.files.load import PROVIDERS, load_cluster
from raymeta.deploy.teardown import tear_down
from raymeta.errors import MAX_MESSAGE, ClusterError
from tests.deploy.cluster_files import ROOT, filled_in, use_laptop

# Provider -> its shipped file.
FILES = {
    "aws": "aws.yaml",
    "azure": "azure.yaml",
    "external": "local.yaml",
    "gcp": "gcp.yaml",
    "kuberay": "kuberay.yaml",
    "local": "onprem.yaml",
    "slurm": "slurm.sbatch",
}
WITHOUT_VERSION = {"README.md", "SCALING.md", "aws-account.template"}
# Odd values, each of which takes the place of every value in turn.
ODD = ("[1]", "{a: 1}", "1.5", "-1", ".nan", "9" * 5000, "2020-01-01", "~")


@pytest.fixture(autouse=True)
def _laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_laptop(tmp_path / "home", monkeypatch)


@pytest.fixture(params=PROVIDERS.values(), ids=list(PROVIDERS))
def provider(request: pytest.FixtureRequest) -> Provider:
    found: Provider = request.param
    return found


@pytest.fixture
def path(provider: Provider, tmp_path: Path) -> Path:
    name = FILES[provider.name]
    path = tmp_path / name
    path.write_text(filled_in(name), encoding="utf-8")
    return path


def test_every_provider_has_a_shipped_file() -> None:
    assert set(FILES) == set(PROVIDERS)
    assert all((ROOT / "cluster" / name).is_file() for name in FILES.values())


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "cluster").iterdir()))
def test_shipped_files_name_the_version_that_they_come_with(name: str) -> None:
    text = (ROOT / "cluster" / name).read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"raymeta(?: |:|==)(\d+\.\d+\.\d+)", text)
    assert set(named) <= {project["version"]}
    assert named or name in WITHOUT_VERSION


def test_each_file_is_of_its_provider(provider: Provider, path: Path) -> None:
    file = ClusterFile(path, path.read_text())
    assert next(other for other in PROVIDERS.values() if other.serves(file)) is provider
    if provider.is_launched:
        assert [p.name for p in PROVIDERS.values() if p.serves(file)] == [provider.name]


def test_a_cluster_has_workers_and_a_head_without_trials(provider: Provider, path: Path) -> None:
    cluster = load_cluster(path)
    assert (cluster.provider, cluster.path) == (provider.name, path)
    heads = [node for node in cluster.nodes if node.is_head]
    assert [(node.resources or {}).get("CPU") for node in heads] == [0]
    workers = [node for node in cluster.nodes if not node.is_head]
    assert workers
    assert all(0 <= node.min_workers <= node.max_workers for node in workers)
    assert any(node.max_workers for node in workers)
    assert job_environment(cluster)
    assert growth(cluster) is None or len(growth(cluster) or ()) == len(cluster.nodes)


def test_placeholders_are_refused_with_file_and_line(provider: Provider) -> None:
    shipped = Path("cluster", FILES[provider.name])
    if "FILL_IN" not in shipped.read_text(encoding="utf-8"):
        load_cluster(shipped)
        return
    with pytest.raises(ClusterError, match=rf"{shipped}, line \d+: .* still to be filled in"):
        load_cluster(shipped)


def test_a_cluster_ends_by_ray_down_or_says_what_ends_it(provider: Provider, path: Path) -> None:
    if provider.ends_by is None:
        assert provider.has_tunnel  # `ray down` and `ray dashboard` read the same files
        return
    nodes = (NodeType("head", None, 0, 0, is_head=True, is_spot=False),)
    with pytest.raises(ClusterError, match=r"ends by `") as error:
        tear_down(Cluster(path, provider.name, nodes, None, ()))
    assert "{path}" not in str(error.value)


@pytest.mark.parametrize("value", ODD)
def test_values_of_any_type_are_accepted_or_refused(
    provider: Provider, path: Path, value: str
) -> None:
    """Each value replaces every tenth line's; together the values reach all lines."""
    lines = path.read_text().splitlines()
    for number in range(ODD.index(value), len(lines), 10):
        key, colon, rest = lines[number].partition(": ")
        if not colon or not rest.strip() or lines[number].lstrip().startswith("#"):
            continue
        path.write_text("\n".join([*lines[:number], f"{key}: {value}", *lines[number + 1 :]]))
        told = str(path)
        try:
            load_cluster(path)
        except ClusterError as error:
            told = str(error)
        assert str(path) in told
        assert len(told) <= MAX_MESSAGE
