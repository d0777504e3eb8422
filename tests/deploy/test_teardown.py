from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raymeta.cli import app
from raymeta.deploy.files.load import load_cluster
from raymeta.deploy.teardown import tear_down
from raymeta.errors import ClusterError
from tests.deploy.cluster_files import ROOT, filled_in, use_laptop

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'raymeta[test]'")

REGION = "us-west-2"


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_laptop(tmp_path / "home", monkeypatch)


@pytest.fixture
def account(s3: str, laptop: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """Returns aws.yaml of an account in another process, and a client that asks it for machines."""
    assert laptop.is_dir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    stacks = boto3.client("cloudformation", REGION, endpoint_url=s3)
    stacks.create_stack(
        StackName="raymeta",
        TemplateBody=(ROOT / "cluster" / "aws-account.template").read_text(encoding="utf-8"),
        Parameters=[{"ParameterKey": "MyAddresses", "ParameterValue": "203.0.113.7/32"}],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    outputs = stacks.describe_stacks(StackName="raymeta")["Stacks"][0]["Outputs"]
    given = {output["OutputKey"]: output["OutputValue"] for output in outputs}
    ec2 = boto3.client("ec2", REGION, endpoint_url=s3)
    path = laptop / "aws.yaml"
    filled = filled_in(
        "aws.yaml",
        FILL_IN_BUCKET=given["Bucket"],
        FILL_IN_SECURITY_GROUP=given["SecurityGroup"],
        FILL_IN_IMAGE=ec2.describe_images()["Images"][0]["ImageId"],
    )
    path.write_text(filled, encoding="utf-8")
    return path, ec2


def start_machine(ec2: Any, cluster: str) -> str:
    tags = {"ray-cluster-name": cluster, "ray-node-type": "worker", "ray-user-node-type": "gpu"}
    made = ec2.run_instances(
        ImageId=ec2.describe_images()["Images"][0]["ImageId"],
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            }
        ],
    )
    return str(made["Instances"][0]["InstanceId"])


def state(ec2: Any, machine: str) -> str:
    found = ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]
    return str(found["State"]["Name"])


@pytest.mark.slow
def test_the_machines_of_a_cluster_in_a_cloud_are_deleted_and_no_others(
    account: tuple[Path, Any],
) -> None:
    path, ec2 = account
    mine, other = start_machine(ec2, "raymeta"), start_machine(ec2, "somebody-elses")
    kept = CliRunner().invoke(app, ["down", str(path)], input="n\n")
    assert kept.exit_code == 1
    assert state(ec2, mine) == "running"
    done = CliRunner().invoke(app, ["down", "--yes", str(path)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert (state(ec2, mine), state(ec2, other)) == ("terminated", "running")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("local.yaml", "ray stop"),
        ("kuberay.yaml", "kubectl delete -f"),
        ("slurm.sbatch", "scancel"),
    ],
)
def test_other_clusters_are_refused_with_what_ends_them(
    name: str, remedy: str, laptop: Path
) -> None:
    path = laptop / name
    path.write_text(filled_in(name), encoding="utf-8")
    with pytest.raises(ClusterError, match=remedy):
        tear_down(load_cluster(path))


@pytest.mark.slow
def test_a_head_that_cannot_be_reached_is_an_error_of_one_line(laptop: Path) -> None:
    path = laptop / "onprem.yaml"
    text = filled_in("onprem.yaml").replace("10.0.0.10", "127.0.0.1")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ClusterError, match="`ray exec` failed") as caught:
        tear_down(load_cluster(path))
    assert "\n" not in str(caught.value)
