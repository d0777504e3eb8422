"""Test hosts: isolated machines, as their processes see it, on one Linux machine.

All hosts live in one world: a network, mount and process namespace.  It ends with the process that
made it, even a killed one, and with it end its processes, mounts and links.  Several worlds may
exist at once.  Each host has an address on
the world's bridge, its own sshd, name, processes, /tmp, /run, /dev/shm and home; home and /tmp lie
on its disk, which survives a loss of power.  The laptop is a host without a part in the cluster.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped, unused-ignore]

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path("/srv")  # where all hosts see the shared folder, as if by NFS
HOME = Path("/root")
TOOLS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "ip": "iproute2",
    "unshare": "util-linux",
    "ps": "procps",
}
TIMEOUT_S = 60
_NETWORK, _GATEWAY = "10.77.0", 254  # in a network namespace of its own: always free
_CGROUPS, _CGROUP_PREFIX = Path("/sys/fs/cgroup"), "raymeta-hosts-"  # then the maker's process id
_DISK_MIB = 2048  # of tmpfs: takes what is written

_WORLD = """
set -e
mount --bind {work}/hosts /etc/hosts
mount --bind {work}/empty /etc/resolv.conf
mount --bind {work}/shared {shared}
ip link set lo up
ip link add bridge type bridge
ip addr add {network}.{gateway}/24 dev bridge
ip link set bridge up
"""

# What lies under a folder that gets hidden is put aside, and back in its place.
_HOST = """
set -e
read -r plugged_in
hostname {name}
mount -t tmpfs tmpfs /run
mkdir -p {disk}/tmp {disk}/home /run/sshd /run/aside
chmod 1777 {disk}/tmp
touch {disk}/home/.bashrc {disk}/home/.profile
number=0
for path in {visible}; do
  mkdir /run/aside/$number
  mount --rbind $path /run/aside/$number
  number=$((number + 1))
done
mkdir /run/disk
mount --bind {disk} /run/disk
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind /run/disk/home {home}
mount --bind /run/disk/tmp /tmp
number=0
for path in {visible}; do
  mkdir -p $path
  mount --move /run/aside/$number $path
  number=$((number + 1))
done
{mount_cgroup}
ip link set lo up
ip addr add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {network}.{gateway}
exec $(command -v sshd || echo /usr/sbin/sshd) -D -e -f {work}/{name}.sshd
"""

_SSHD = """
HostKey {work}/key
AuthorizedKeysFile {work}/key.pub
PidFile none
StrictModes no
UsePAM no
UseDNS no
Subsystem sftp internal-sftp
PermitRootLogin yes
MaxStartups 100
SetEnv {environment}
"""


def missing() -> str | None:
    """Returns why test hosts cannot be made here; None if they can."""
    if not sys.platform.startswith("linux"):
        return "test hosts need Linux"
    if os.geteuid() != 0:
        return "test hosts need root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = {package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)}
    if packages:
        return f"test hosts need the packages {' '.join(sorted(packages))}"
    command = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "true"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return "no namespaces can be made here"
    return None


class HostError(AssertionError):
    """A command on a host failed."""


class Host:
    """One machine."""

    def __init__(self, world: Hosts, number: int, name: str) -> None:
        self.name = name
        self.address = f"{_NETWORK}.{number}"
        self._world = world
        self._number = number
        self._disk = world.work / f"{name}.disk"
        self.memory_bytes = world.memory_bytes  # as it is when it boots for the first time
        self._groups: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        self.environment = {
            "HOME": str(HOME),
            "USER": "root",
            "LOGNAME": "root",
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(REPOSITORY),
            **world.environment,
        }

    # Life ---------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Boots the host; returns when sshd answers."""
        work = self._world.work
        if not self._groups:
            group = f"{self._world.work.name}-{self.name}"
            self._groups = _make_cgroups(group, self.memory_bytes)
        self._write_sshd()
        script = _HOST.format(
            name=self.name,
            disk=self._disk,
            visible=" ".join(shlex.quote(str(path)) for path in self._world.visible),
            home=HOME,
            address=self.address,
            network=_NETWORK,
            gateway=_GATEWAY,
            work=work,
            mount_cgroup="\n".join(f"mount --bind {g} {_cgroup_root(g)}" for g in self._groups),
        )
        kinds = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        unshare = ["unshare", *kinds, "--fork", "--kill-child", "--mount-proc", "bash", "-c"]
        with (work / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._in_cgroups([*self._world.enter, *unshare, script]),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._init = _descendant(self._process.pid, 2)
        mac = f"02:00:00:00:00:{self._number:02x}"  # the same again: nobody's ARP table is stale
        peer = f"peer name eth0 address {mac} netns {self._init}"
        self._world.network(f"link add {self.name} type veth {peer}")
        self._world.network(f"link set {self.name} master bridge up")
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        probe = f"exec 3<>/dev/tcp/{self.address}/22"
        wait_until(lambda: self._world.succeeds(probe), f"{self.name}: sshd does not answer")

    def power_off(self) -> None:
        """Stops the host at once; no other host is told."""
        if self._process is None:
            return
        # First of all: the kernel closes the connections of dying processes, and would tell.
        self._world.network(f"link del {self.name}")
        os.kill(self._init, signal.SIGKILL)
        self._process.wait(TIMEOUT_S)
        wait_until(lambda: not self._pids(), f"{self.name}: processes outlive it")
        self._process = None

    @property
    def is_on(self) -> bool:
        """Tells whether the host has power."""
        return self._process is not None and self._process.poll() is None

    def cut_cable(self) -> None:
        """Cuts the network off; the processes live on."""
        self._world.network(f"link set {self.name} down")

    def plug_in(self) -> None:
        """Undoes `cut_cable`."""
        self._world.network(f"link set {self.name} up")

    def fill_disk(self) -> None:
        """Fills the disk."""
        used = max(4096, shutil.disk_usage(self._mount_point()).used)  # 0 would mean no limit
        self._world.run(f"mount -o remount,size={used} {self._disk}")

    def empty_disk(self) -> None:
        """Undoes `fill_disk`."""
        self._world.run(f"mount -o remount,size={_DISK_MIB}m {self._disk}")

    def remove_cgroups(self) -> None:
        """Removes the control groups, after the processes are gone."""
        for group in self._groups:
            wait_until(lambda: not self._pids(), f"{group}: is not empty")
            group.rmdir()

    # Commands -----------------------------------------------------------------------------------

    @property
    def ssh_command(self) -> list[str]:
        """Builds the ssh command from the laptop; the words of a command may follow."""
        return [*self._world.laptop.command(f'exec ssh {self.address} "$@"'), "ssh"]

    def command(self, line: str) -> list[str]:
        """Builds what runs a line of bash on this host, with the Python environment on its PATH."""
        path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = [f"{key}={value}" for key, value in {**self.environment, "PATH": path}.items()]
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        enter = ["nsenter", "--target", str(self._init), *namespaces, f"--wd={HOME}"]
        return self._in_cgroups([*enter, "env", "-i", *variables, "bash", "-c", line])

    def run(self, line: str, *, timeout_s: float = TIMEOUT_S, check: bool = True) -> str:
        """Runs a line of bash and returns its output.

        Raises:
            HostError: its exit code is not 0.
            subprocess.TimeoutExpired: it takes longer.
        """
        with tempfile.TemporaryFile() as said:  # a pipe would wait for what it leaves running
            done = subprocess.run(
                self.command(line),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
            said.seek(0)
            text = said.read().decode(errors="replace")
        if check and done.returncode:
            raise HostError(f"{self.name}: `{line}` ended with {done.returncode}:\n{text}")
        return text

    def start(self, line: str, log: Path) -> subprocess.Popen[bytes]:
        """Starts a line of bash; its output goes to a file of this machine."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(line), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def processes(self) -> dict[int, str]:
        """Returns the command line of each process, by the host's own process ids."""
        lines = self.run("ps -eo pid=,args= -ww").splitlines()
        found = dict(line.strip().split(None, 1) for line in lines)
        own = "ps -eo pid=,args= -ww"
        return {int(pid): args for pid, args in found.items() if own not in args}

    def pids(self, pattern: str) -> list[int]:
        """Returns the processes whose command lines contain `pattern`."""
        return [pid for pid, args in self.processes().items() if pattern in args]

    def kill(self, pattern: str) -> list[int]:
        """Kills those processes and returns their ids."""
        pids = self.pids(pattern)
        self.run(f"kill -9 {' '.join(map(str, pids))}")
        return pids

    # Inside -------------------------------------------------------------------------------------

    def _write_sshd(self) -> None:
        work = self._world.work
        quoted = [
            '"{}={}"'.format(key, value.replace('"', '\\"'))
            for key, value in self.environment.items()
        ]
        config = _SSHD.format(work=work, environment=" ".join(quoted))
        (work / f"{self.name}.sshd").write_text(config)

    def _mount_point(self) -> str:
        return f"/proc/{self._init}/root/run/disk"

    def _pids(self) -> list[str]:
        return [pid for g in self._groups for pid in (g / "cgroup.procs").read_text().split()]

    def _in_cgroups(self, command: list[str]) -> list[str]:
        joins = "".join(f"echo $$ > {group}/cgroup.procs; " for group in self._groups)
        return ["sh", "-c", f'{joins}exec "$@"', "sh", *command]


class Hosts:
    """Makes several hosts and a laptop, and removes them at the end of the context."""

    def __init__(
        self,
        count: int,
        work: Path,
        *,
        environment: Mapping[str, str] | None = None,
        memory_bytes: int = 4 << 30,
    ) -> None:
        """Stores the settings; the context makes the hosts.

        Args:
            count: of hosts beside the laptop.
            work: an empty folder.
            environment: variables of all processes on all hosts.
            memory_bytes: of each host.
        """
        self.work = work.resolve()
        self.environment = dict(environment or {})
        self.memory_bytes = memory_bytes
        self.shared = self.work / "shared"  # seen by the hosts at `SHARED`
        prefixes = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
        paths = {REPOSITORY, self.work, *map(Path, prefixes)}
        hidden = (HOME, Path("/tmp"), Path("/run"), Path("/dev/shm"))  # noqa: S108
        self.visible = [p for p in sorted(paths) if any(p.is_relative_to(h) for h in hidden)]
        self.laptop = Host(self, 100, "laptop")
        self.hosts = [Host(self, 10 + number, f"node{number}") for number in range(1, count + 1)]
        self._world: subprocess.Popen[bytes] | None = None
        self.enter: list[str] = []

    def __enter__(self) -> Self:
        """Makes the world and boots the hosts."""
        try:
            self._make_world()
            for host in (self.laptop, *self.hosts):
                host.power_on()
            ssh = f"mkdir -p -m 700 ~/.ssh && install -m 600 {self.work}/key ~/.ssh/id_ed25519"
            options = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR"
            self.laptop.run(f"{ssh} && echo {shlex.quote(options)} > ~/.ssh/config")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Removes all of it."""
        if self._world is not None:
            assert self._world.stdin is not None
            self._world.stdin.close()  # its first process is waiting for this end
            self._world.wait(TIMEOUT_S)
        for host in (self.laptop, *self.hosts):
            host.remove_cgroups()

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]

    def __len__(self) -> int:
        return len(self.hosts)

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def run(self, line: str) -> None:
        """Runs a line of bash in the world, outside all hosts."""
        command = [*self.enter, "bash", "-c", line]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode:
            raise HostError(f"`{line}` ended with {done.returncode}:\n{done.stderr}")

    def succeeds(self, line: str) -> bool:
        """Tells whether a line of bash exits with 0."""
        try:
            self.run(line)
        except HostError:
            return False
        return True

    def network(self, arguments: str) -> None:
        """Changes links; process ids are those of the machine."""
        command = ["nsenter", f"--net=/proc/{self._init}/ns/net", "ip", *arguments.split()]
        subprocess.run(command, check=True, capture_output=True)

    def _make_world(self) -> None:
        for folder in (self.shared, *(self.work / f"{h.name}.disk" for h in self._all)):
            folder.mkdir(parents=True)
        names = "".join(f"{host.address} {host.name}\n" for host in self._all)
        (self.work / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.work / "empty").touch()
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.work / "key")]
        subprocess.run(keygen, check=True)
        kinds = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._world = subprocess.Popen(
            ["unshare", *kinds, "--propagation", "private", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # an interrupted pytest ends it in order
        )
        self._init = _descendant(self._world.pid, 1)
        self.enter = ["nsenter", "--target", str(self._init), "--mount", "--net", "--pid"]
        self.run(
            _WORLD.format(work=self.work, shared=SHARED, network=_NETWORK, gateway=_GATEWAY)
            + "".join(
                f"mount -t tmpfs -o size={_DISK_MIB}m tmpfs {self.work}/{host.name}.disk\n"
                for host in self._all
            )
        )

    @property
    def _all(self) -> list[Host]:
        return [self.laptop, *self.hosts]


def wait_until(
    condition: Callable[[], bool],
    message: str,
    timeout_s: float = TIMEOUT_S,
    every_s: float = 0.1,
) -> None:
    """Returns as soon as `condition()` holds.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{message} (after {timeout_s} s)"
        time.sleep(every_s)


def _descendant(pid: int, generations: int) -> int:
    """Finds the only child of the only child of … of a process that may be about to start."""
    for _ in range(generations):
        children: list[psutil.Process] = []
        deadline = time.monotonic() + TIMEOUT_S
        while not children:
            assert time.monotonic() < deadline, f"process {pid} has started nothing"
            children = psutil.Process(pid).children()
            time.sleep(0.01)
        pid = children[0].pid
    return pid


def _cgroup_root(group: Path) -> Path:
    """Finds where a process looks for its own limits."""
    return group.parent


def _make_cgroups(name: str, memory_bytes: int) -> list[Path]:
    """Makes a control group with a memory limit, in either version of Linux's control groups."""
    for parent, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        folder = _CGROUPS / parent
        if not (folder / "cgroup.procs").is_file():
            continue
        for stale in folder.glob(f"{_CGROUP_PREFIX}*"):  # of a maker that was killed
            if not psutil.pid_exists(int(stale.name.split("-")[2])):
                stale.rmdir()
        group = folder / f"{_CGROUP_PREFIX}{os.getpid()}-{name}"
        group.mkdir()
        if (group / limit).is_file():
            (group / limit).write_text(str(memory_bytes))
            return [group]
        group.rmdir()
    return []
