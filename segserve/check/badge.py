"""A badge for a README, as SVG that needs no other server."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from segserve.findings import Finding, Severity, at_least

_GREEN, _YELLOW, _RED = "#3c873a", "#b08800", "#b62324"
_CHARACTER = 7  # pixels, of Verdana at 11 px, a little generous


def badge(findings: Sequence[Finding]) -> str:
    """`segserve | passing`, with warnings counted; red from the first error on."""
    errors, warnings = len(at_least(findings, Severity.ERROR)), len(at_least(findings, Severity.WARNING))
    if errors:
        return _svg(f"{errors} error{'s' * (errors > 1)}", _RED)
    if warnings:
        return _svg(f"{warnings} warning{'s' * (warnings > 1)}", _YELLOW)
    return _svg("passing", _GREEN)


def _svg(text: str, colour: str) -> str:
    name = "segserve"
    left, right = (_CHARACTER * len(word) + 12 for word in (name, text))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" \
aria-label="{name}: {escape(text)}">
<title>{name}: {escape(text)}</title>
<rect width="{left}" height="20" fill="#444"/><rect x="{left}" width="{right}" height="20" fill="{colour}"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{left / 2}" y="14">{name}</text><text x="{left + right / 2}" y="14">{escape(text)}</text></g></svg>
"""
