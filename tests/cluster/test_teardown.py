"""The end of a cluster; by its name the last file here, since nothing of Ray is left then."""

from __future__ import annotations

from tests.cluster.onprem import OnPrem


def test_tear_down_leaves_nothing_of_ray_on_any_host(onprem: OnPrem) -> None:
    assert onprem.what_is_left_of_ray()
    onprem.laptop(f"raymeta down --yes {onprem.file}", timeout_s=120)
    assert onprem.what_is_left_of_ray() == {}
