"""Ray leaves the node of a spot machine after its provider's notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raymeta.deploy.notice import CLOUDS, noticed

QUIET = {"aws": None, "gcp": "FALSE", "azure": json.dumps({"Events": []})}
NOTICE = {
    "aws": json.dumps({"action": "terminate", "time": "2026-11-25T03:00:00Z"}),
    "gcp": "TRUE",
    "azure": json.dumps({"Events": [{"EventType": "Preempt", "Resources": ["gpu-0"]}]}),
}
SECRET = "of the metadata service"  # noqa: S105


class Metadata(BaseHTTPRequestHandler):
    """Serves what machines of the three clouds find at 169.254.169.254."""

    said: str | None = None

    def answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        lasts = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0")
        right = self.path == "/latest/api/token" and int(lasts) > 0
        self.answer(200 if right else 400, SECRET)

    def do_GET(self) -> None:
        asked = {
            "/latest/meta-data/spot/instance-action": ("X-aws-ec2-metadata-token", SECRET),
            "/computeMetadata/v1/instance/preempted": ("Metadata-Flavor", "Google"),
            "/metadata/scheduledevents?api-version=2020-07-01": ("Metadata", "true"),
        }
        header, value = asked[self.path]
        if self.headers.get(header) != value:
            self.answer(401)
        elif self.said is None:
            self.answer(404)
        else:
            self.answer(200, self.said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_notice_is_recognised(cloud: str, metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metadata, "said", QUIET[cloud])
    assert not noticed(CLOUDS[cloud], metadata)
    monkeypatch.setattr(Metadata, "said", NOTICE[cloud])
    assert noticed(CLOUDS[cloud], metadata)


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("said", ["", "{}", "no JSON", '{"Events": [{}]}'])
def test_a_broken_answer_is_no_notice(
    cloud: str, said: str, metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metadata, "said", said)
    assert not noticed(CLOUDS[cloud], metadata)


def test_a_service_that_does_not_answer_is_no_notice() -> None:
    assert not noticed(CLOUDS["aws"], "http://127.0.0.1:1")


def test_reboots_for_maintenance_are_no_notice(
    metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Metadata, "said", json.dumps({"Events": [{"EventType": "Reboot"}]}))
    assert not noticed(CLOUDS["azure"], metadata)


def test_a_second_watcher_on_a_machine_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raymeta.deploy.notice", "aws"]
    environment = os.environ | {"HOME": str(tmp_path)}
    watchers = [subprocess.Popen(command, env=environment) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        while all(watcher.poll() is None for watcher in watchers):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert sorted(str(watcher.poll()) for watcher in watchers) == ["0", "None"]
    finally:
        for watcher in watchers:
            watcher.kill()
            watcher.wait()
