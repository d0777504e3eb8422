"""A search is saved with all that it needs to go on."""

from __future__ import annotations

from pathlib import Path

from ray import tune

from raymeta.search import AxSearcher


def test_a_restored_search_needs_nothing_again(tmp_path: Path) -> None:
    searcher = AxSearcher(
        {"net": {"x": tune.uniform(0, 1)}, "clip": tune.choice([None, 0.5])},
        metric="loss",
        mode="min",
        num_sobol=7,
        constraints=["2 * net/x <= 1"],
        points_to_evaluate=[{"net": {"x": 0.25}, "clip": None}],
    )
    searcher.save(str(tmp_path / "state"))
    restored = AxSearcher()
    restored.restore(str(tmp_path / "state"))
    assert restored.space == searcher.space
    assert restored.settings == searcher.settings
    restored.save(str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "state").read_bytes()
