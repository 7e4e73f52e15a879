"""The medians as a plot: an SVG, made by hand so that equal results give equal bytes. Pure.

Colours come from a style sheet inside, which follows the reader's light or dark mode. Numbers stand
beside the bars, so that nothing has to be read from an axis.
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple
from xml.sax.saxutils import escape

from bench.contenders import AGENT, ALONE, MASQUERADE, PEER, WHEEL
from bench.crowd import AT_ONCE
from bench.results import Results
from bench.tables import calls_a_second

_WIDTH, _LEFT, _RIGHT = 760, 150, 110
_BAR, _GAP, _HEAD, _PANEL_GAP, _TOP = 20, 6, 30, 22, 16
_SHADES = {AGENT: "agent", ALONE: "alone", WHEEL: "alone", PEER: "go", MASQUERADE: "go"}
_STYLE = """\
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.title { font-weight: 600 }
.note { fill: #57606a }
.agent { fill: #1a7f64 }
.alone { fill: #7fc4b1 }
.go { fill: #8c959f }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .note { fill: #9198a1 }
  .agent { fill: #3fb98f }
  .alone { fill: #2b6f5b }
  .go { fill: #6e7681 }
}"""


class Bar(NamedTuple):
    """One bar: `text` is its value as it is written beside it."""

    name: str
    value: float
    text: str


class Panel(NamedTuple):
    """Bars that share a scale, which begins at zero."""

    title: str
    note: str
    bars: tuple[Bar, ...]


def svg(results: Results) -> str:
    """The plot of what was measured of ADD, DEL and calls at once.

    Raises ValueError when that is nothing.
    """
    drawn = panels(results)
    if not drawn:
        raise ValueError("nothing to plot: neither the scenario pod nor parallel was measured")
    body: list[str] = []
    y = _TOP
    for panel in drawn:
        body += _panel(panel, y)
        y += _HEAD + len(panel.bars) * (_BAR + _GAP) + _PANEL_GAP
    label = "; ".join(_spoken(panel) for panel in drawn)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}"'
            f' viewBox="0 0 {_WIDTH} {y}" role="img">',
            f"<title>{escape(label)}</title>",
            f"<style>\n{_STYLE}\n</style>",
            *body,
            "</svg>\n",
        ]
    )


def panels(results: Results) -> list[Panel]:
    """ADD, DEL, and ADDs and DELs at once, as far as they were measured."""
    found = [
        Panel(f"{what} of one pod", "median, ms: shorter is better", _medians(results, what))
        for what in ("ADD", "DEL")
    ]
    found += [
        Panel(f"{AT_ONCE} {what}s at once", "a second: longer is better", _rates(results, what))
        for what in ("ADD", "DEL")
    ]
    return [panel for panel in found if panel.bars]


def _sides(results: Results, scenario: str) -> list[str]:
    """Who is drawn: of podwire without an agent, the executable if it was there."""
    present = {series.contender for series in results.of(scenario)}
    alone = ALONE if ALONE in present else WHEEL
    return [side for side in (AGENT, alone, PEER, MASQUERADE) if side in present]


def _medians(results: Results, what: str) -> tuple[Bar, ...]:
    bars = []
    for side in _sides(results, "pod"):
        series = results.find("pod", what, side)
        if series is not None:
            ms = median(series.wall) / 1e6
            bars.append(Bar(side, ms, f"{ms:.1f} ms"))
    return tuple(bars)


def _rates(results: Results, what: str) -> tuple[Bar, ...]:
    rates = [(side, calls_a_second(results, what, side)) for side in _sides(results, "parallel")]
    return tuple(Bar(side, rate, f"{rate:.0f}/s") for side, rate in rates if rate)


def _panel(panel: Panel, y: int) -> list[str]:
    lines = [
        f'<text class="title" x="{_LEFT}" y="{y + 14}">{escape(panel.title)}'
        f'<tspan class="note" font-weight="400" dx="10">{escape(panel.note)}</tspan></text>'
    ]
    scale = (_WIDTH - _LEFT - _RIGHT) / max(bar.value for bar in panel.bars)
    for number, bar in enumerate(panel.bars):
        top = y + _HEAD + number * (_BAR + _GAP)
        middle = top + _BAR - 6
        length = max(1.0, bar.value * scale)
        lines += [
            f'<text x="{_LEFT - 10}" y="{middle}" text-anchor="end">{escape(bar.name)}</text>',
            f'<rect class="{_SHADES[bar.name]}" x="{_LEFT}" y="{top}" width="{length:.1f}"'
            f' height="{_BAR}" rx="3"/>',
            f'<text x="{_LEFT + length + 8:.1f}" y="{middle}">{escape(bar.text)}</text>',
        ]
    return lines


def _spoken(panel: Panel) -> str:
    return f"{panel.title}: {', '.join(f'{bar.name} {bar.text}' for bar in panel.bars)}"
