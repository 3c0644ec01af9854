"""`ExecutorRef` ⇄ text. The only place that knows what `#` and `@` mean, and that takes credentials out of URLs.

    REF = <repo>[@<rev>][#<fragment>]      fragment = entry | subdir:entry | subdir:

A fragment with `/` and no `:` is a subdirectory (the form of MLflow's own URIs). The first `#` splits; then the last
`@` behind the last `/` or `:` of what is left, so that `git@host:org/repo` has no revision. `--rev` and `--entry`
say the same without parsing (a branch `feature/x` needs `--rev`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from segserve.errors import InvalidRef

DEFAULT_ENTRY = "main"
FULL_SHA = re.compile(r"[0-9a-f]{40}")
SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# git-check-ref-format(1), tightened: nothing that starts an option, a range or a revision expression.
_BAD_REVISION = re.compile(r"^-|[\s~^:?*\[\\]|\.\.|@\{|//|^/|/$|(^|/)\.|\.lock(/|$)|\.$|^@$")
# What people paste from a browser: GitLab's /-/tree/… names the end of the project, GitHub's needs owner/repository.
_GITLAB_TREE = re.compile(r"^(?P<repo>/.+?)/-/(?:tree|commit)/(?P<rest>.+)$")
_TREE = re.compile(r"^(?P<repo>/[^/]+/[^/].*?)/(?:tree|commit)/(?P<rest>.+)$")
_SCP = re.compile(r"^(?P<user>[A-Za-z0-9._][A-Za-z0-9._-]*@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^:].*)$")
_AT_INSIDE = re.compile(r"[^/@]@[^/]*/")
_GIT_SUFFIX = ".git"
_DEFAULT_PORTS = {"https": 443, "ssh": 22}


class RepoKind(StrEnum):
    """How a repository is reached."""

    HTTPS = "https"
    SSH = "ssh"
    FILE = "file"  # file:// URL: a repository, cloned like a remote one
    PATH = "path"  # a local folder: the work tree runs as it is
    NAME = "name"  # a registered short name, not resolved yet


@dataclass(frozen=True, slots=True)
class Credentials:
    """User and secret that stood in a URL. Never printed, stored or put on a command line.

    The user is hidden as well: `https://TOKEN@host` has its secret there.
    """

    user: str = field(repr=False)
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ExecutorRef:
    """What the user named. `repo` never has credentials; `tree`: `rev` was pasted as `/tree/<rev>[/<subdir>]`.

    `repo` is a URL (https, ssh, file), an scp-style address, an absolute path (`PATH`) or a short name, by `kind`.
    """

    repo: str
    kind: RepoKind
    rev: str | None = None
    subdir: str = ""
    entry: str = DEFAULT_ENTRY
    tree: bool = False
    credentials: Credentials | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """Text that `parse` takes; a revision with a slash that was not pasted is said by `--rev`, as on a shell."""
        location, option = self.repo, ""
        if self.rev and self.tree:
            location += f"/tree/{quote(self.rev)}"
        elif self.rev and "/" in self.rev:
            option = f" --rev {self.rev}"
        elif self.rev:
            location += f"@{self.rev}"
        return f"{location}#{self._fragment}{option}"

    @property
    def _fragment(self) -> str:
        plain = not self.subdir and "/" not in self.entry and ":" not in self.entry
        return self.entry if plain else f"{self.subdir}:{self.entry}"

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
    """Read a REF. `rev` and `entry` say it without parsing and conflict with what the text says otherwise.

    Raises:
        InvalidRef: the text is no repository, or hostile, or says something twice.
    """
    if not (text + (entry or "")).isprintable():
        raise InvalidRef("The reference holds a control character.")
    location, _, fragment = text.partition("#")
    if not location:
        raise InvalidRef("An executor is named by a repository, for example https://host/group/repo#main.")
    subdir, fragment_entry = _split_fragment(fragment)
    if entry and fragment_entry and entry != fragment_entry:
        raise InvalidRef(f"'#{fragment}' and --entry {entry} name two entry points.", hint="Leave one of them out.")
    location, said = _split_revision(location, take=rev is None)
    ref = _repository(location)
    rev = said if rev is None else rev
    if rev is not None and ref.rev is not None and rev != ref.rev:
        raise InvalidRef(f"The URL says revision '{ref.rev}' and '{rev}' is asked for too.", hint="Leave one out.")
    if rev is not None and ref.rev is None:
        ref = replace(ref, rev=check_revision(rev))
    return replace(ref, subdir=check_subdir(subdir), entry=entry or fragment_entry or DEFAULT_ENTRY)


def of_pin(pin: Pin) -> str:
    """A reference that names this commit."""
    return f"{pin.repo}@{pin.sha}" + (f"#{pin.subdir}:" if pin.subdir else "")


def from_model(text: str) -> ExecutorRef:
    """What an executor wrote into `model` of its output.json: its repository and a commit, mostly a short one.

    The public executors join them by `#`, some by `@`.

    Raises:
        InvalidRef: it names no repository with a commit.
    """
    found = re.fullmatch(r"(?P<repo>\S+)[#@](?P<sha>[0-9a-f]{4,40})", text.strip())
    if found is None:
        hint = "It should end with #<commit>. Run the executor itself: segserve run REPO@COMMIT."
        raise InvalidRef(f"model '{text[:100]}' does not say which commit wrote this.", hint=hint)
    return parse(found["repo"], rev=found["sha"])


def check_revision(rev: str) -> str:
    """`rev` if it can be the name of a branch, a tag or a commit.

    Raises:
        InvalidRef: it cannot.
    """
    if not rev or len(rev) > 250 or not rev.isprintable() or _BAD_REVISION.search(rev):
        raise InvalidRef(f"{rev!r} is no name of a branch, tag or commit.")
    return rev


def check_subdir(subdir: str) -> str:
    """`subdir` normalised to POSIX without leading or trailing slash.

    Raises:
        InvalidRef: it is absolute, climbs out of the repository or goes into its `.git`.
    """
    path = PurePosixPath(subdir)
    hidden = any(part == ".." or part.lower() == _GIT_SUFFIX for part in path.parts)
    if path.is_absolute() or hidden or "\\" in subdir or not subdir.isprintable():
        raise InvalidRef(f"{subdir!r} is no folder inside the repository.")
    return "" if str(path) == "." else str(path)


def canonical(repo: str) -> str:
    """One text for all ways to write the same remote: host in lower case, no default port, no `.git`, no slash behind.

    Not for fetching: some servers want the `.git`. A `file://` URL keeps it, it is another folder there.
    """
    parts = urlsplit(repo)
    if parts.scheme in _DEFAULT_PORTS:
        return urlunsplit((parts.scheme, _host(parts, with_user=True), _bare(parts.path), "", ""))
    match = None if "://" in repo else _SCP.match(repo)
    if match:
        return f"{match['user'] or ''}{match['host'].lower()}:{_bare(match['path'])}"
    return repo.rstrip("/")


def check_pattern(pattern: str) -> str:
    """`pattern` if it can stand in a list of repositories (see `permitted`).

    Raises:
        ValueError: it is no address, or not written plainly, or has credentials.
    """
    below = pattern.removesuffix("*").rstrip("/")
    parts = urlsplit(pattern)
    known = parts.scheme in (*_DEFAULT_PORTS, "file") if "://" in pattern else bool(_SCP.match(below))
    if not known or "*" in below or (parts.scheme == "https" and "@" in parts.netloc) or not _is_plain(below):
        raise ValueError(
            f"'{_shown(pattern)}' is no address of a repository (https://host/group/repo) or of all below a group"
            " (https://host/group/), without user or token"
        )
    return pattern


def permitted(repo: str, patterns: Iterable[str]) -> bool:
    """Whether a repository (a URL without credentials) is one of `patterns`.

    A pattern is an address, or ends with a slash (or `/*`): then it stands for everything below, part by part, so that
    `https://host/group/` never means `https://host/group-evil`. An address that a server may read differently than we
    do (`..`, `//`, `%`) is none of them.
    """
    address = canonical(repo)
    return _is_plain(address) and any(_covers(pattern, address) for pattern in patterns)


def _covers(pattern: str, address: str) -> bool:
    group = pattern.removesuffix("*")
    if group.endswith("/"):
        return address.startswith(f"{canonical(group.rstrip('/'))}/")
    return address == canonical(pattern)


def _is_plain(address: str) -> bool:
    scheme, is_url, rest = address.partition("://")
    path = rest.removeprefix("/") if scheme == "file" else rest if is_url else address
    unclear = "\\" in path or ("%" in path and scheme != "file") or not path.isprintable()
    return not unclear and not {"", ".", ".."} & set(re.split("[/:]", path) if not is_url else path.split("/"))


def remote_url(text: str) -> str:
    """The https or ssh address in `text` (the `origin` of some clone) without credentials; empty if it is none."""
    try:
        ref = _repository(text) if "://" in text or _SCP.match(text) else None
    except InvalidRef:
        return ""
    return ref.repo if ref and ref.kind in (RepoKind.HTTPS, RepoKind.SSH) and text.isprintable() else ""


def _bare(path: str) -> str:
    return path.rstrip("/").removesuffix(_GIT_SUFFIX).rstrip("/")


def _split_fragment(fragment: str) -> tuple[str, str]:
    if ":" in fragment:
        subdir, _, entry = fragment.rpartition(":")
        return subdir, entry
    return (fragment, "") if "/" in fragment else ("", fragment)


def _split_revision(location: str, *, take: bool) -> tuple[str, str | None]:
    cut = max(location.rfind("/"), location.rfind(":")) + 1
    name, at, rev = location[cut:].rpartition("@")
    _, is_url, rest = location.partition("://")
    no_path = is_url and "/" not in rest  # that '@' ends user and password
    if not take or not at or not (cut or name) or no_path or _is_folder(location):
        return location, None
    return location[:cut] + name, rev


def _shown(location: str) -> str:
    """`location` for messages, without anything that may be a user or a password."""
    scheme, is_url, rest = location.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}" if is_url else location


def _is_folder(location: str) -> bool:
    try:
        return "://" not in location and Path(location).expanduser().is_dir()
    except (OSError, RuntimeError):  # a name too long for a file, a user that does not exist
        return False


def _repository(location: str) -> ExecutorRef:
    if location.startswith("-") or "::" in location.split("/", 1)[0]:
        raise InvalidRef(f"'{location}' is no repository.", hint="Use https://, ssh://, user@host:path or a folder.")
    if "://" in location:
        return _url(location, location.partition("://")[0].lower())
    if location.startswith(("/", "~", "./", "../")) or location in (".", ".."):
        return _folder(location)
    if match := _SCP.match(location):
        if match["path"].startswith("-"):
            raise InvalidRef(f"'{location}' is no repository.")
        _refuse_revision_inside(match["path"])
        return ExecutorRef(f"{match['user'] or ''}{match['host'].lower()}:{match['path'].rstrip('/')}", RepoKind.SSH)
    if SHORT_NAME.fullmatch(location):
        return ExecutorRef(location, RepoKind.NAME)
    return _folder(location)


def _folder(location: str) -> ExecutorRef:
    if not _is_folder(location):
        _refuse_revision_inside(location)
        raise InvalidRef(f"There is no folder '{location}'.", hint="Use a URL (https://…, ssh://…) or a folder.")
    return ExecutorRef(str(Path(location).expanduser().resolve()), RepoKind.PATH)


def _refuse_revision_inside(path: str) -> None:
    # Only the last part of a path can carry @rev; `repo@feature/x` would otherwise name a repository that nobody has.
    if _AT_INSIDE.search(path):
        raise InvalidRef(
            "The path of the repository has an '@' inside.",
            hint="A branch with a slash is said by an option: --rev feature/x",
        )


def _url(location: str, scheme: str) -> ExecutorRef:
    if scheme not in ("https", "ssh", "file"):
        hint = "Use https." if scheme in ("http", "git") else "Use https://, ssh://, file:// or a folder."
        raise InvalidRef(f"Repositories are not fetched over '{scheme}:'.", hint=hint)
    try:
        parts = urlsplit(location)
        host = _host(parts, with_user=scheme == "ssh")
    except ValueError:  # its text quotes the URL, and with it a password that holds a slash
        hint = "Special characters in a user name or password are written as %XX there."
        raise InvalidRef(f"The {scheme} URL has a malformed host or port.", hint=hint) from None
    if scheme == "file":
        return _file_url(location, parts)
    if not parts.hostname or host.startswith("-") or parts.hostname.startswith("-") or not parts.path.strip("/"):
        raise InvalidRef(f"'{_shown(location)}' lacks a host or a path.")
    if scheme == "ssh":
        # The user of an ssh URL is part of the address; a password there is a secret that ssh would not use.
        _refuse_revision_inside(parts.path)
        return ExecutorRef(f"ssh://{host}{parts.path.rstrip('/')}", RepoKind.SSH)
    path, rev = _split_tree(parts.path.rstrip("/"))
    _refuse_revision_inside(f"{path}/" if rev else parts.path)
    repo = urlunsplit(("https", host, path, "", ""))
    return ExecutorRef(repo, RepoKind.HTTPS, rev=rev, tree=rev is not None, credentials=_credentials(parts))


def _file_url(location: str, parts: SplitResult) -> ExecutorRef:
    if parts.hostname not in (None, "localhost") or not parts.path.strip("/"):
        raise InvalidRef(
            f"'{_shown(location)}' names no folder.", hint="A file URL has three slashes: file:///folder/repo"
        )
    return ExecutorRef(f"file://{parts.path.rstrip('/')}", RepoKind.FILE)


def _split_tree(path: str) -> tuple[str, str | None]:
    match = _GITLAB_TREE.match(path) or _TREE.match(path)
    if not match:
        return path, None
    rev = unquote(match["rest"])
    # Where the branch ends and the folder begins is known only when the branches are: both rules hold for the whole.
    check_subdir(rev)
    check_revision(re.sub(r"\s|(?<=/)\.", "_", rev) if rev.isprintable() else rev)
    return match["repo"], rev


def _host(parts: SplitResult, *, with_user: bool) -> str:
    """Host in lower case (IPv6 in brackets) and a port that is not the default one."""
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port and parts.port != _DEFAULT_PORTS.get(parts.scheme) else ""
    return f"{parts.username}@{host}{port}" if with_user and parts.username else f"{host}{port}"


def _credentials(parts: SplitResult) -> Credentials | None:
    if parts.username is None:
        return None
    user, secret = unquote(parts.username), unquote(parts.password or "")
    # They go to git line by line (gitcredentials(7)): a line break inside would let them speak about another host.
    if not (user + secret).isprintable():
        raise InvalidRef("The credentials in the URL hold a control character.")
    return Credentials(user, secret)
