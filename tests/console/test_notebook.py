"""In a notebook `watch` and `tune` show what goes on, in one display that is replaced in place."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymeta.console.notebook import is_notebook
from raymeta.experiment.file import load_experiment
from raymeta.run_folder import Run
from raymeta.search.records import TrialRecord
from raymeta.search.trial_log import TrialLog
from tests.console.test_watch import driving
from tests.report.runs import meta_test, query_scores

jupyter_client = pytest.importorskip("jupyter_client", reason="no Jupyter kernel is installed")

BOUND_S = 180.0


class Kernel:
    """A real kernel; what it sends for a cell is kept in order."""

    def __init__(self) -> None:
        self.manager, self.client = jupyter_client.manager.start_new_kernel(kernel_name="python3")
        self.messages: list[tuple[str, dict[str, Any]]] = []

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def begin(self, cell: str) -> str:
        self.messages.clear()
        return str(self.client.execute(cell))

    def until_idle(self, request: str) -> None:
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=BOUND_S)
            except queue.Empty:
                pytest.fail(f"the kernel said no more after {self.messages}")
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            self.messages.append((kind, content))
            if kind == "status" and content["execution_state"] == "idle":
                return

    def html(self, kind: str) -> list[str]:
        return [c["data"]["text/html"] for k, c in self.messages if k == kind and "data" in c]

    def has_shown(self, text: str) -> bool:
        return any(text in page for page in self.html("update_display_data"))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    yield found
    found.close()


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[tuple[Run, subprocess.Popen[str]]]:
    run = Run.create(tmp_path, load_experiment("pen-maml"), "watched")
    with driving(run) as process:
        yield run, process


@pytest.mark.slow
def test_a_run_of_another_process_is_shown_live_and_ends_with_its_report(
    kernel: Kernel, driver: tuple[Run, subprocess.Popen[str]]
) -> None:
    run, process = driver
    log = TrialLog(run)
    record = TrialRecord({"maml.inner_lr": 0.5}, "given", began_s=0.0)
    log.set("a", record)
    request = kernel.begin(f"import raymeta; raymeta.watch({str(run.path)!r})")
    reading = threading.Thread(target=kernel.until_idle, args=(request,), daemon=True)
    reading.start()

    def until(text: str) -> None:
        for _ in range(int(BOUND_S / 0.1)):
            if kernel.has_shown(text):
                return
            reading.join(0.1)
        pytest.fail(f"{text!r} is not in {kernel.messages}")

    until("0/")
    record.curve.append((100, 0.61, 0.02))
    record.latest_s = 10.0
    log.report("a", record)
    until("0.610 ± 0.020")  # while the process is at work
    assert process.poll() is None
    record.status = "completed"
    log.set("a", record)
    run.keep_best({"maml.inner_lr": 0.5})
    run.write_json("results.json", {"meta_test": meta_test(query_scores()).to_json()})
    process.kill()
    process.wait()
    reading.join(BOUND_S)
    assert not reading.is_alive()
    shown = [c for k, c in kernel.messages if k == "display_data"]
    live = [c for c in shown if "display_id" in c.get("transient", {})]
    assert len(live) == 1, "one display is made, and replaced in place"
    changed = {
        c["transient"]["display_id"] for k, c in kernel.messages if k == "update_display_data"
    }
    assert changed == {live[0]["transient"]["display_id"]}
    (result,) = kernel.html("execute_result")
    assert "the tuned network has an accuracy of" in result


@pytest.mark.slow
def test_a_search_that_a_notebook_starts_shows_its_trials_without_being_asked(
    kernel: Kernel, tmp_path: Path
) -> None:
    cell = f"""
import raymeta.api, raymeta.running
from raymeta.search.progress import TrialEvent
def start(prepared, root, watcher, **options):
    from raymeta.run_folder import Run
    watcher.started(Run.create(root, prepared.experiment, "here"), prepared.experiment)
    watcher.trial(TrialEvent("a", "started", {{"training.outer_lr": 0.002}}, {{}}, 0.0))
raymeta.running.start = start
raymeta.tune("pen", runs_dir={str(tmp_path)!r})
"""
    kernel.until_idle(kernel.begin(cell))
    assert kernel.has_shown("running"), kernel.messages
    assert kernel.has_shown("0.002")


def test_a_test_is_no_notebook() -> None:
    assert not is_notebook()
