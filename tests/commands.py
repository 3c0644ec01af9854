"""Commands in tests: what one has printed, and what MLflow says about its run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.servers import call

SEGSERVE = [sys.executable, "-m", "segserve"]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout, which must be exactly one JSON document."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """What the document says about a failure."""
        return self.document["error"]


Command = Callable[..., Done]


def run_of(url: str) -> dict[str, Any]:
    """The MLflow run that a result's URL shows, by REST."""
    server, _, rest = url.partition("/#/")
    found: dict[str, Any] = call(server, "GET", f"runs/get?run_id={rest.rsplit('/', 1)[1]}")["run"]
    return found


def status_of(url: str) -> str:
    """`RUNNING`, `FINISHED`, `FAILED` or `KILLED`."""
    return str(run_of(url)["info"]["status"])


def options_in(text: str) -> set[str]:
    """The long options that a text speaks of."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
