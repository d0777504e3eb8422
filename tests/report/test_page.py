"""A page escapes text, whoever wrote it."""

from __future__ import annotations

import json
import re

from plotly import graph_objects as go

from raymeta.report.page import Page

HOSTILE = "</script><script>alert(1)</script>&amp;'\""


def hostile_page() -> str:
    page = Page(HOSTILE)
    page.header(HOSTILE, HOSTILE)
    page.section(HOSTILE)
    page.heading(HOSTILE)
    page.answer(HOSTILE)
    page.text(HOSTILE)
    page.lines([(HOSTILE, "red")])
    page.code(HOSTILE, HOSTILE)
    page.table([HOSTILE], [[HOSTILE]], [(1, HOSTILE, HOSTILE)])
    page.filters([(HOSTILE, HOSTILE, HOSTILE)])
    page.plot(go.Figure(go.Scatter(x=[HOSTILE], y=[1], name=HOSTILE)), HOSTILE)
    return page.html()


def test_every_text_is_escaped() -> None:
    html = hostile_page()
    assert HOSTILE not in html
    assert "<script>alert" not in html
    assert html.count("<script") == html.count("</script>") == 3  # data, plotly, the page's own


def test_a_figure_arrives_as_it_was() -> None:
    found = re.search(r"id='figures'>(.*?)</script>", hostile_page(), re.DOTALL)
    assert found is not None
    (figure,) = json.loads(found[1])
    assert figure["data"][0]["name"] == HOSTILE
    assert "template" not in figure["layout"]


def test_a_fragment_has_no_scripts() -> None:
    page = Page("one")
    page.answer("It works.")
    assert page.fragment() == "<div><p class='answer'>It works.</p></div>"
