"""A picture of one trace as SVG, from the spans that a collector has received."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from tests.servers.otlp import Span

LEFT: Final = 210  # pixels
WIDTH: Final = 900
ROW: Final = 22
TOP: Final = 34
COLOURS: Final = {"POST": "#6b5b95", "task": "#444", "link": "#8aa", "reconcile": "#8aa"}
PHASE: Final = "#3a7ca5"
FAILED: Final = "#b3261e"
STYLE: Final = "text{font:12px sans-serif;fill:#222}.t{fill:#666}.g{stroke:#ddd}"


def draw(spans: Sequence[Span]) -> str:
    """Rows in the order of begin, parents before their children; the scale is in seconds from the first begin."""
    begin, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
    scale = (WIDTH - LEFT - 90) / max(1, end - begin)
    rows = list(_rows(spans, _root(spans), 0))
    height = TOP + ROW * len(rows) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="One trace of a task">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for tick in range(6):
        x = LEFT + (end - begin) * scale * tick / 5
        parts.append(f'<line class="g" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height}"/>')
        parts.append(
            f'<text class="t" x="{x:.1f}" y="18" text-anchor="middle">{(end - begin) * tick / 5e9:.2f} s</text>'
        )
    for index, (span, depth) in enumerate(rows):
        y, x = TOP + ROW * index, LEFT + (span.start_ns - begin) * scale
        width = max(2.0, (span.end_ns - span.start_ns) * scale)
        colour = FAILED if span.failed else COLOURS.get(span.name.split(" ")[0], PHASE)
        parts += [
            f'<text x="{8 + 14 * depth}" y="{y + 12}">{escape(span.name)}</text>',
            f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="13" rx="2" fill="{colour}"/>',
            f'<text class="t" x="{x + width + 4:.1f}" y="{y + 12}">{_duration(span)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _root(spans: Sequence[Span]) -> str:
    """The id that is a parent and not a span: the client's."""
    ids = {span.span_id for span in spans}
    return next(span.parent_id for span in spans if span.parent_id not in ids)


def _rows(spans: Sequence[Span], parent: str, depth: int) -> list[tuple[Span, int]]:
    found: list[tuple[Span, int]] = []
    for span in sorted((s for s in spans if s.parent_id == parent), key=lambda s: (s.start_ns, -s.end_ns)):
        found += [(span, depth), *_rows(spans, span.span_id, depth + 1)]
    return found


def _duration(span: Span) -> str:
    ms = (span.end_ns - span.start_ns) / 1e6
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.0f} ms"
