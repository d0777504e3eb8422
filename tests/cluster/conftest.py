"""The cluster of test hosts that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts, missing
from tests.cluster.onprem import CPUS, OnPrem, Search, Start

ENVIRONMENT = {"RAYMETA_NATIVE": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # no compiling: it takes long
WORKER_BYTES = 2 << 30


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of this folder, and skips them where no test hosts can be made."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = missing() if here else None
    for item in here:
        item.add_marker(pytest.mark.cluster)
        item.add_marker(pytest.mark.slow)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
    # The longest files start first: the others run beside them.
    long = [item for item in here if "start" in getattr(item, "fixturenames", ())]
    items.sort(key=lambda item: item not in long)


@pytest.fixture(scope="session")
def onprem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPrem]:
    """Starts Ray on a head and two workers; a laptop stands beside them."""
    hosts = Hosts(3, tmp_path_factory.mktemp("onprem"), environment=ENVIRONMENT)
    for worker in hosts.hosts[1:]:
        worker.memory_bytes = WORKER_BYTES
        worker.environment["RAY_OVERRIDE_RESOURCES"] = f'{{"CPU": {CPUS}}}'
    with hosts:
        cluster = OnPrem(hosts, redis=True)
        cluster.start_redis()
        cluster.up()
        yield cluster


@pytest.fixture(scope="session")
def undisturbed(onprem: OnPrem) -> Search:
    """Runs a search of one trial without a fault."""
    search = onprem.start("undisturbed")
    search.wait_for_end_of_trials()
    search.stop()
    return search


@pytest.fixture
def start(onprem: OnPrem, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts searches on the idle cluster and ends them with the test."""
    onprem.wait_until_ready()
    searches: list[Search] = []

    def launch(*overrides: str, command: str = "train", name: str = "") -> Search:
        run = name or request.node.name.replace("[", "-").strip("]")
        searches.append(onprem.start(run, *overrides, command=command))
        return searches[-1]

    yield launch
    for search in searches:
        search.stop()
