"""kuberay.yaml against KubeRay's own definitions of its resources."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from raymeta.deploy.files.load import load_cluster
from raymeta.errors import ClusterError
from raymeta.serving.settings import ServeSettings
from tests.deploy.cluster_files import filled_in


@pytest.fixture(scope="module")
def crds() -> Path:
    """Returns the folder with the CustomResourceDefinitions, which the project does not carry."""
    folder = os.environ.get("RAYMETA_CRDS")
    if folder is None:
        pytest.skip("no CRDs of KubeRay: set RAYMETA_CRDS to their folder")
    return Path(folder)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "kuberay.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_manifests_match_the_crds(tmp_path: Path, crds: Path) -> None:
    cluster = load_cluster(written(tmp_path, filled_in("kuberay.yaml")), crds=crds)
    assert cluster.warnings == ()
    assert cluster.runs_dir == "/runs"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("  enableInTreeAutoscaling: true", "  enableInTreeAutoscalling: true",
         "is not a known key; did you mean enableInTreeAutoscaling?"),
        ("idleTimeoutSeconds: 300", "idleTimeoutSeconds: 5 min",
         "spec.autoscalerOptions.idleTimeoutSeconds must be a whole number, but got '5 min'"),
        ("upscalingMode: Default", "upscalingMode: Fast",
         "upscalingMode must be Default, Aggressive, Conservative, but got 'Fast'"),
        ('num-cpus: "0"', "num-cpus: 0",
         "RayCluster spec.headGroupSpec.rayStartParams.num-cpus must be text, but got 0"),
        ("      maxReplicas: 8\n", "",
         "RayCluster spec.workerGroupSpecs[0].maxReplicas is required"),
        ("tolerations:", "toleration:",
         "RayCluster spec.workerGroupSpecs[0].template.spec.toleration is not a known key"),
        ("- {name: runs, mountPath: /runs}", "- {name: runs, path: /runs}",
         "containers[0].volumeMounts[0].path is not a known key"),
        ("memory: 8Gi", "memory: 8 GB",
         "containers[0].resources.requests.memory is not allowed: '8 GB' does not match"),
        ("entrypoint: >-\n", "entrypoint:\n  - >-\n",
         "RayJob spec.entrypoint must be text"),
        ("shutdownAfterJobFinishes: true", 'shutdownAfterJobFinishes: "true"',
         "RayJob spec.shutdownAfterJobFinishes must be true or false, but got 'true'"),
    ],
)  # fmt: skip
def test_fields_that_the_crds_refuse_are_named_with_their_path(
    tmp_path: Path, crds: Path, old: str, new: str, told: str
) -> None:
    text = filled_in("kuberay.yaml")
    assert old in text
    with pytest.raises(ClusterError) as caught:
        load_cluster(written(tmp_path, text.replace(old, new, 1)), crds=crds)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{tmp_path / 'kuberay.yaml'}, line ") for line in lines)
    assert any(told in line for line in lines)


def test_without_crds_a_warning_says_that_fields_were_not_checked(tmp_path: Path) -> None:
    text = filled_in("kuberay.yaml").replace("upscalingMode: Default", "upscalingMode: Fast")
    (warning,) = load_cluster(written(tmp_path, text)).warnings
    assert "not checked against the CRDs" in warning


def test_the_manifest_of_a_service_matches_the_crd_of_its_cluster(
    tmp_path: Path, crds: Path
) -> None:
    path = written(tmp_path, filled_in("kuberay-serve.yaml"))
    cluster = load_cluster(path, crds=crds)
    assert cluster.runs_dir == "/runs"
    assert all("no CRD of RayService" in warning for warning in cluster.warnings)
    text = path.read_text().replace("idleTimeoutSeconds: 300", "idleTimeoutSeconds: 5 min")
    with pytest.raises(ClusterError, match=r"rayClusterConfig\.autoscalerOptions\.idleTimeoutS"):
        load_cluster(written(tmp_path, text), crds=crds)


def test_the_application_of_the_manifest_is_one_that_serve_and_raymeta_take() -> None:
    (service,) = (
        manifest
        for manifest in yaml.safe_load_all(filled_in("kuberay-serve.yaml"))
        if manifest["kind"] == "RayService"
    )
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    settings = ServeSettings.model_validate(application.args)
    assert settings.tasks_dir == "/runs/.served-tasks"
    module, _, function = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("replicas: 2\n          tasks", "replicas: 0\n          tasks",
         "spec.serveConfigV2.applications[0].args.replicas must be >= 1, but got 0"),
        ("tasks_kept:", "task_kept:", "args.task_kept is not a known key; did you mean"),
        ("keep_for_s: 3600", "keep_for_s: an hour", "args.keep_for_s must be a number"),
        ("          run: /runs/run\n", "", "args.run is required, but is not given"),
        ("    applications:", "    application:", "applications must be a list of applications"),
        ("{host: 0.0.0.0, port", "{host: 0.0.0.0], port", "serveConfigV2 must be YAML"),
        ("  serveConfigV2: |", "  serveConfig: |", "spec.serveConfigV2 is required"),
        ('num-cpus: "0"', 'num-cpus: "4"', "RayService spec.rayClusterConfig.headGroupSpec"),
        ("authOptions: {mode: token}", "", "rayClusterConfig.authOptions.mode must be token"),
    ],
)  # fmt: skip
def test_mistakes_in_a_service_are_named_with_their_keys(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    text = filled_in("kuberay-serve.yaml")
    assert old in text
    with pytest.raises(ClusterError) as caught:
        load_cluster(written(tmp_path, text.replace(old, new, 1)))
    assert told in str(caught.value)


def test_a_folder_without_crds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="expected the CRDs of RayCluster and RayJob"):
        load_cluster(written(tmp_path, filled_in("kuberay.yaml")), crds=tmp_path / "nowhere")


def test_head_and_workers_share_one_folder_for_runs(tmp_path: Path) -> None:
    text = filled_in("kuberay.yaml").replace(
        "env: *env", "env: [{name: RAYMETA_RUNS_DIR, value: /other}]"
    )
    with pytest.raises(ClusterError, match="RAYMETA_RUNS_DIR alike on head and workers, but got"):
        load_cluster(written(tmp_path, text))


def test_spot_pods_are_recognised_by_their_node_selector(tmp_path: Path) -> None:
    spot = '{cloud.google.com/gke-spot: "true"}'
    edited = rf"\1nodeSelector: {spot}\n\1tolerations:"
    text = re.sub(r"( +)tolerations:", edited, filled_in("kuberay.yaml"), count=1)
    cluster = load_cluster(written(tmp_path, text))
    assert [node.is_spot for node in cluster.nodes] == [False, True]
