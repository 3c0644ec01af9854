"""`ExecutorRef` ⇄ text. The only place that knows what `#` and `@` mean, and that takes credentials out of URLs.

    REF = <repo>[@<rev>][#<fragment>]      fragment = entry | subdir:entry | subdir:

A fragment with `/` and no `:` is a subdirectory (the form of MLflow's own URIs). The first `#` splits; then the last
`@` behind the last `/` or `:` of what is left, so that `git@host:org/repo` has no revision. `--rev` and `--entry`
say the same without parsing (a branch `feature/x` needs `--rev`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from segserve.errors import InvalidRef

DEFAULT_ENTRY = "main"
FULL_SHA = re.compile(r"[0-9a-f]{40}")
SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# git-check-ref-format(1), tightened: nothing that starts an option, a range or a revision expression.
_BAD_REVISION = re.compile(r"^-|[\s\x00-\x1f\x7f~^:?*\[\\]|\.\.|@\{|//|^/|/$|\.lock$|\.$|^@$")
_TREE = re.compile(r"^(?P<repo>/.+?)(?:/-)?/(?:tree|commit)/(?P<rest>.+?)/?$")
_SCP = re.compile(r"^(?:(?P<user>[A-Za-z0-9._-]+)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^:].*)$")
_GIT_SUFFIX = ".git"


class RepoKind(StrEnum):
    """How a repository is reached."""

    HTTPS = "https"
    SSH = "ssh"
    FILE = "file"  # file:// URL: a repository, cloned like a remote one
    PATH = "path"  # a local folder: the work tree runs as it is
    NAME = "name"  # a registered short name, not resolved yet


@dataclass(frozen=True, slots=True)
class Credentials:
    """User and secret that stood in a URL. Never printed, stored or put on a command line."""

    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ExecutorRef:
    """What the user named. `repo` never has credentials; `tree`: `rev` was pasted as `/tree/<rev>[/<subdir>]`."""

    repo: str
    kind: RepoKind
    rev: str | None = None
    subdir: str = ""
    entry: str = DEFAULT_ENTRY
    tree: bool = False
    credentials: Credentials | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        rev = f"@{self.rev}" if self.rev else ""
        fragment = f"{self.subdir}:{self.entry}" if self.subdir else self.entry
        return f"{self.repo}{rev}#{fragment}"

    @property
    def name(self) -> str:
        """A short name fit for file names: the last part of subdirectory or repository."""
        last = PurePosixPath(self.subdir or self.repo.replace(":", "/").rstrip("/")).name.removesuffix(_GIT_SUFFIX)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "executor"


@dataclass(frozen=True, slots=True)
class Pin:
    """An executor at a commit: repository URL without credentials, 40 hex digits, subdirectory (POSIX or empty)."""

    repo: str
    sha: str
    subdir: str = ""

    def __post_init__(self) -> None:
        if not FULL_SHA.fullmatch(self.sha):
            raise ValueError(f"a pin needs a full commit id, not {self.sha!r}")

    def __str__(self) -> str:
        return f"{self.repo}@{self.sha}" + (f"#{self.subdir}:" if self.subdir else "")


def parse(text: str, *, rev: str | None = None, entry: str | None = None) -> ExecutorRef:
    """Read a REF. `rev` and `entry` win over nothing and conflict with what the text says.

    Raises:
        InvalidRef: the text is no repository, or hostile, or says something twice.
    """
    if not text or not text.isprintable():
        raise InvalidRef("An executor is named by a repository, for example https://host/group/repo#main.")
    location, hash_sign, fragment = text.partition("#")
    subdir, fragment_entry = _fragment(fragment) if hash_sign else ("", "")
    if entry and fragment_entry and entry != fragment_entry:
        raise InvalidRef(f"'#{fragment}' and --entry {entry} name two entry points.", hint="Leave one of them out.")
    if rev is None:
        location, rev = _split_revision(location)
    ref = _repository(location)
    if rev is not None and ref.rev is not None and rev != ref.rev:
        raise InvalidRef(f"The URL says revision '{ref.rev}' and '{rev}' is asked for too.", hint="Leave one out.")
    if rev is not None:
        ref = replace(ref, rev=check_revision(rev), tree=False)
    return replace(ref, subdir=check_subdir(subdir), entry=entry or fragment_entry or DEFAULT_ENTRY)


def check_revision(rev: str) -> str:
    """`rev` if it can be the name of a branch, a tag or a commit.

    Raises:
        InvalidRef: it cannot.
    """
    if not rev or len(rev) > 250 or _BAD_REVISION.search(rev):
        raise InvalidRef(f"'{rev}' is no name of a branch, tag or commit.")
    return rev


def check_subdir(subdir: str) -> str:
    """`subdir` normalised to POSIX without leading or trailing slash.

    Raises:
        InvalidRef: it is absolute or climbs out of the repository.
    """
    path = PurePosixPath(subdir)
    if path.is_absolute() or ".." in path.parts or "\\" in subdir:
        raise InvalidRef(f"'{subdir}' is no folder inside the repository.")
    return "" if str(path) == "." else str(path)


def _fragment(fragment: str) -> tuple[str, str]:
    if ":" in fragment:
        subdir, _, entry = fragment.rpartition(":")
        return subdir, entry
    return (fragment, "") if "/" in fragment else ("", fragment)


def _split_revision(location: str) -> tuple[str, str | None]:
    cut = max(location.rfind("/"), location.rfind(":")) + 1
    head, tail = location[:cut], location[cut:]
    if not head and _is_folder(location):
        return location, None
    name, at, rev = tail.rpartition("@")
    return (head + name, rev) if at and (head or name) else (location, None)


def _is_folder(location: str) -> bool:
    return Path(location).expanduser().is_dir()


def _repository(location: str) -> ExecutorRef:
    if location.startswith("-") or "::" in location.split("/", 1)[0]:
        raise InvalidRef(f"'{location}' is no repository.", hint="Use https://, ssh://, user@host:path or a folder.")
    scheme = location.partition("://")[0].lower() if "://" in location else ""
    if scheme:
        return _url(location, scheme)
    if location.startswith(("/", "~", "./", "../")) or location in (".", ".."):
        return _folder(location)
    if match := _SCP.match(location):
        if match["path"].startswith("-"):
            raise InvalidRef(f"'{location}' is no repository.")
        return ExecutorRef(location, RepoKind.SSH)
    if SHORT_NAME.fullmatch(location):
        return ExecutorRef(location, RepoKind.NAME)
    return _folder(location)


def _folder(location: str) -> ExecutorRef:
    path = Path(location).expanduser()
    if not path.is_dir():
        raise InvalidRef(f"There is no folder '{location}'.", hint="Use a URL (https://…, ssh://…) or a folder.")
    return ExecutorRef(str(path.resolve()), RepoKind.PATH)


def _url(location: str, scheme: str) -> ExecutorRef:
    if scheme not in ("https", "ssh", "file"):
        hint = "Use https." if scheme in ("http", "git") else "Use https://, ssh://, file:// or a folder."
        raise InvalidRef(f"Repositories are not fetched over '{scheme}:'.", hint=hint)
    try:
        parts = urlsplit(location)
        host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    except ValueError as error:
        raise InvalidRef(f"'{location}' is no URL: {error}.") from None
    if scheme == "file":
        return ExecutorRef(f"file://{parts.path.rstrip('/')}", RepoKind.FILE)
    if not host or host.startswith("-") or not parts.path.strip("/"):
        raise InvalidRef(f"'{location}' lacks a host or a path.")
    if scheme == "ssh":
        # The user of an ssh URL is part of the address; a password there is a secret that ssh would not use.
        user = f"{parts.username}@" if parts.username else ""
        if user.startswith("-"):
            raise InvalidRef(f"'{location}' is no repository.")
        return ExecutorRef(f"ssh://{user}{host}{parts.path.rstrip('/')}", RepoKind.SSH)
    credentials = None
    if parts.username is not None:
        credentials = Credentials(unquote(parts.username), unquote(parts.password or ""))
    path, rev = parts.path.rstrip("/"), None
    if match := _TREE.match(path):
        path, rev = match["repo"], check_revision(unquote(match["rest"]))
    repo = urlunsplit(("https", host, path, "", ""))
    return ExecutorRef(repo, RepoKind.HTTPS, rev=rev, tree=rev is not None, credentials=credentials)
