"""The nodes of `cluster/local.yaml`, which Ray's autoscaler starts and ends on one machine."""

from __future__ import annotations

from typing import Any

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LocalNodes(FakeMultiNodeProvider):
    """Ray's own nodes on one machine, each with a folder of its own for the code of jobs.

    A node that ends removes that folder.  On a machine of its own that is in order; Ray's nodes on
    one machine share it, and the jobs that go on need it.
    """

    def _create_node_with_resources_and_labels(self, *args: Any) -> None:
        with self.lock:
            # Ray asks for no name of it.  In this process, the autoscaler's, nothing else does.
            name = f"runtime_resources_{self._next_node_id + 1}"
            ray_constants.DEFAULT_RUNTIME_ENV_DIR_NAME = name
            super()._create_node_with_resources_and_labels(*args)
