"""Reads cluster files and checks all that can be checked before a machine is paid for.

All mistakes are reported at once, with file, line and key. To add a kind of cluster, write a module
with a `PROVIDER` and register it here; `tests/deploy/files/test_providers.py` holds it to the
contract.
"""

from __future__ import annotations

from pathlib import Path

from raymeta.deploy.files import aws, azure, gcp, hosts, kuberay, launcher, one_machine, slurm
from raymeta.deploy.files.cluster import Cluster, ClusterFile, Provider, read_text

# Tried in this order; Slurm's scripts are no YAML.
PROVIDERS: dict[str, Provider] = {
    provider.name: provider
    for provider in (
        slurm.PROVIDER,
        kuberay.PROVIDER,
        aws.PROVIDER,
        gcp.PROVIDER,
        azure.PROVIDER,
        hosts.PROVIDER,
        one_machine.PROVIDER,
    )
}


def load_cluster(path: Path, *, crds: Path | None = None) -> Cluster:
    """Reads and checks a cluster file.

    Args:
        path: a file of Ray's cluster launcher, a KubeRay manifest or a batch script for Slurm.
        crds: a folder with KubeRay's CustomResourceDefinitions, to check manifests against.

    Raises:
        ClusterError: naming file, line, key, rule, value and remedy of everything that is wrong.
    """
    file = ClusterFile(path, read_text(path), crds)
    provider = next((p for p in PROVIDERS.values() if p.serves(file)), None)
    if provider is None:
        launcher.refuse(file, [p.name for p in PROVIDERS.values() if p.is_launched])
    return provider.read(file)
