"""The nodes of `cluster/local.yaml`, which Ray's autoscaler starts and ends on one machine."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from raymeta.ray_patches import name_runtime_env_folder


class LocalNodes(FakeMultiNodeProvider):
    """Ray's nodes on one machine, each with its own folder for the code of jobs."""

    def _create_node_with_resources_and_labels(self, *args: Any) -> None:
        with self.lock:
            # This is the autoscaler's process: nothing else starts nodes here.
            name_runtime_env_folder(f"runtime_resources_{self._next_node_id + 1}")
            super()._create_node_with_resources_and_labels(*args)
