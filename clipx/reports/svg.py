"""A figure as SVG that stands in an HTML page and takes its colours from it, light or dark."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

from clipx.reports.figures import FAINT, GRID, INK
from clipx.reports.suite_figures import HALO, METHOD_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIABLES = {INK: "--ink", FAINT: "--faint", GRID: "--grid", HALO: "--card"} | {
    colour: f"--line-{place + 1}" for place, colour in enumerate(METHOD_COLOURS)
}
"""CSS variable of the page that takes the place of each colour."""


def inline_svg(figure: Figure, *, prefix: str, label: str) -> str:
    """The figure as one ``<svg>`` element, transparent, its colours CSS variables of the page.

    Args:
        figure: drawn in the house's colours; others stay as they are.
        prefix: put before every id, so that several figures can stand in one page.
        label: what a screen reader says.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    target = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": prefix}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    # Matplotlib's style element is for a file of its own: in a page its rules would hold for everything.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(rf"(?<=[:\s]){re.escape(colour)}\b", f"var({variable})", svg, flags=re.IGNORECASE)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    width = figure.get_size_inches()[0] * 96
    head = f'<svg role="img" aria-label="{escape(label)}" style="max-width:{width:.0f}px"'
    return svg.replace("<svg", head, 1).strip()
