from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raymeta.deploy.check import check_on, growth, has_errors, job_environment
from raymeta.deploy.files.cluster import Cluster, NodeType
from raymeta.deploy.files.load import load_cluster
from raymeta.experiment.file import load_experiment
from raymeta.experiment.schema import Experiment
from raymeta.finding import Finding
from raymeta.placement import NODES_VARIABLE, WORKERS_VARIABLE, from_json
from raymeta.tasks.settings import PEN_DIR
from tests.conftest import TINY
from tests.deploy.cluster_files import filled_in

SPACE = "search.space={model.hidden_size: {low: 4, high: 64, step: 4}}"
GB = 1e9


def node(name: str, resources: dict[str, float] | None, most: int = 1, **how: Any) -> NodeType:
    settings: dict[str, Any] = {"min_workers": 0, "is_head": False, "is_spot": False} | how
    return NodeType(name=name, resources=resources, max_workers=most, **settings)


HEAD = node("head", {"CPU": 0, "memory": 8 * GB}, 0, is_head=True)
GPUS = node("gpus", {"CPU": 8, "GPU": 2, "memory": 32 * GB}, 3, is_spot=True)


def cluster(*nodes: NodeType, runs_dir: str | None = "/mnt/shared/runs", **changes: Any) -> Cluster:
    settings: dict[str, Any] = {"path": Path("aws.yaml"), "provider": "aws", "warnings": ()}
    return Cluster(nodes=nodes, runs_dir=runs_dir, **(settings | changes))


def experiment(*overrides: str) -> Experiment:
    return load_experiment("pen-maml", [*TINY, SPACE, "search.num_trials=12", *overrides])


def found(findings: list[Finding], subject: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in findings if finding.subject == subject]


def test_an_experiment_that_fits_has_no_errors() -> None:
    asked = experiment("resources.gpus_per_worker=1", "resources.max_concurrent_trials=6")
    findings = check_on(asked, cluster(HEAD, GPUS), None)
    assert not has_errors(findings)
    assert {finding.level for finding in findings} <= {"ok", "note"}
    ((level, text),) = found(findings, "one trial")
    assert level == "ok"
    assert "1 × (1 CPU and 1 GPU)" in text
    assert "2 on gpus" in text
    assert "0 on head" in text
    ((_, text),) = found(findings, "trials at once")
    assert text.startswith("6 fit, 6 are asked for")


def test_unused_gpus_are_a_warning() -> None:
    ((level, text),) = found(check_on(experiment(), cluster(HEAD, GPUS), None), "GPUs")
    assert level == "warning"
    assert "resources.gpus_per_worker" in text
    with_gpus = experiment("resources.gpus_per_worker=0.5")
    assert not found(check_on(with_gpus, cluster(HEAD, GPUS), None), "GPUs")
    assert not found(
        check_on(experiment(), cluster(HEAD, node("cpus", {"CPU": 8}, 3)), None), "GPUs"
    )


def test_a_driver_learns_the_nodes_that_may_be_added() -> None:
    (told,) = job_environment(cluster(HEAD, GPUS)).items()
    assert told[0] == NODES_VARIABLE
    assert [kind.count for kind in from_json(told[1])] == [1, 3]
    hosts = NodeType("worker", None, 2, 2, is_head=False, is_spot=False)
    assert job_environment(cluster(HEAD, hosts)) == {WORKERS_VARIABLE: "2"}


def test_the_search_of_kuberays_own_cluster_knows_its_nodes(tmp_path: Path) -> None:
    path = tmp_path / "kuberay.yaml"
    path.write_text(filled_in("kuberay.yaml"), encoding="utf-8")
    documents = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    (job,) = [document for document in documents if document["kind"] == "RayJob"]
    (head,) = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    (told,) = [entry["value"] for entry in head["env"] if entry["name"] == NODES_VARIABLE]
    grown = {kind.name: kind for kind in growth(load_cluster(path)) or ()}
    for kind in from_json(told):
        assert kind.count == grown[kind.name].count
        assert kind.resources.items() <= grown[kind.name].resources.items()


def test_a_trial_that_fits_on_no_node_is_an_error() -> None:
    findings = check_on(experiment("resources.gpus_per_worker=4"), cluster(HEAD, GPUS), None)
    assert has_errors(findings)
    ((level, text),) = found(findings, "one trial")
    assert level == "error"
    assert "4 GPU on one node (resources.gpus_per_worker)" in text


def test_waiting_trials_are_a_warning_and_idle_nodes_a_note() -> None:
    for most, level, text in (
        (9, "warning", "the others wait"),
        (2, "note", "null for as many as fit"),
    ):
        asked = experiment("resources.gpus_per_worker=1", f"resources.max_concurrent_trials={most}")
        (told,) = found(check_on(asked, cluster(HEAD, GPUS), None), "trials at once")
        assert told[0] == level
        assert told[1].endswith(text)


def test_hosts_with_unknown_resources_give_a_note() -> None:
    unknown = cluster(HEAD, node("hosts", None, 3), provider="local")
    ((level, text),) = found(check_on(experiment(), unknown, None), "one trial")
    assert level == "note"
    assert "once they are up" in text
    assert growth(unknown) is None  # so the driver asks the nodes themselves


def test_workers_that_share_a_node_must_fit_its_memory() -> None:
    small = node("small", {"CPU": 16, "memory": 2 * GB}, 2)
    ((level, text),) = [
        told
        for told in found(check_on(experiment(), cluster(small), None), "memory")
        if "16" in told[1]
    ]
    assert level == "error"
    assert "16 workers" in text
    large = node("large", {"CPU": 16, "memory": 64 * GB}, 2)
    assert not has_errors(check_on(experiment(), cluster(large), None))


def test_the_memory_is_that_of_the_largest_searched_network() -> None:
    def told(*overrides: str) -> str:
        ((_, text),) = found(check_on(experiment(*overrides), cluster(GPUS), None), "memory")
        return text

    steps = ("maml.adaptation_steps=20", "training.meta_batch_size=32", "tasks.num_points=128")
    assert told(*steps) == told(*steps, "model.hidden_size=64")
    assert told(*steps) != told(*steps, "search.space={}")


def test_data_parallelism_that_costs_trials_is_advised_against() -> None:
    wide = ("resources.num_workers=3", "resources.gpus_per_worker=1")
    ((level, text),) = found(check_on(experiment(*wide), cluster(GPUS), None), "advice")
    assert level == "note"
    assert "resources.num_workers: 1 with max_concurrent_trials: 6" in text
    alone = check_on(experiment(*wide, "search.space={}"), cluster(GPUS), None)
    assert not found(alone, "advice")
    assert not found(check_on(experiment(), cluster(GPUS), None), "advice")


@pytest.mark.parametrize(
    ("runs_dir", "level", "text"),
    [
        ("runs", "error", "is another folder on every node"),
        ("/mnt/shared/runs", "note", "the same folder on all nodes"),
        ("s3://KEY:hush@bucket/runs", "warning", "not within the URI"),
    ],
)
def test_storage_that_nodes_cannot_share_is_reported(runs_dir: str, level: str, text: str) -> None:
    ((told, said),) = found(check_on(experiment(), cluster(GPUS), runs_dir), "storage")
    assert told == level
    assert text in said
    assert "hush" not in said


def test_a_cluster_without_storage_is_an_error() -> None:
    ((level, text),) = found(check_on(experiment(), cluster(GPUS, runs_dir=None), None), "storage")
    assert level == "error"
    assert "--runs-dir" in text


def test_a_bucket_is_written_to_and_left_as_it_was(bucket: str) -> None:
    ((level, text),) = found(check_on(experiment(), cluster(GPUS), bucket), "storage")
    assert (level, "can be written from here" in text) == ("ok", True)
    absent = bucket.replace("s3://", "s3://absent-")
    ((level, text),) = found(check_on(experiment(), cluster(GPUS), absent), "storage")
    assert (level, "cannot be written from here" in text) == ("warning", True)


def test_the_size_of_submitted_data_is_checked(tmp_path: Path, monkeypatch: Any) -> None:
    asked = experiment(f"tasks.data_dir={PEN_DIR}")
    ((level, text),) = found(check_on(asked, cluster(GPUS), None), "data")
    assert level == "ok"
    assert "MB travel with the job" in text
    monkeypatch.setattr("raymeta.deploy.check.LARGE_DATA_BYTES", 1000)
    ((level, text),) = found(check_on(asked, cluster(GPUS), None), "data")
    assert level == "error"
    assert "tasks.data_dir to its URI" in text


def test_a_cluster_grows_to_as_many_nodes_of_a_kind_as_its_file_allows() -> None:
    grown = growth(cluster(HEAD, GPUS))
    assert grown is not None
    assert [(kind.name, kind.count) for kind in grown] == [("head", 1), ("gpus", 3)]


def test_warnings_of_the_file_are_passed_on() -> None:
    warned = cluster(GPUS, warnings=("auth.ssh_private_key: no such file",))
    assert ("warning", "auth.ssh_private_key: no such file") in found(
        check_on(experiment(), warned, None), "cluster file"
    )


@pytest.mark.parametrize(("name", "where"), [("me/model", "downloaded by"), ("", "needs this fol")])
def test_what_nodes_need_of_an_encoder_is_said(
    tmp_path: Path, monkeypatch: Any, name: str, where: str
) -> None:
    # That loads the tasks, and with them the encoder.
    monkeypatch.setattr("raymeta.deploy.check.estimate_memory", lambda _: 10**9)
    encoder = f"tasks.encoder={name or tmp_path}"
    asked = load_experiment("sentiment", [*TINY, SPACE, encoder])
    ((level, text),) = found(check_on(asked, cluster(GPUS), None), "encoder")
    assert level == "note"
    assert where in text
    assert "raymeta[text]" in text
