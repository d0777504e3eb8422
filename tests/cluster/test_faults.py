"""Faults within hosts: the search continues, and ends as one without faults."""

from __future__ import annotations

import re

from tests.cluster.onprem import (
    CPUS,
    FOUR_TRIALS,
    MIDWAY,
    NO_RETRIES,
    RECOVERS,
    RETRIES,
    OnPrem,
    Search,
    Start,
    repeats,
)


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
    assert retried or failed  # the full disk had an effect
    for trial in failed:  # a worker that cannot even write its log dies, and Ray names the host
        assert re.search(rf"No space left|ip: {host.address}", trial["error"]), trial["error"]


def test_a_killed_driver_goes_on_with_its_search(onprem: OnPrem, start: Start) -> None:
    search = start(*FOUR_TRIALS, command="submit")
    before = search.wait_for_saved_trials(2)
    onprem.head.kill("-m raymeta tune" if RECOVERS else "-m raymeta")
    search.assert_nothing_lost_or_run_again(before)


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
