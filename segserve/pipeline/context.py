"""What every step of the pipeline works with: the home, the settings, the journal, somebody to tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from segserve.config import Settings
from segserve.journal import Journal
from segserve.layout import AttemptDir, Home, JobDir
from segserve.store import Store


class Reporter(Protocol):
    """Where progress goes (a terminal, a log, nowhere). Texts are for people; nothing parses them."""

    def phase(self, text: str) -> None:
        """A new step begins."""

    def note(self, text: str) -> None:
        """Worth knowing."""

    def warn(self, text: str) -> None:
        """Worth acting on."""

    def progress(self, done: int, total: int, what: str) -> None:
        """`done` of `total` items of the step: "12 of 40 images staged"."""

    def line(self, text: str) -> None:
        """A line of a build or of the executor."""


class QuietReporter:
    """Says nothing."""

    def phase(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, done: int, total: int, what: str) -> None: ...
    def line(self, text: str) -> None: ...


@dataclass
class Context:
    """The composition of one command."""

    home: Home
    settings: Settings = field(default_factory=Settings)
    reporter: Reporter = field(default_factory=QuietReporter)

    @cached_property
    def store(self) -> Store:
        """Mirrors and checkouts."""
        return Store(self.home)

    @cached_property
    def journal(self) -> Journal:
        """The record of jobs."""
        return Journal(self.home.database)


@dataclass(frozen=True, slots=True)
class Hold:
    """Who drives a job holds it by a fence, and works on one of its attempts."""

    job_id: str
    fence: int
    folder: JobDir
    number: int

    @property
    def attempt(self) -> AttemptDir:
        """The folder of the attempt."""
        return self.folder.attempt(self.number)
