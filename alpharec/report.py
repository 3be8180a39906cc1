"""One self-contained HTML page of figures: SVG inside the page, no script, nothing loaded from elsewhere.

Whoever draws loads matplotlib: of the start of a training worker, which does not, it would be a seventh.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Text stays text, and the same figure gives the same bytes.
STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "alpharec", "font.family": "sans-serif", "axes.grid": True}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.3}

PAGE = jinja2.Environment(autoescape=True).from_string(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
figure { margin: 2rem 0 } figcaption { color: #555 } svg { max-width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } pre { white-space: pre-wrap; background: #f6f6f6; padding: 1rem }
</style></head><body><h1>{{ title }}</h1>
{% if rows %}<table><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for name in columns %}<td>{{ shown(row.get(name)) }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% for caption, svg in figures %}<figure>{{ svg | safe }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}<details><summary>Figures as JSON</summary><pre>{{ record }}</pre></details></body></html>
"""
)


def page(
    title: str, record: Mapping[str, Any], figures: Mapping[str, str], rows: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the page: a table of ``rows`` (columns as they first appear), figures by caption, the record as JSON."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return PAGE.render(
        title=title,
        columns=columns,
        rows=rows,
        figures=list(figures.items()),
        record=json.dumps(record, indent=1),
        shown=_shown,
    )


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str) -> str:
    """Return, as SVG, one line a series, from its x and y values: learning curves, an alpha curve."""
    figure, [axes] = _panels(1, (7, 4))
    for name, (xs, ys) in series.items():
        axes.plot(xs, ys, marker="o", markersize=3, label=name)
    _label(axes, x, y, legend=len(series) > 1)
    return _svg(figure)


def bars(groups: Sequence[str], series: Mapping[str, Sequence[float]], *, y: str) -> str:
    """Return, as SVG, one bar for each group and series, side by side: metrics by group of users or items."""
    figure, [axes] = _panels(1, (7, 4))
    width = 0.8 / max(1, len(series))
    for place, (name, values) in enumerate(series.items()):
        axes.bar([at + place * width for at in range(len(groups))], values, width, label=name)
    axes.set_xticks([at + width * (len(series) - 1) / 2 for at in range(len(groups))], groups)
    _label(axes, "", y, legend=len(series) > 1)
    return _svg(figure)


def points(panels: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, names: Sequence[str] = ()) -> str:
    """Return, as SVG, one panel of points each, side by side; a name is written beside each of the first points."""
    figure, all_axes = _panels(len(panels), (7 * len(panels), 5))
    for axes, (title, (xs, ys)) in zip(all_axes, panels.items(), strict=True):
        axes.scatter(xs, ys, s=4, alpha=0.4)
        for name, at_x, at_y in zip(names, xs, ys, strict=False):
            axes.annotate(name, (at_x, at_y), fontsize=6, parse_math=False)
        axes.set_title(title)
    return _svg(figure)


def _panels(count: int, inches: tuple[float, float]) -> tuple[Figure, list[Any]]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(inches)
        return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _label(axes: Any, x: str, y: str, *, legend: bool) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if legend:
        axes.legend(frameon=False)


def _svg(figure: Figure) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
