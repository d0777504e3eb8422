"""Every shipped cluster file is valid, and each kind of mistake is named with its remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from raymeta.deploy.files import aws, gcp
from raymeta.deploy.files.cluster import Cluster
from raymeta.deploy.files.load import load_cluster
from raymeta.deploy.files.rules import quantity
from raymeta.errors import ClusterError
from tests.deploy.cluster_files import ROOT, filled_in, use_laptop

SHIPPED = {
    "aws.yaml": "aws",
    "azure.yaml": "azure",
    "gcp.yaml": "gcp",
    "kuberay.yaml": "kuberay",
    "kuberay-serve.yaml": "kuberay",
    "onprem.yaml": "local",
    "local.yaml": "external",
    "slurm.sbatch": "slurm",
}


@pytest.fixture(autouse=True)
def _laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_laptop(tmp_path / "home", monkeypatch)


def load(tmp_path: Path, name: str, edit: Callable[[str], str] = str) -> Cluster:
    path = tmp_path / name
    path.write_text(edit(filled_in(name)), encoding="utf-8")
    return load_cluster(path)


def mistakes(tmp_path: Path, name: str, edit: Callable[[str], str] = str) -> list[str]:
    with pytest.raises(ClusterError) as caught:
        load(tmp_path, name, edit)
    return str(caught.value).splitlines()


def test_every_file_is_known_here() -> None:
    folder = ROOT / "cluster"
    assert {path.name for path in (*folder.glob("*.yaml"), *folder.glob("*.sbatch"))} == set(
        SHIPPED
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_in_order(tmp_path: Path, name: str) -> None:
    cluster = load(tmp_path, name)
    assert cluster.provider == SHIPPED[name]
    assert [text for text in cluster.warnings if "CRDs" not in text] == []


@pytest.mark.parametrize("name", ["aws.yaml", "azure.yaml", "gcp.yaml", "kuberay.yaml"])
def test_shipped_clusters_grow_from_none_and_keep_trials_off_the_head(
    tmp_path: Path, name: str
) -> None:
    head, workers = load(tmp_path, name).nodes
    assert head.is_head
    assert head.resources is not None
    assert head.resources["CPU"] == 0
    assert not head.is_spot
    assert (workers.min_workers, workers.max_workers) == (0, 8)
    assert workers.resources is not None
    assert workers.resources["GPU"] == 1
    assert workers.is_spot == (name != "kuberay.yaml")


def test_hosts_behind_ssh_have_resources_that_only_they_know(tmp_path: Path) -> None:
    cluster = load(tmp_path, "onprem.yaml")
    assert [(node.is_head, node.resources) for node in cluster.nodes] == [
        (True, {"CPU": 0.0}),
        (False, None),
    ]
    assert cluster.nodes[1].max_workers == 2
    assert cluster.runs_dir == "/srv/runs"


def test_a_batch_script_tells_what_each_node_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYMETA_RUNS_DIR", raising=False)

    def edit(text: str) -> str:
        text = text.replace("##SBATCH --gpus-per-node=4", "#SBATCH --gpus-per-node=a100:4")
        return text.replace("##SBATCH --mem=0", "#SBATCH --mem=64G")

    cluster = load(tmp_path, "slurm.sbatch", edit)
    head, node = cluster.nodes
    assert (head.is_head, head.resources) == (True, {"CPU": 0})
    assert node.resources == {"CPU": 2, "GPU": 4, "memory": 64e9}
    assert (node.min_workers, node.max_workers) == (2, 2)
    assert cluster.runs_dir == str(Path.home() / "runs")
    monkeypatch.setenv("RAYMETA_RUNS_DIR", "/scratch/runs")
    assert load(tmp_path, "slurm.sbatch", edit).runs_dir == "/scratch/runs"


@pytest.mark.parametrize("name", ["aws.yaml", "azure.yaml", "gcp.yaml", "kuberay.yaml"])
def test_each_placeholder_is_reported_once_with_its_meaning(name: str) -> None:
    path = Path("cluster", name)
    with pytest.raises(ClusterError) as caught:
        load_cluster(path)
    lines = str(caught.value).splitlines()
    marked = set(re.findall(r"FILL_IN_\w+", path.read_text(encoding="utf-8")))
    assert len(lines) == len(marked)
    for placeholder in marked:
        (line,) = [line for line in lines if f"{placeholder!r}" in line]
        assert re.match(rf"{path}, line \d+: ", line)
        assert "is still to be filled in" in line
        assert "what belongs there" not in line


OPEN_GROUP = "  security_group: {IpPermissions: [{IpRanges: [{CidrIp: 0.0.0.0/0}]}]}\n"
# File, what is there, what a user has made of it, the key, and what the message must say of it.
MISTAKES = [
    # -- YAML and keys
    ("aws.yaml", "max_workers: 8\nup", "max_workers: 8\nmax_workers: 9\nup", "max_workers",
     "is given twice; remove one"),
    ("aws.yaml", "idle_timeout_minutes", "idle_timeout_minuts", "idle_timeout_minuts",
     "did you mean idle_timeout_minutes?; correct or remove it"),
    ("azure.yaml", "max_workers: 8\nup", "max_workers: many\nup", "max_workers",
     "must be a whole number, but got 'many'"),
    ("gcp.yaml", "idle_timeout_minutes: 5", "idle_timeout_minutes: -5", "idle_timeout_minutes",
     "must be >= 0, but got -5; raise it"),
    ("gcp.yaml", "type: gcp", "type: gpc", "provider.type", "did you mean gcp?"),
    ("gcp.yaml", "  availability_zone:", "  avalability_zone:", "provider.avalability_zone",
     "did you mean availability_zone?"),
    ("azure.yaml", "  location: westus2\n", "", "provider.location", "is required"),
    ("azure.yaml", "initialization_commands: []\n", "", "initialization_commands",
     "write [] for none: left out, Ray fills in its own"),
    # -- nodes
    ("aws.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type",
     "must be one of available_node_types (head, gpu); did you mean head?"),
    ("aws.yaml", "min_workers: 0\n    max_workers: 8", "min_workers: 8\n    max_workers: 4",
     "available_node_types.gpu.max_workers", "must be >= min_workers (8), but got 4; raise it"),
    ("gcp.yaml", "max_workers: 8\nup", "max_workers: 1\nup", "max_workers",
     "must be >= the sum of all min_workers (2), but got 1"),
    ("aws.yaml", "resources: {CPU: 0}", "resources: {CPU: 4}",
     "available_node_types.head.resources.CPU", "must be 0 on the head, but got 4; set CPU: 0"),
    ("gcp.yaml", "resources: {CPU: 8, GPU: 1,", "resources: {GPU: 1,",
     "available_node_types.gpu.resources.CPU", "is required for workers"),
    ("gcp.yaml", "resources: {CPU: 8,", "resources: {CPU: 7.5,",
     "available_node_types.gpu.resources.CPU", "must be a whole number, but got 7.5"),
    ("gcp.yaml", "resources: {CPU: 0}", "resources: {CPU: 0, GPU: 1}",
     "available_node_types.head.resources.GPU", "must be 0 on the head, but got 1; remove it"),
    ("azure.yaml", "max_workers: 8\nup", "up", "max_workers", "say how many workers there may be"),
    # -- machines
    ("aws.yaml", "InstanceType: g5.xlarge", "InstanceType: g5.xlage",
     "available_node_types.gpu.node_config.InstanceType", "did you mean g5.xlarge?"),
    ("aws.yaml", "SpotInstanceType: one-time", "SpotInstanceTyp: one-time",
     "available_node_types.gpu.node_config.InstanceMarketOptions.SpotOptions.SpotInstanceTyp",
     "did you mean SpotInstanceType?"),
    ("aws.yaml", "SecurityGroupIds: [security-group]", "SecurityGroupIds: security-group",
     "available_node_types.head.node_config.SecurityGroupIds",
     "must be a list, but got 'security-group'"),
    ("gcp.yaml", "provisioningModel: SPOT", "provisioningModel: CHEAP",
     "available_node_types.gpu.node_config.scheduling.provisioningModel", "must be FLEX_START"),
    ("gcp.yaml", "scheduling:\n        prov", "schedulling:\n        prov",
     "available_node_types.gpu.node_config.schedulling", "did you mean scheduling?"),
    ("azure.yaml", "vmSize: Standard_NC8as_T4_v3", "vmsize: Standard_NC8as_T4_v3",
     "available_node_types.gpu.node_config.azure_arm_parameters.vmsize", "did you mean vmSize?"),
    ("azure.yaml", "priority: Spot", "priority: Sopt",
     "available_node_types.gpu.node_config.azure_arm_parameters.priority", "did you mean Spot?"),
    ("azure.yaml", "imageVersion: image-version\n        osDiskSize: 128\n\n",
     "imageVersion: latest\n        osDiskSize: 128\n\n",
     "available_node_types.head.node_config.azure_arm_parameters.imageVersion",
     "must name a fixed version, but got 'latest'; see `az vm image list`"),
    ("azure.yaml", '        imageSku: "2404"\n', "",
     "available_node_types.head.node_config.azure_arm_parameters.imageSku",
     "is required without an imageId"),
    # -- who may come in, and what nodes may do
    ("aws.yaml", "      IamInstanceProfile: {Name: raymeta-head}\n", "",
     "available_node_types.head.node_config.IamInstanceProfile",
     "the role that Ray makes may do anything in EC2 and S3"),
    ("aws.yaml", "SecurityGroupIds: [security-group]\n      Metadata",
     "Metadata", "available_node_types.head.node_config.SecurityGroupIds", "name your own group"),
    ("aws.yaml", "  cache_stopped_nodes: false\n", f"  cache_stopped_nodes: false\n{OPEN_GROUP}",
     "provider.security_group.IpPermissions[0].IpRanges[0].CidrIp",
     "must not be open to the world, but got '0.0.0.0/0'; name your own address range"),
    ("gcp.yaml", "email: raymeta-worker@", "email: 123-compute@developer.gserviceaccount.com #",
     "available_node_types.gpu.node_config.serviceAccounts[0].email", "must not be a default"),
    ("gcp.yaml", "auth/compute", "auth/cloud-platform",
     "available_node_types.head.node_config.serviceAccounts[0].scopes", "must be narrow"),
    ("azure.yaml", "use_internal_ips: true", "use_internal_ips: false",
     "provider.use_internal_ips", "must keep workers off the internet, but got False"),
    ("aws.yaml", "cache_stopped_nodes: false", "cache_stopped_nodes: true",
     "provider.cache_stopped_nodes", "stopped machines go on costing their disks"),
    ("aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0",
     "head_start_ray_commands", "(--dashboard-host), but got '0.0.0.0'; set it to 127.0.0.1"),
    # -- commands and files
    ("azure.yaml", "--address=$RAY_HEAD_IP:6379", "--address=$RAY_HEAD_IP:6380",
     "worker_start_ray_commands", "must join the head at its port 6379 (--address)"),
    ("gcp.yaml", "--object-manager-port=8076 --num-cpus=0", "--object-manager-port=6379",
     "head_start_ray_commands", "must give --object-manager-port another port than --port"),
    ("gcp.yaml", " --autoscaling-config=~/ray_bootstrap_config.yaml", "",
     "head_start_ray_commands", "or no worker is started"),
    ("aws.yaml", "ulimit -n $(ulimit -Hn) &&\n    ray start --address",
     "ulimit -n '$(ulimit -Hn) &&\n    ray start --address", "worker_start_ray_commands",
     "must be valid shell"),
    ("azure.yaml", "ray start --head", "ray start", "head_start_ray_commands",
     "must start the head; add --head to `ray start`"),
    ("aws.yaml", "    ray start --address", "    ray strat --address",
     "worker_start_ray_commands", "must start Ray"),
    ("aws.yaml", "  ~/.ray/auth_token: ~/.ray/auth_token", "  ~/.ray/auth_token: ~/auth_token",
     "file_mounts.~/.ray/auth_token", "make the token: ray get-auth-token --generate"),
    ("gcp.yaml", "  ~/raymeta: .\n", "  ~/raymeta: nowhere\n", "file_mounts.~/raymeta",
     "must be there on this machine, but got 'nowhere'"),
    ("gcp.yaml", "  ssh_user: ubuntu\n", "  {}\n", "auth.ssh_user", "is required"),
    ("aws.yaml", "rsync_filter:",
     "docker: {image: 'raymeta:latest', container_name: ray}\nrsync_filter:", "docker.image",
     "add a tag other than latest"),
    # -- your own hosts
    ("onprem.yaml", "ssh_private_key: ~/.ssh/id_ed25519", "ssh_private_key: ~/.ssh/id",
     "auth.ssh_private_key", "must be a file that exists, but got '~/.ssh/id'"),
    ("onprem.yaml", "worker_ips: [10.0.0.11, 10.0.0.12]", "worker_ips: [10.0.0.11, 10.0.0.10]",
     "provider.worker_ips", "must name each host once, and not the head, but got '10.0.0.10'"),
    ("onprem.yaml", "cluster_name: raymeta\n", "cluster_name: raymeta\nmax_workers: 3\n",
     "max_workers", "must be <= the number of provider.worker_ips (2), but got 3"),
    ("onprem.yaml", "cluster_name: raymeta\n",
     "cluster_name: raymeta\nmin_workers: 2\nmax_workers: 1\n", "max_workers",
     "must be >= min_workers (2), but got 1"),
    ("onprem.yaml", "--num-cpus=0 ", "", "head_start_ray_commands", "add --num-cpus=0"),
    ("onprem.yaml", "cluster_name: raymeta\n",
     "cluster_name: raymeta\navailable_node_types: {a: {resources: {}, node_config: {}}}\n",
     "available_node_types", "is refused by Ray on your own hosts"),
    ("onprem.yaml", "    RAY_enable_autoscaler_v2=0\n", "", "head_start_ray_commands",
     "must set RAY_enable_autoscaler_v2=0 before `ray start`"),
    ("onprem.yaml", "  head_ip: 10.0.0.10\n", "", "provider.head_ip", "is required"),
    # -- Slurm
    ("slurm.sbatch", "#SBATCH --nodes=2", "#SBATCH --nodes=1", "#SBATCH nodes",
     "must be >= 2, but got '1'; raise it: one node runs the head, the others run trials"),
    ("slurm.sbatch", "#SBATCH --nodes=2\n", "", "#SBATCH nodes", "is required"),
    ("slurm.sbatch", "--ntasks-per-node=1", "--ntasks-per-node=4", "#SBATCH ntasks-per-node",
     "must be 1, but got '4'; set it to 1: Ray is started once on every node"),
    ("slurm.sbatch", "--cpus-per-task=2", "--cpus-per-task=all", "#SBATCH cpus-per-task",
     "must be >= 1, but got 'all'"),
    ("slurm.sbatch", "#SBATCH --requeue", "#SBATCH --requeu", "#SBATCH requeu",
     "did you mean requeue?"),
    ("slurm.sbatch", "#SBATCH --requeue\n", "#SBATCH --export=NONE\n", "#SBATCH export",
     "or srun starts Ray without the exported variables"),
    ("slurm.sbatch", "set -euo pipefail\n", "set -euo pipefail\n#SBATCH --mem=0\n", "#SBATCH mem",
     "comes too late; move it above the first command"),
    ("slurm.sbatch", "export RAY_AUTH_MODE=token\n", "", "RAY_AUTH_MODE",
     "must be exported as token; export it before Ray starts"),
    ("slurm.sbatch", "export RAYMETA_RUNS_DIR=", "runs=", "RAYMETA_RUNS_DIR", "must be exported"),
    ("slurm.sbatch", "#!/bin/bash\n", "", "#!", "is required, but is not given; begin with #!"),
    ("slurm.sbatch", "--num-cpus=0 --num-gpus=0", "--num-cpus=2", "ray start --head",
     "must keep trials off the head, but got '2'; add --num-cpus=0"),
    ("slurm.sbatch", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "ray start --head",
     "must bind the dashboard to loopback (--dashboard-host), but got '0.0.0.0'"),
    # -- KubeRay
    ("kuberay.yaml", "kind: RayCluster", "kind: RayClutser", "kind", "did you mean RayCluster?"),
    ("kuberay.yaml", "apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1",
     "RayCluster apiVersion", "must be ray.io/v1, but got 'ray.io/v1alpha1'"),
    ("kuberay.yaml", 'num-cpus: "0"', 'num-cpus: "4"',
     "RayCluster spec.headGroupSpec.rayStartParams.num-cpus", "must be \"0\", but got '4'"),
    ("kuberay.yaml", "rayStartParams: {}", "rayStartParams: {memory: 16Gi}",
     "RayCluster spec.workerGroupSpecs[0].rayStartParams.memory", "must be a number"),
    ("kuberay.yaml", 'rayVersion: "2.60.0"', 'rayVersion: "2.9.0"', "RayCluster spec.rayVersion",
     "must be the version that raymeta is tested with (2.60.0), but got '2.9.0'"),
    ("kuberay.yaml", "image: registry.example.org/raymeta:0.1.0", "image: registry/raymeta",
     "RayCluster spec.headGroupSpec.template.spec.containers[0].image",
     "must name a fixed version, but got 'registry/raymeta'"),
    ("kuberay.yaml", "maxReplicas: 8", "maxReplicas: 0",
     "RayCluster spec.workerGroupSpecs[0].maxReplicas", "must be >= minReplicas (0) and >= 1"),
    ("kuberay.yaml", "replicas: 0\n", "replicas: 9\n",
     "RayCluster spec.workerGroupSpecs[0].replicas",
     "must be from minReplicas to maxReplicas (0 to 8), but got 9"),
    ("kuberay.yaml", "mode: token", "mode: disabled", "RayCluster spec.authOptions.mode",
     "must be token, but got 'disabled'"),
    ("kuberay.yaml", 'dashboard-host: "127.0.0.1"', 'dashboard-host: "0.0.0.0"',
     "RayCluster spec.headGroupSpec.rayStartParams.dashboard-host", "must be loopback"),
    ("kuberay.yaml", "env: *env", "env: []",
     "RayCluster spec.workerGroupSpecs[0].template.spec.containers[0].env",
     "must set RAYMETA_RUNS_DIR; add RAYMETA_RUNS_DIR to it"),
    ("kuberay.yaml", "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false",
     "RayCluster spec.enableInTreeAutoscaling", "or no worker is ever added"),
    ("kuberay.yaml", 'limits: {cpu: "4", memory: 16Gi}', 'limits: {cpu: "4"}',
     "RayCluster spec.headGroupSpec.template.spec.containers[0].resources.limits.memory",
     "is required"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "key", "told"), MISTAKES)
def test_mistakes_are_named_with_place_and_remedy(
    tmp_path: Path, name: str, old: str, new: str, key: str, told: str
) -> None:
    def edit(text: str) -> str:
        assert old in text
        if told.startswith("must be >= the sum"):
            text = text.replace(
                "min_workers: 0\n    max_workers: 8", "min_workers: 2\n    max_workers: 8"
            )
        return text.replace(old, new, 1)

    (line,) = mistakes(tmp_path, name, edit)
    place, message = re.fullmatch(r"(.*?): (.*)", line).groups()  # type: ignore[union-attr]
    assert re.fullmatch(rf"{tmp_path / name}, line \d+", place) or re.search(
        "is required|must be exported", message
    )
    assert message.startswith((f"{key} ", f"RayClutser {key} "))
    assert told in message
    assert re.search(r"; \S", message)


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    def edit(text: str) -> str:
        for old, new in (
            ("upscaling_speed: 1.0", "upscaling_speed: fast"),
            ("resources: {CPU: 0}", "resources: {CPU: 1}"),
            ("MarketType: spot", "MarketType: cheap"),
            ("--dashboard-port=8265", "--dashboard-port=826599"),
        ):
            assert old in text
            text = text.replace(old, new)
        return text

    found = mistakes(tmp_path, "aws.yaml", edit)
    keys = [re.search(r": (\S+) ", line)[1] for line in found]  # type: ignore[index]
    assert [key.rpartition(".")[2] for key in keys] == [
        "upscaling_speed",
        "CPU",
        "MarketType",
        "head_start_ray_commands",
    ]
    numbers = [int(re.search(r"line (\d+)", line)[1]) for line in found]  # type: ignore[index]
    text = (tmp_path / "aws.yaml").read_text().splitlines()
    assert "upscaling_speed: fast" in text[numbers[0] - 1]
    assert "{CPU: 1}" in text[numbers[1] - 1]
    assert "MarketType: cheap" in text[numbers[2] - 1]


@pytest.mark.parametrize("side", ["head", "worker"])
@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("RAY_AUTH_MODE=token", "or whoever reaches a port may run code"),
        ("RAYMETA_RUNS_DIR=s3://bucket/runs?region=us-west-2", "a storage that all nodes share"),
    ],
)
def test_each_start_must_see_the_variables_of_its_own_shell(
    tmp_path: Path, side: str, variable: str, told: str
) -> None:
    """An export in another command of the list belongs to another shell."""

    def edit(text: str) -> str:
        text = text.replace(f"    export {variable}\n", "")
        for start, kind in (("ray start --head", "head"), ("ray start --address", "worker")):
            if kind != side:
                text = text.replace(f"    {start}", f"    export {variable} && {start}")
        return text.replace(
            f"{side}_start_ray_commands:\n", f"{side}_start_ray_commands:\n  - export {variable}\n"
        )

    (line,) = mistakes(tmp_path, "aws.yaml", edit)
    assert f"{side}_start_ray_commands must set {variable.partition('=')[0]}" in line
    assert told in line


@pytest.mark.parametrize(
    ("before", "seen"),
    [
        ("export RAY_AUTH_MODE=token &&", True),
        ("RAY_AUTH_MODE=token; export RAY_AUTH_MODE;", True),
        ("RAY_AUTH_MODE=token", True),
        ("RAY_AUTH_MODE=token &&", False),
        ("echo RAY_AUTH_MODE=token &&", False),
    ],
)
def test_only_variables_that_ray_start_inherits_count(
    tmp_path: Path, before: str, seen: bool
) -> None:
    def edit(text: str) -> str:
        text = text.replace("    export RAY_AUTH_MODE=token\n", "")
        return text.replace("    ray start", f"    {before} ray start")

    if seen:
        load(tmp_path, "gcp.yaml", edit)
    else:
        assert all(
            "must set RAY_AUTH_MODE" in line for line in mistakes(tmp_path, "gcp.yaml", edit)
        )


def test_runs_must_be_kept_in_the_same_place_by_all_nodes(tmp_path: Path) -> None:
    def edit(text: str) -> str:
        return text.replace(
            "    ray start --address",
            "    export RAYMETA_RUNS_DIR=/mnt/runs && ray start --address",
        )

    (line,) = mistakes(tmp_path, "azure.yaml", edit)
    assert (
        "worker_start_ray_commands must set RAYMETA_RUNS_DIR as head_start_ray_commands does"
        in line
    )


def test_a_relative_folder_for_runs_is_another_on_every_node(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path, "onprem.yaml", lambda text: text.replace("RUNS_DIR=/srv/runs", "RUNS_DIR=runs")
    )
    assert all(
        "must set RAYMETA_RUNS_DIR to a full path or a URI, but got 'runs'" in f for f in found
    )


NODES_ON_ONE_MACHINE = """
cluster_name: local
max_workers: 2
provider: {type: external, module: raymeta.deploy.local_nodes.LocalNodes}
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, node_config: {}, max_workers: 0}
  worker: {resources: {CPU: 1, GPU: 1}, node_config: {}, min_workers: 1, max_workers: 2}
auth: {}
docker: {}
file_mounts: {}
cluster_synced_files: []
file_mounts_sync_continuously: false
rsync_exclude: []
rsync_filter: []
initialization_commands: []
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands: []
worker_start_ray_commands: []
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("max_workers: 2\nprov", "max_workers: 0\nprov", "max_workers must be >= the sum of all"),
        ("CPU: 0", "CPU: 1", "available_node_types.head.resources.CPU must be 0 on the head"),
        ("CPU: 1, GPU: 1", "GPU: 1", "available_node_types.worker.resources.CPU is required for"),
        ("_type: head", "_type: haed", "head_node_type must be one of available_node_types"),
        ("LocalNodes}", "LocalNodes, head_ip: a}", "provider.head_ip is not a key that Ray's"),
        ("LocalNodes}", "LocalNode}", "must be raymeta.deploy.local_nodes.LocalNodes; did"),
        (", module: raymeta.deploy.local_nodes.LocalNodes", "", "provider.module is required, but"),
    ],
)
def test_files_for_several_nodes_on_one_machine_are_checked(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    path = tmp_path / "local.yaml"
    path.write_text(NODES_ON_ONE_MACHINE)
    head, worker = load_cluster(path).nodes
    assert (head.resources, worker.resources) == ({"CPU": 0}, {"CPU": 1, "GPU": 1})
    assert (worker.min_workers, worker.max_workers) == (1, 2)
    assert old in NODES_ON_ONE_MACHINE
    path.write_text(NODES_ON_ONE_MACHINE.replace(old, new))
    with pytest.raises(ClusterError) as caught:
        load_cluster(path)
    (line,) = str(caught.value).splitlines()
    assert told in line


def test_a_cloud_needs_node_types(tmp_path: Path) -> None:
    def edit(text: str) -> str:
        return re.sub(
            r"\navailable_node_types:.*?\nfile_mounts:", "\nfile_mounts:", text, flags=re.DOTALL
        )

    (line,) = mistakes(tmp_path, "gcp.yaml", edit)
    assert "available_node_types is required, but is not given; describe the head and" in line


def test_a_placeholder_for_the_ssh_key_is_a_warning(tmp_path: Path) -> None:
    cluster = load(
        tmp_path, "onprem.yaml", lambda text: text.replace("~/.ssh/id_ed25519", "<your key>")
    )
    (warning,) = cluster.warnings
    assert "auth.ssh_private_key is still to be filled in, but got '<your key>'" in warning


def test_a_key_of_your_own_needs_its_name_in_every_node(tmp_path: Path) -> None:
    key = "  ssh_user: ubuntu\n  ssh_private_key: ~/.ssh/id_ed25519\n"
    found = mistakes(tmp_path, "aws.yaml", lambda t: t.replace("  ssh_user: ubuntu\n", key))
    assert len(found) == 2
    assert all("node_config.KeyName is required" in line for line in found)
    (line,) = mistakes(tmp_path, "azure.yaml", lambda t: t.replace("  ssh_user: ubuntu\n", key))
    assert "auth.ssh_public_key is required beside its other half" in line


def test_without_googles_client_the_fields_that_ray_reads_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(gcp, "package_file", lambda *_: None)
    gcp.node_schema.cache_clear()
    request.addfinalizer(gcp.node_schema.cache_clear)
    assert load(tmp_path, "gcp.yaml").provider == "gcp"
    (line,) = mistakes(
        tmp_path, "gcp.yaml", lambda t: t.replace("disks: *disks", "disks: {boot: true}")
    )
    assert "node_config.disks must be a list" in line


def test_versions_are_those_of_the_constraints() -> None:
    pin = re.compile(r"([A-Za-z][\w-]*)(?:\[[\w,]+\])?==([\w.]+)")
    pinned = dict(pin.findall((ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8")))
    for path in (ROOT / "cluster").iterdir():
        for name, version in pin.findall(path.read_text(encoding="utf-8")):
            assert pinned.get(name, version) == version, (path, name)
    image = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    assert f"torch=={pinned['torch']}" in image
    assert f"ray[default,serve,tune]=={pinned['ray']}" in image


def test_without_botocore_the_rest_is_checked_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(aws, "package_file", lambda *_: None)
    aws.node_schema.cache_clear()
    request.addfinalizer(aws.node_schema.cache_clear)
    (warning,) = load(tmp_path, "aws.yaml").warnings
    assert "available_node_types was not looked into; pip install boto3 for that" in warning
    (line,) = mistakes(tmp_path, "aws.yaml", lambda t: t.replace("{CPU: 0}", "{CPU: 2}"))
    assert "must be 0 on the head" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2\n", "line 2: not valid YAML"),
        ("a: &x [*x]\n", "not valid YAML: an alias holds itself"),
        ("- 1\n", "expected one mapping of keys"),
        ("", "expected one mapping of keys"),
        ("cluster_name: a\n", "provider is required"),
        ("cluster_name: a\nprovider: aws\n", "provider must be a mapping, but got 'aws'"),
        ("cluster_name: a\nprovider: {type: [1]}\n", "provider.type must be text, but got [1]"),
        ("1: a\n", "1 is not a known key"),
        ("apiVersion: v1\nkind: Secret\n", "no RayCluster, RayJob or RayService in it"),
        ("apiVersion: ray.io/v1\nkind: RayCluster\n",
         "RayCluster spec.workerGroupSpecs is required"),
        ("apiVersion: ray.io/v1\nkind: RayCluster\nspec: {workerGroupSpecs: [1, {template: 1}]}\n",
         "RayCluster spec.workerGroupSpecs[1].maxReplicas must be"),
    ],
)  # fmt: skip
def test_files_that_are_no_cluster_files_are_refused_with_the_reason(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError) as caught:
        load_cluster(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("kuberay.yaml", "kind: RayCluster", "kind: {a: 1}", "kind must be one of RayCluster"),
        ("kuberay.yaml", "maxReplicas: 8", "maxReplicas: [8]", "must be a whole number"),
        ("kuberay.yaml", "minReplicas: 0", "minReplicas: {}", "must be a whole number"),
        ("kuberay.yaml", "env: *env", "env: 3", "must be a list, but got 3"),
        ("kuberay.yaml", 'limits: {cpu: "4"', "limits: [1] #", "must be a mapping, but got [1]"),
        ("kuberay.yaml", 'num-cpus: "0"', 'num-cpus: "1.2.3"', "must be a number"),
        ("onprem.yaml", "10.0.0.11, 10.0.0.12", "[10.0.0.11]", "must be text, but got"),
        ("onprem.yaml", "~/.ssh/id_ed25519", "[a]", "ssh_private_key must be text, but got"),
        ("onprem.yaml", "~/.ssh/id_ed25519", "~nobody/x", "must be a file that exists"),
        ("aws.yaml", "max_workers: 8\nup", "max_workers: .nan\nup", "must be a finite number"),
        ("aws.yaml", "CPU: 4", "CPU: .inf", "must be a finite number"),
        ("aws.yaml", "idle_timeout_minutes: 5", "idle_timeout_minutes: 1" + "0" * 99, "64 bits"),
        ("gcp.yaml", "cluster_name: raymeta", "cluster_name: 2020-01-01", "must not be a date"),
        ("azure.yaml", "--port=6379", "--port=" + "9" * 5000, "a port from 1 to 65535"),
        ("azure.yaml", "--port=6379", "--port=²", "a port from 1 to 65535"),
        ("slurm.sbatch", "--nodes=2", "--nodes=²", "must be >= 2"),
        ("slurm.sbatch", "--nodes=2", "--nodes=" + "9" * 5000, "must be >= 2"),
        ("slurm.sbatch", "##SBATCH --gpus-per-node=4", "#SBATCH --gpus-per-node=a100",
         "must be a count, or TYPE:COUNT, but got 'a100'"),
        ("slurm.sbatch", "##SBATCH --mem=0", "#SBATCH --mem=64X", "must be a number with K, M"),
        ("slurm.sbatch", "--num-cpus=0 --num", "--num-cpus='0 --num", "must be valid shell"),
    ],
)  # fmt: skip
def test_values_of_wrong_types_are_refused_with_the_reason(
    tmp_path: Path, name: str, old: str, new: str, told: str
) -> None:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    assert any(told in line for line in mistakes(tmp_path, name, edit))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_cluster(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("amount", "number"), [("500m", 0.5), ("4", 4), ("16Gi", 16 * 1024**3), ("2G", 2e9), (3, 3)]
)
def test_quantities_of_kubernetes_become_numbers(amount: object, number: float) -> None:
    assert quantity(amount) == number
