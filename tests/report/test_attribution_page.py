"""The page of attributions in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raymeta.inference.attribution import Attribution
from raymeta.report.attribution_page import attribution_page
from tests.browser import Tab, assert_drawn, chromium

LENGTHS = np.array([30, 12])


def attribution(channels: tuple[str, ...]) -> Attribution:
    """Two examples of 30 and 12 time steps, with attention and support examples."""
    rng = np.random.default_rng(0)
    shape = (2, 30, len(channels))
    inside = np.arange(30)[:, None] < LENGTHS[:, None, None]
    return Attribution(
        method="integrated_gradients",
        baseline="support",
        values=rng.normal(size=shape) * inside,
        lengths=LENGTHS,
        channels=channels,
        targets=np.array(["cat", "dog"]),
        outputs=np.array([0.9, 0.6]),
        baseline_outputs=np.array([0.5, 0.5]),
        names=("the first recording", "the second recording"),
        x=rng.normal(size=shape).cumsum(axis=1),
        attention=np.full((2, 30), 1 / 30),
        support_weights=np.array([[0.2, 0.8], [0.7, 0.3]]),
    )


def strokes() -> Attribution:
    """Two characters whose pen is off the paper at every fifth step."""
    found = attribution(("x", "y", "pen"))
    assert found.x is not None
    found.x[..., 2] = np.arange(30) % 5 > 0
    return replace(found, are_strokes=True)


def texts() -> Attribution:
    """Two texts, the first with words that are longer than a telephone is wide."""
    words = (("really", "good", "w" * 90) * 10, ("bad", "film") * 6)
    return replace(attribution(("token",)), x=None, words=words)


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium() as tab:
        yield tab


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dark"), [(1200, False), (1200, True), (390, False), (390, True)]
)
def test_chromium_draws_it_at_any_width_and_in_both_themes(
    tmp_path: Path, tab: Tab, width: int, dark: bool
) -> None:
    found = {
        "signals": attribution(("volt", "the flow of the second pump", "c")),
        "strokes": strokes(),
        "texts": texts(),
    }
    for name, one in found.items():
        file = tmp_path / f"{name}.html"
        file.write_text(attribution_page(one), encoding="utf-8")
        assert_drawn(tab, file, width, dark, least=0 if one.words else 2)
        # All text is inside the page, and has the colour of the theme.
        outside = tab.value(
            "[...document.querySelectorAll('.plot text, .words span')].filter(t => {"
            "const box = t.getBoundingClientRect(); return box.left < 0 || box.right > innerWidth"
            "}).map(t => t.textContent)"
        )
        assert outside == [], name
        inks = tab.value(
            "[...new Set([...document.querySelectorAll('.xtick text, .ytick text, h3')].map("
            "t => t.tagName === 'H3' ? getComputedStyle(t).color : getComputedStyle(t).fill))]"
        )
        assert inks == ["rgb(228, 232, 238)" if dark else "rgb(28, 36, 48)"], name
    assert tab.value("document.querySelectorAll('.words span').length") == 30 + 12
