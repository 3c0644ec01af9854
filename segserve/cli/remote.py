"""`--server`: the same commands on a service elsewhere. The token comes from the environment or config.toml: a command
line is seen by everybody on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segserve import config as settings
from segserve.errors import UsageError

if TYPE_CHECKING:
    from segserve.client import Remote
    from segserve.pipeline import Reporter

SERVER = click.option(
    "--server",
    metavar="URL",
    envvar="SEGSERVE_SERVER",
    help="Ask this service instead of this machine.  [SEGSERVE_SERVER; SEGSERVE_TOKEN]",
)
# What only has a meaning where the executor runs, and a service decides itself.
_OURS = ("dry_run", "experiment", "keep", "no_wait", "memory", "cpus", "offline", "committed", "allow_unreachable",
         "submodules", "python", "no_lock")  # fmt: skip


@contextmanager
def opened(server: str, config: Path | None, reporter: Reporter) -> Iterator[Remote]:
    """The verbs on a server.

    Raises:
        UsageError: it is no address.
    """
    from segserve.client import Connection, Remote

    chosen = settings.load(config)
    known = {address.rstrip("/"): token for address, token in chosen.client.tokens.items()}
    token = os.environ.get("SEGSERVE_TOKEN") or known.get(server.rstrip("/"), "")
    with Connection(server, token, note=reporter.note) as connection:
        yield Remote(connection, reporter, results=chosen.run.results)


def refuse_local_options(context: click.Context) -> None:
    """Options that were given and would be without effect are an error.

    Raises:
        UsageError: with the first of them.
    """
    for name in _OURS:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} cannot be given with --server.", hint="The service decides that.")


def started_text(server: str, job: str) -> str:
    """What to do with a job that runs elsewhere."""
    return "\n".join(
        (
            f"Job {job} is in the queue of {server}.",
            f"Next    segserve fetch {job} --server {server}  (waits for the result, and brings it here)",
        )
    )
