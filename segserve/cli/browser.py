"""Showing a page to the person at this machine."""

from __future__ import annotations

import webbrowser

from segserve.cli import render


def show(address: str) -> None:
    """Open a page in `$BROWSER` or the desktop's browser; where there is none, say what to open."""
    if not webbrowser.open(address):
        render.say(f"There is no browser here. Open {address} in yours.")
