"""Where the CI of a new repository takes segserve from: a repository at a revision, as GitHub, GitLab, pip name it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import distributions
from urllib.parse import urlsplit

from segserve import refs
from segserve.errors import UsageError

_FORM = "Give https://host/owner/name@revision, with a tag or a commit."


@dataclass(frozen=True, slots=True)
class Source:
    """A published repository of segserve, without credentials, at a tag or commit."""

    url: str
    rev: str

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"git+{self.url}@{self.rev}"

    @property
    def action(self) -> str:
        """What `uses:` of a GitHub workflow takes; empty when the repository is elsewhere."""
        parts = urlsplit(self.url)
        return f"{_path(self.url)}@{self.rev}" if parts.hostname == "github.com" else ""

    @property
    def include(self) -> str:
        """The address of `gitlab/segserve-check.yml`, for `include: remote:`."""
        host = urlsplit(self.url).netloc
        if host == "github.com":
            return f"https://raw.githubusercontent.com/{_path(self.url)}/{self.rev}/gitlab/segserve-check.yml"
        return f"{self.url.removesuffix('.git')}/-/raw/{self.rev}/gitlab/segserve-check.yml"


def parse(text: str) -> Source:
    """`https://host/owner/name@revision`.

    Raises:
        UsageError: it is something else, or without a revision: what CI runs must not change by itself.
    """
    ref = refs.parse(text)
    if ref.kind is not refs.RepoKind.HTTPS or not ref.rev or ref.subdir:
        raise UsageError(f"'{ref}' is no place that CI can take segserve from.", hint=_FORM)
    return Source(ref.repo, ref.rev)


def installed() -> Source | None:
    """Where this segserve was installed from, if that was a repository: pip and uv write it down (PEP 610)."""
    for distribution in distributions(name="segserve"):
        record = json.loads(distribution.read_text("direct_url.json") or "{}")
        commit = record.get("vcs_info", {}).get("commit_id")
        if commit and str(record.get("url", "")).startswith("https://"):
            return parse(f"{record['url']}@{commit}")
    return None


def _path(url: str) -> str:
    return urlsplit(url).path.strip("/").removesuffix(".git")
