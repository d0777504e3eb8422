"""Faults in the midst of a search on real hosts: it goes on, and ends as if nothing had been.

RAYMETA_TEST_RECOVERY=off takes away what recovers: that a trial is retried, that it leaves a host
which is to go, that its failure does not end the search (`no_recovery.py`), the process that starts
a killed driver again, the resumption after a lost head.  Then all tests with a fault must fail.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from tests.cluster.onprem import CPUS, RECOVERS, OnPrem, Search, repeats

NO_RETRIES = "resources.max_failures=0"
RETRIES = "resources.max_failures=2"
FOUR_TRIALS = ("training.meta_steps=400", "search.num_trials=4")
MIDWAY = 5  # reports
UNSAVED = 3  # reports of a trial that the search's state, saved every second, may lack
RECOVERY_S = 60
CUT_S = 90

Start = Callable[..., Search]


def test_a_trial_goes_on_elsewhere_when_its_host_loses_power(
    onprem: OnPrem, undisturbed: Search, start: Start
) -> None:
    search = start(RETRIES)
    search.wait_for_reports(MIDWAY)
    host = search.trial_host()
    host.power_off()
    try:
        search.wait_for_host_other_than(host, RECOVERY_S)
        search.wait_for_end_of_trials()
    finally:
        host.power_on()
    assert repeats(search.steps()) == 0  # it went on from its last checkpoint
    assert search.curve() == undisturbed.curve()
    search.stop()
    onprem.wait_until_ready()  # the host is used again


def test_a_trial_goes_on_elsewhere_when_the_cable_of_its_host_is_cut(
    onprem: OnPrem, undisturbed: Search, start: Start
) -> None:
    search = start(RETRIES)
    search.wait_for_reports(MIDWAY)
    host = search.trial_host()
    began = time.monotonic()
    host.cut_cable()
    try:
        search.wait_for_host_other_than(host, RECOVERY_S)
        search.wait_for_end_of_trials()
        search.stop()
        time.sleep(max(0.0, began + CUT_S - time.monotonic()))
    finally:
        host.plug_in()
    assert repeats(search.steps()) == 0
    assert search.curve() == undisturbed.curve()
    onprem.wait_until_ready()  # the host is used again


def test_a_killed_worker_process_costs_a_retry(undisturbed: Search, start: Start) -> None:
    search = start(RETRIES)
    search.wait_for_reports(MIDWAY)
    search.kill_trial()
    search.wait_for_end_of_trials()
    assert repeats(search.steps()) == 0
    assert search.curve() == undisturbed.curve()


def test_without_retries_a_killed_worker_process_costs_the_trial(start: Start) -> None:
    search = start(NO_RETRIES)
    search.wait_for_reports(MIDWAY)
    search.kill_trial()
    assert search.wait_for_exit() == 1
    assert "none of 1 trials came to its end" in search.tail()


def test_a_trial_moves_on_at_a_notice_that_its_host_will_be_taken_away(
    onprem: OnPrem, undisturbed: Search, start: Start
) -> None:
    search = start(NO_RETRIES)  # so that a single failure would end it
    search.wait_for_reports(MIDWAY)
    host = search.trial_host()
    onprem.drain(host, notice_s=30)
    search.wait_for_host_other_than(host, RECOVERY_S)
    search.wait_for_end_of_trials()
    assert repeats(search.steps()) == 0
    assert search.curve() == undisturbed.curve()
    # Its Ray left when it had nothing to do; the autoscaler starts it again on a host that stays.
    onprem.wait_until_ready()


def test_a_trial_that_runs_out_of_memory_fails_alone(start: Start) -> None:
    search = start(
        "maml.adaptation_steps=20",
        "training.graph=full",  # 20 steps' weights of 4 episodes: of 2,000 units, 2.5 GB
        "training.meta_steps=100",
        "search.space={model.hidden_size: {choices: [8, 2000]}}",
        "search.num_trials=3",
        "resources.max_failures=1",
        "resources.max_concurrent_trials=1",
        command="tune",
    )
    trials = search.wait_for_trials()
    for trial in trials:
        if trial["point"]["model.hidden_size"] == 8:
            assert trial["status"] == "completed", trial["error"]
        else:
            assert trial["status"] == "failed"
            assert re.search(r"memory|OOM", trial["error"])
    assert {trial["status"] for trial in trials} == {"completed", "failed"}


def test_a_full_disk_of_one_host_does_not_end_the_search(start: Start) -> None:
    search = start(RETRIES, "training.meta_steps=600", "search.num_trials=3", command="tune")
    search.wait_for_reports(MIDWAY)
    host = search.trial_host()
    host.fill_disk()
    try:
        trials = search.wait_for_trials()
    finally:
        host.empty_disk()
    assert len(trials) == 3
    assert any(trial["status"] == "completed" for trial in trials)
    retried = [trial for trial in trials if len(search.processes(trial["trial_id"])) > 1]
    failed = [trial for trial in trials if trial["status"] == "failed"]
    assert retried or failed  # the disk was missed
    for trial in failed:  # a worker that cannot even write its log dies, and Ray names the host
        assert re.search(rf"No space left|ip: {host.address}", trial["error"]), trial["error"]


def test_a_trial_over_two_hosts_gives_the_result_of_one_host(onprem: OnPrem, start: Start) -> None:
    curves, workers = [], []
    for cpus in (1, CPUS):  # with all of a host's CPUs for a worker, two workers take two hosts
        search = start(
            "resources.num_workers=2",
            f"resources.cpus_per_worker={cpus}",
            "training.meta_steps=300",
            name=f"two-workers-{cpus}",
        )
        search.wait_for_reports(1, timeout_s=120)
        workers.append(sorted(len(host.pids("ray::Worker")) for host in onprem.workers))
        search.wait_for_end_of_trials()
        search.stop()
        onprem.wait_until_ready()
        curves.append(search.curve())
    assert workers == [[0, 2], [1, 1]]
    assert curves[0] == curves[1]


def test_a_killed_driver_goes_on_with_its_search(onprem: OnPrem, start: Start) -> None:
    search = start(*FOUR_TRIALS, command="submit")
    before = search.wait_for_saved_trials(2)
    onprem.head.kill("-m raymeta tune" if RECOVERS else "-m raymeta")
    assert_nothing_lost_or_run_again(search, before)


def test_a_search_resumes_when_the_head_was_gone_and_is_back(onprem: OnPrem, start: Start) -> None:
    search = start(*FOUR_TRIALS, command="submit")
    before = search.wait_for_saved_trials(2)
    onprem.head.power_off()
    reports = len(search.results())
    onprem.head.power_on()
    onprem.start_redis()
    onprem.up("--restart-only")
    assert len(search.results()) == reports  # its driver was on the head
    # Redis has kept the list of jobs; Ray itself takes this one for running.
    assert "the node of its driver was lost" in onprem.laptop(
        f"raymeta status {search.name} --cluster {onprem.file}"
    )
    if RECOVERS:
        onprem.laptop(f"raymeta submit --resume {search.name} --detach --cluster {onprem.file}")
    assert_nothing_lost_or_run_again(search, before)


def assert_nothing_lost_or_run_again(search: Search, before: dict[str, str]) -> None:
    trials = search.wait_for_trials()
    assert [trial["status"] for trial in trials] == ["completed"] * 4
    assert {trial["trial_id"] for trial in trials} >= set(before)
    assert search.written().items() >= before.items()
    for trial in trials:  # one that ran may have to repeat what came after the last save
        assert repeats(search.steps(trial["trial_id"])) <= UNSAVED
