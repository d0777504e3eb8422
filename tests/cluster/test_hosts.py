"""Test hosts are isolated from each other and from this machine, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import pytest

from tests.cluster.hosts import SHARED, HostError, Hosts, wait_until


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(2, tmp_path_factory.mktemp("hosts")) as made:
        yield made


def test_each_host_has_its_own_name_address_and_processes(hosts: Hosts) -> None:
    assert [host.run("hostname").strip() for host in hosts] == ["node1", "node2"]
    assert hosts[0].address in hosts[0].run("ip addr")
    assert hosts[0].address not in hosts[1].run("ip addr")
    for host in hosts:
        commands = host.processes().values()
        assert commands
        assert all(command.startswith("sshd") for command in commands)


def test_a_host_has_its_own_files_and_shares_one_folder(hosts: Hosts) -> None:
    hosts[0].run(f"touch ~/mine /tmp/mine /dev/shm/mine {SHARED}/ours")
    assert hosts[1].run(f"ls ~/mine /tmp/mine /dev/shm/mine {SHARED}", check=False).count("No such")
    assert hosts[1].run(f"ls {SHARED}").split() == ["ours"]
    assert (hosts.shared / "ours").exists()
    assert not (Path.home() / "mine").exists()
    assert not Path("/dev/shm/mine").exists()  # noqa: S108


def test_a_host_has_this_python(hosts: Hosts) -> None:
    assert hosts[0].run("python -c 'import sys, torch; print(sys.prefix)'").strip() == sys.prefix


def test_hosts_are_reached_by_ssh_from_the_laptop(hosts: Hosts) -> None:
    command = [*hosts[1].ssh_command, "hostname; exit 3"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert (done.stdout, done.returncode) == ("node2\n", 3)


def test_a_failed_command_says_what_it_said(hosts: Hosts) -> None:
    with pytest.raises(HostError, match=r"(?s)node1.*ended with 2.*no-such-file"):
        hosts[0].run("ls /no-such-file")


def test_a_host_without_power_is_silent_and_keeps_its_disk(hosts: Hosts) -> None:
    hosts[1].run("echo kept > ~/file; echo lost > /dev/shm/file; sleep 1000 & disown")
    open_connection = subprocess.Popen(
        hosts[0].command("exec 3<>/dev/tcp/node2/22; cat <&3 >/dev/null; echo closed"),
        stdout=subprocess.PIPE,
    )
    time.sleep(0.5)
    hosts[1].power_off()
    try:
        assert not hosts[1].is_on
        probe = "timeout 2 bash -c '</dev/tcp/node2/22' || echo silent"
        assert "silent" in hosts[0].run(probe)
        assert open_connection.poll() is None  # nobody told it
    finally:
        open_connection.kill()
        open_connection.wait()
        hosts[1].power_on()
    assert hosts[1].run("cat ~/file") == "kept\n"
    assert not any("sleep" in args for args in hosts[1].processes().values())
    assert "No such file" in hosts[1].run("cat /dev/shm/file", check=False)


def test_a_cut_cable_leaves_the_processes_alone(hosts: Hosts) -> None:
    hosts[1].run("sleep 1001 & disown")
    probe = "timeout 1 bash -c '</dev/tcp/node2/22' && echo heard"
    hosts[1].cut_cable()
    assert "heard" not in hosts[0].run(probe, check=False)
    hosts[1].plug_in()
    wait_until(lambda: "heard" in hosts[0].run(probe, check=False), "still cut off")
    assert hosts[1].pids("sleep 1001")
    hosts[1].kill("sleep 1001")


def test_a_full_disk_takes_nothing_more_until_it_is_emptied(hosts: Hosts) -> None:
    write = "head -c 9999 /dev/zero > /tmp/.more-than-fits"
    hosts[0].fill_disk()
    try:
        assert "No space left" in hosts[0].run(write, check=False)
        hosts[1].run(write)
    finally:
        hosts[0].empty_disk()
    hosts[0].run(write)


def test_a_host_has_only_so_much_memory(tmp_path: Path) -> None:
    with Hosts(1, tmp_path, memory_bytes=200 << 20) as small:
        took = small[0].run("python -c 'x = bytearray(10 ** 9)'; echo ended with $?", check=False)
        assert "ended with 137" in took
        assert small[0].pids("sshd")


def test_nothing_is_left_of_hosts_whose_maker_was_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.cluster.hosts import Hosts\n"
        f"with Hosts(1, Path({str(tmp_path)!r})) as hosts:\n"
        "    hosts[0].run('sleep 4711 & disown')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(1000)\n"
    )
    maker = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ}
    )
    try:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"ready\n"
        found = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if process.info["cmdline"] == ["sleep", "4711"]
        ]
        assert len(found) == 1
    finally:
        maker.kill()
        maker.communicate()
    wait_until(lambda: not psutil.pid_exists(found[0]), "a process is left")
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
