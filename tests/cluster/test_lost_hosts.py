"""Hosts are lost during a search, or are about to be: it continues on the others."""

from __future__ import annotations

from tests.cluster.onprem import (
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

RECOVERY_S = 60


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
    host.cut_cable()
    try:
        search.wait_for_host_other_than(host, RECOVERY_S)
        search.wait_for_end_of_trials()
        search.stop()
    finally:
        host.plug_in()
    assert repeats(search.steps()) == 0
    assert search.curve() == undisturbed.curve()
    onprem.wait_until_ready()  # the host is used again


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
    search.assert_nothing_lost_or_run_again(before)
