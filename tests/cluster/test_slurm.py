"""`cluster/slurm.sbatch` under a real Slurm on test hosts: a controller and two nodes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymeta.run_folder import Run
from raymeta.search.results import read_trials, trial_folders
from tests.cluster.conftest import ENVIRONMENT
from tests.cluster.hosts import REPOSITORY, SHARED, Hosts, wait_until
from tests.cluster.onprem import EXPERIMENT

TOOLS = ("slurmctld", "slurmd", "sbatch", "munged")
TIMEOUT_S = 300
SETTINGS = """
ClusterName=test
SlurmctldHost=node1
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/run/slurm/state
SlurmdSpoolDir=/run/slurm/spool
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/run/slurm/slurmctld.log
SlurmdLogFile=/run/slurm/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName=node2,node3 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=node2,node3 Default=YES MaxTime=INFINITE State=UP
"""
# Slurm looks for control groups even where it is to use none.
CGROUPS = (
    "umount -l /sys/fs/cgroup 2>/dev/null; mount -t tmpfs tmpfs /sys/fs/cgroup && "
    "mkdir /sys/fs/cgroup/freezer && mount -t cgroup -o freezer freezer /sys/fs/cgroup/freezer"
)
MUNGE = (
    "install -d -m 755 /run/munge && install -m 600 {work}/munge.key /run/munge/key && "
    "munged --force --key-file=/run/munge/key --socket=/run/munge/munge.socket.2 "
    "--pid-file=/run/munge/pid --log-file=/run/munge/log --seed-file=/run/munge/seed"
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
    if any(shutil.which(tool, path=path) is None for tool in TOOLS):
        pytest.skip("needs the packages slurm-wlm munge")
    work = tmp_path_factory.mktemp("slurm")
    environment = {**ENVIRONMENT, "SLURM_CONF": str(work / "slurm.conf")}
    with Hosts(3, work, environment=environment) as hosts:
        (work / "slurm.conf").write_text(SETTINGS)
        (work / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n"
        )
        (work / "munge.key").write_bytes(bytes(range(256)) * 4)
        for host in hosts:
            host.run(CGROUPS)
            host.run(f"mkdir -p /run/slurm/state ~/env && ln -s {sys.prefix}/bin ~/env/bin")
            host.run(MUNGE.format(work=work))
        hosts[0].run("slurmctld")
        for node in hosts.hosts[1:]:
            node.run(f"slurmd -N {node.name}")
        wait_until(
            lambda: hosts[0].run("sinfo -h -o '%D %t'", check=False).strip() == "2 idle",
            "the nodes are not idle",
        )
        yield hosts


def start(slurm: Hosts, name: str, *overrides: str) -> str:
    """Submits a search and returns the job's id."""
    folder = slurm.shared / name
    folder.mkdir()
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    settings = " ".join(f"--set {override}" for override in overrides)
    script = REPOSITORY / "cluster" / "slurm.sbatch"
    job = slurm[0].run(
        f"cd {SHARED}/{name} && export RAYMETA_RUNS_DIR={SHARED}/{name}/runs && "
        f"sbatch --parsable {script} tiny.yaml {settings}"
    )
    return job.strip()


def state(slurm: Hosts, job: str) -> dict[str, str]:
    """Returns Slurm's state of a job."""
    words = slurm[0].run(f"scontrol show job {job}").split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_for_end(slurm: Hosts, job: str, folder: Path) -> tuple[str, str]:
    """Waits until a job ends; returns its state and exit code."""

    def over() -> bool:
        return state(slurm, job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")

    wait_until(over, f"the job does not end:\n{log(folder)}", TIMEOUT_S, every_s=1)
    return state(slurm, job)["JobState"], state(slurm, job)["ExitCode"]


def log(folder: Path) -> str:
    """Returns a job's output."""
    return "\n".join(file.read_text()[-2000:] for file in sorted(folder.glob("raymeta-*")))


def ray_processes(hosts: Hosts) -> list[str]:
    """Returns the processes of Ray on any host."""
    return [a for host in hosts for a in host.processes().values() if "ray" in a.split()[0]]


def test_a_search_runs_on_all_nodes_and_goes_on_when_its_job_is_requeued(slurm: Hosts) -> None:
    folder = slurm.shared / "search"
    job = start(
        slurm,
        "search",
        "training.meta_steps=1200",  # longer than the start of an actor on the other node
        "search.num_trials=3",
        "resources.cpus_per_worker=2",  # all that a node has
    )
    path = folder / "runs" / f"raymeta-{job}"
    run = Run(path)

    def finished() -> list[str]:
        ended = [i for i, record in read_trials(run).items() if record.status == "completed"]
        return [i for i in ended if any('"done": true' in text for text in results(i))]

    def results(trial: str) -> list[str]:
        """Returns Tune's files of a trial, one a session, written a moment after its record."""
        files = [Path(str(folder)) / "result.json" for folder in trial_folders(run, trial)]
        return [file.read_text() for file in files if file.exists()]

    wait_until(lambda: bool(finished()), f"no trial ends:\n{log(folder)}", TIMEOUT_S, every_s=1)
    files = [path / "tune" / trial / "result.json" for trial in finished()]
    before = {file: file.read_text() for file in files}
    slurm[0].run(f"scontrol requeue {job}")
    wait_until(lambda: state(slurm, job)["JobState"] == "PENDING", "it does not wait")
    slurm[0].run(f"scontrol update JobId={job} StartTime=now")  # instead of in two minutes
    assert wait_for_end(slurm, job, folder) == ("COMPLETED", "0:0"), log(folder)
    assert state(slurm, job)["Restarts"] == "1"
    assert {file: file.read_text() for file in files} == before  # no finished trial runs again
    assert len(finished()) == 3
    assert (path / "results.json").is_file()
    written = "".join(file.read_text() for file in path.glob("tune/*/result.json"))
    for node in slurm.hosts[1:]:
        assert f'"node_ip": "{node.address}"' in written
    wait_until(lambda: not ray_processes(slurm), "Ray is left on a node")


def test_a_search_that_fails_makes_its_job_fail(slurm: Hosts) -> None:
    folder = slurm.shared / "wrong"
    job = start(slurm, "wrong", "training.no_such_key=1")
    assert wait_for_end(slurm, job, folder) == ("FAILED", "1:0"), log(folder)
    assert "no_such_key" in log(folder)
    wait_until(lambda: not ray_processes(slurm), "Ray is left on a node")
