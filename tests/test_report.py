"""The page: nothing from elsewhere, figures and titles that a browser can read, the same bytes twice."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from alpharec.report import bars, lines, page, points


def build() -> str:
    figures = {
        "Learning": lines(
            {"ours": ([1, 2, 3], [0.1, 0.2, 0.15]), "theirs": ([1, 2], [0.1, 0.1])}, x="epoch", y="recall"
        ),
        "Groups": bars(["few", "many"], {"ours": [0.1, 0.2]}, y="recall"),
        "Map": points(
            {"before": ([0, 1], [1, 0]), "after": ([0, 1], [0, 1])}, names=["Alien <3>", '$20 "Mini" Purse_, was $35']
        ),
    }
    rows = [{"model": "a & b", "recall@20": 0.123456}, {"model": "c", "seeds": 3}]
    return page("A <title>", {"recall": 0.1}, figures, rows)


def test_page_is_self_contained_and_its_figures_are_well_formed() -> None:
    html = build()
    figures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(figures) == 3
    for svg in figures:
        ElementTree.fromstring(svg)
    # Only names of XML vocabularies are addresses: nothing is fetched.
    fetched = re.findall(r"(?:src|href)=\"(?!#)([^\"]*)\"", re.sub(r"xmlns\S*=\"[^\"]*\"", "", html))
    assert not fetched
    assert "<script" not in html


def test_page_shows_titles_tables_and_values_escaped() -> None:
    html = build()
    assert "<h1>A &lt;title&gt;</h1>" in html
    assert "Alien &lt;3&gt;" in html
    assert '$20 "Mini" Purse_, was $35' in html, "money, not a formula"
    assert "<td>a &amp; b</td><td>0.1235</td><td></td>" in html
    assert "<td>c</td><td></td><td>3</td>" in html


def test_same_figures_give_the_same_bytes() -> None:
    assert build() == build()
