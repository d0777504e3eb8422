"""aws.yaml, driven through Ray's provider against a simulated AWS as far as the ssh step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymeta.deploy.files.load import load_cluster
from tests.deploy.cluster_files import ROOT, filled_in, use_laptop

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'raymeta[test]'")
moto = pytest.importorskip("moto", reason="moto is not installed: pip install 'raymeta[test]'")

REGION = "us-west-2"
MINE = "203.0.113.7/32"


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Makes a home for these tests, with keys of an account that does not exist."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.delenv("AWS_PROFILE", raising=False)
        yield use_laptop(tmp_path_factory.mktemp("laptop"), patch)


@pytest.fixture(scope="module")
def account(laptop: Path) -> Iterator[dict[str, str]]:
    """Deploys the template of aws.yaml's head in a simulated account; returns its outputs."""
    from ray.autoscaler._private.aws import config, utils  # noqa: PLC0415

    with moto.mock_aws():
        template = (ROOT / "cluster" / "aws-account.template").read_text(encoding="utf-8")
        stacks = boto3.client("cloudformation", REGION)
        stacks.create_stack(
            StackName="raymeta",
            TemplateBody=template,
            Parameters=[{"ParameterKey": "MyAddresses", "ParameterValue": MINE}],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        outputs = stacks.describe_stacks(StackName="raymeta")["Stacks"][0]["Outputs"]
        yield {output["OutputKey"]: output["OutputValue"] for output in outputs}
    # Ray keeps clients, and answers, of an account that is gone.
    for cached in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
        cached.cache_clear()


@pytest.fixture(scope="module")
def path(account: dict[str, str], laptop: Path) -> Path:
    """Fills in aws.yaml with the account's outputs."""
    image = boto3.client("ec2", REGION).describe_images()["Images"][0]["ImageId"]
    filled = filled_in(
        "aws.yaml",
        FILL_IN_BUCKET=account["Bucket"],
        FILL_IN_SECURITY_GROUP=account["SecurityGroup"],
        FILL_IN_IMAGE=image,
    )
    path = laptop / "aws.yaml"
    path.write_text(filled, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(path: Path) -> dict[str, Any]:
    """Returns the configuration that `ray up` makes of the file before it starts a machine."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider  # noqa: PLC0415
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415

    prepared = prepare_config(yaml.safe_load(path.read_text(encoding="utf-8")))
    validate_config(prepared)
    prepared = AWSNodeProvider.fillout_available_node_types_resources(prepared)
    bootstrapped: dict[str, Any] = AWSNodeProvider.bootstrap_config(prepared)
    return bootstrapped


def launched(config: dict[str, Any], kind: str, count: int) -> list[dict[str, Any]]:
    """Starts machines of a node type by Ray's provider; returns EC2's descriptions."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider  # noqa: PLC0415

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    node_config = {**config.get("head_node", {})} if kind == config["head_node_type"] else {}
    node_config |= config["available_node_types"][kind]["node_config"]
    tags = {"ray-node-type": "worker", "ray-user-node-type": kind}
    made = provider.create_node(node_config, tags, count)
    found = boto3.client("ec2", REGION).describe_instances(InstanceIds=list(made))
    return [machine for group in found["Reservations"] for machine in group["Instances"]]


def profiles() -> set[str]:
    found = boto3.client("iam", REGION).list_instance_profiles()["InstanceProfiles"]
    return {profile["InstanceProfileName"] for profile in found}


@pytest.mark.slow
def test_the_file_is_in_order_with_what_the_account_gave(path: Path) -> None:
    cluster = load_cluster(path)
    assert cluster.warnings == ()
    assert str(cluster.runs_dir).startswith("s3://")


@pytest.mark.slow
def test_ray_makes_no_role_and_no_security_group_of_its_own(config: dict[str, Any]) -> None:
    assert profiles() == {"raymeta-head", "raymeta-worker"}
    groups = boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]
    assert not [group for group in groups if "ray-autoscaler" in group["GroupName"]]
    assert not config["head_node"]


def test_nothing_is_open_to_the_world(config: dict[str, Any], account: dict[str, str]) -> None:
    used = {
        group
        for kind in config["available_node_types"].values()
        for group in kind["node_config"]["SecurityGroupIds"]
    }
    assert used == {account["SecurityGroup"]}
    (group,) = boto3.client("ec2", REGION).describe_security_groups(GroupIds=list(used))[
        "SecurityGroups"
    ]
    rules = group["IpPermissions"]
    ranges = {entry["CidrIp"]: rule["FromPort"] for rule in rules for entry in rule["IpRanges"]}
    assert ranges == {MINE: 22}
    assert not any(rule["Ipv6Ranges"] for rule in rules)
    among = {pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]}
    assert among == used


def test_a_group_that_ray_makes_would_be_open(path: Path) -> None:
    """Ray adds its rule to whatever the file gives: the reason for a group of one's own."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider  # noqa: PLC0415
    from ray.autoscaler._private.util import prepare_config  # noqa: PLC0415

    loose = yaml.safe_load(path.read_text(encoding="utf-8"))
    for kind in loose["available_node_types"].values():
        del kind["node_config"]["SecurityGroupIds"]
    loose["provider"]["security_group"] = {"GroupName": "own", "IpPermissions": []}
    AWSNodeProvider.bootstrap_config(prepare_config(loose))
    groups = boto3.client("ec2", REGION).describe_security_groups()["SecurityGroups"]
    (own,) = [group for group in groups if group["GroupName"] == "own"]
    assert "0.0.0.0/0" in json.dumps(own["IpPermissions"])


def test_ray_makes_a_key_pair_that_only_its_owner_can_read(
    config: dict[str, Any], laptop: Path
) -> None:
    pairs = boto3.client("ec2", REGION).describe_key_pairs()["KeyPairs"]
    names = {kind["node_config"]["KeyName"] for kind in config["available_node_types"].values()}
    assert {pair["KeyName"] for pair in pairs} == names
    key = Path(config["auth"]["ssh_private_key"])
    assert key.parent == laptop / ".ssh"
    assert key.stat().st_mode & 0o777 == 0o600


def test_the_head_is_on_demand_and_its_profile_is_the_heads(config: dict[str, Any]) -> None:
    (head,) = launched(config, "head", 1)
    assert "InstanceLifecycle" not in head
    assert head["InstanceType"] == "m7i.xlarge"
    assert head["IamInstanceProfile"]["Arn"].endswith("/raymeta-head")
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0


def test_workers_are_spot_machines_with_the_workers_profile(
    config: dict[str, Any], account: dict[str, str]
) -> None:
    (worker,) = launched(config, "gpu", 1)
    assert worker["InstanceLifecycle"] == "spot"
    assert worker["InstanceType"] == "g5.xlarge"
    assert worker["IamInstanceProfile"]["Arn"].endswith("/raymeta-worker")
    assert [group["GroupId"] for group in worker["SecurityGroups"]] == [account["SecurityGroup"]]


@pytest.mark.slow
def test_the_stated_resources_of_a_gpu_machine_are_those_ray_finds(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider  # noqa: PLC0415

    stated = dict(config["available_node_types"]["gpu"]["resources"])
    bare = json.loads(json.dumps(config))
    bare["available_node_types"]["gpu"]["resources"] = {}
    found = AWSNodeProvider.fillout_available_node_types_resources(bare)
    found = found["available_node_types"]["gpu"]["resources"]
    assert stated.pop("memory") <= found.pop("memory")
    assert stated == found


def test_ray_down_deletes_the_machines_it_started(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider  # noqa: PLC0415

    head, worker = launched(config, "head", 1), launched(config, "gpu", 1)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    ids = [machine["InstanceId"] for machine in (*head, *worker)]
    found = boto3.client("ec2", REGION).describe_instances(InstanceIds=ids)["Reservations"]
    states = {machine["State"]["Name"] for group in found for machine in group["Instances"]}
    assert states == {"terminated"}


def policies(role: str) -> list[dict[str, Any]]:
    """Returns every statement of a role, its own and the attached ones."""
    iam = boto3.client("iam", REGION)
    documents = [
        iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    for attached in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        arn = attached["PolicyArn"]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        found = iam.get_policy_version(PolicyArn=arn, VersionId=version)
        documents.append(found["PolicyVersion"]["Document"])
    read = [yaml.safe_load(str(document)) for document in documents]  # moto keeps some as text
    return [statement for document in read for statement in document["Statement"]]


def test_roles_have_no_more_rights_than_needed(account: dict[str, str]) -> None:
    statements = {role: policies(role) for role in ("raymeta-head", "raymeta-worker")}
    for statement in statements["raymeta-head"] + statements["raymeta-worker"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
            if statement["Resource"] == "*":
                assert action.startswith("ec2:Describe")
            if action.startswith("s3:"):
                assert account["Bucket"] in statement["Resource"]
            if action in ("ec2:TerminateInstances", "ec2:CreateTags"):
                assert statement["Condition"]
    workers = json.dumps(statements["raymeta-worker"])
    assert "ec2:" not in workers
    assert "iam:" not in workers
    (passed,) = [s for s in statements["raymeta-head"] if s["Action"] == "iam:PassRole"]
    assert passed["Resource"].endswith("role/raymeta-worker")
