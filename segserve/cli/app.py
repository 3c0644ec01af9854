"""`segserve app`: the service for one person, in the browser."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

import click

from segserve import api
from segserve.cli import browser, options, render
from segserve.config import ServerSettings
from segserve.errors import NoSlot, UsageError
from segserve.layout import Home
from segserve.store import locked

_KEPT = ("max_body_mb", "max_images", "max_connections", "max_streams", "max_waiting", "patience_s", "sync_wait_s")
_OPENER = """\
<!doctype html><html lang="en"><meta charset="utf-8"><title>segserve</title>
<meta http-equiv="refresh" content="0; url={url}"><p><a href="{url}">Open segserve</a></p></html>
"""


@click.command("app")
@click.option("--no-browser", is_flag=True, help="Only print the link.")
@options.CONFIG
def app_command(no_browser: bool, config: Path | None) -> None:
    """Open segserve's page in your browser: drop images, choose an executor, look at the result.

    For you alone: it listens on this machine, at a port of its own, and lets in whoever opens the printed link first.
    Ctrl-C stops it; jobs that run go on, and are there the next time.
    """
    from segserve.server import run

    with api.session(config=config) as session:
        home, server = session.ctx.home, session.ctx.settings.server
        _refuse_second(home)
        kept = {name: getattr(server, name) for name in _KEPT}
        opener = home.temporary / f"app-{os.getpid()}.html"

        def started(url: str, link: str) -> None:
            render.say(f"segserve is at {url}{link}  (once, within five minutes; Ctrl-C stops it)")
            if not no_browser:
                browser.show(_written(opener, url + link))

        try:
            run.serve_alone(session, ServerSettings(host="127.0.0.1", port=0, **kept), started=started)
        finally:
            opener.unlink(missing_ok=True)


def _refuse_second(home: Home) -> None:
    try:
        with locked(home.scheduler_lock, blocking=False):
            return
    except NoSlot:
        raise UsageError(
            f"A service works on {home.path} already.", hint="Open its page; or SEGSERVE_HOME names another folder."
        ) from None


def _written(path: Path, url: str) -> str:
    """The link in a file that only its owner can read: the arguments of a browser are seen by everybody."""
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
        stream.write(_OPENER.format(url=escape(url)))
    return path.as_uri()
