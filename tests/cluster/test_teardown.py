"""The end of a cluster; this file runs last, because it stops Ray."""

from __future__ import annotations

from tests.cluster.onprem import OnPrem


def test_down_leaves_no_process_of_ray(onprem: OnPrem) -> None:
    assert onprem.ray_processes()
    onprem.laptop(f"raymeta down --yes {onprem.file}", timeout_s=120)
    assert onprem.ray_processes() == {}
