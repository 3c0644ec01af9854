"""How git is started: fixed command lines, an environment of ours, little of the user's configuration.

Nothing that stands in a repository makes git start a program here: no hooks, no filters, no fsmonitor, no helper.
Settings and secrets go by `GIT_CONFIG_COUNT` and its kin, which count as `-c` does (they reach every git that this git
starts, and no file) but cannot be read from the process list: https://git-scm.com/docs/git-config#ENVIRONMENT
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from segserve import process, redact
from segserve.errors import BackendError, DiskFull, RepositoryUnreachable, SegserveError, UsageError
from segserve.refs import Credentials

OLDEST = (2, 32)  # GIT_CONFIG_GLOBAL came with 2.32, GIT_CONFIG_COUNT with 2.31; older ones ignore them silently

Settings = tuple[tuple[str, str], ...]

_FIXED: Settings = (
    ("core.hooksPath", os.devnull),
    ("core.fsmonitor", "false"),
    # A repository of the user's is only read: neither of these two may write beside its index.
    ("core.splitIndex", "false"),
    ("core.untrackedCache", "false"),
    # No process of git's stays behind, and nothing that a recorded pin needs is ever pruned from a mirror.
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("fetch.unpackLimit", "1"),
    ("submodule.recurse", "false"),
    ("advice.addEmbeddedRepo", "false"),
    # A transfer that has stopped ends after a minute instead of never.
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
)
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=30"
# The secret is in two variables of git's environment; the shell builtin reads them, so that no argv ever has it.
_HELPER = (
    '!f() { test "$1" = get || return 0; '
    'printf \'username=%s\\npassword=%s\\n\' "$SEGSERVE_GIT_USER" "$SEGSERVE_GIT_SECRET"; }; f'
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH")
_FOR_ALL = ("PATH", "TMPDIR", "GIT_EXEC_PATH", *_PROXIES, *_CERTIFICATES)
# What a user may say about connections by variables instead of by configuration.
_FOR_USERS = (
    *("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT", "GIT_SSL_CERT", "GIT_SSL_KEY", "GIT_SSL_NO_VERIFY"),
    *("GIT_PROXY_SSL_CAINFO", "GIT_PROXY_SSL_CERT", "GIT_PROXY_SSL_KEY", "GIT_HTTP_PROXY_AUTHMETHOD"),
)
_HANDED_ON = re.compile(r"(?s)credential\..*|http\..*|url\..*\.insteadof|core\.sshcommand|safe\.directory")


@dataclass(frozen=True, slots=True)
class Access:
    """On whose behalf git speaks to remotes, and over which protocols.

    `local_user`: helpers and ssh of the user may be used, so git sees the user's variables (never `GIT_*` ones but
    those about connections). `settings` are (key, value) of the user's configuration. `credentials` are for URLs that
    begin with `scope` (https://host) and for nothing else.
    """

    local_user: bool = False
    protocols: tuple[str, ...] = ("https", "ssh")
    settings: Settings = field(default=(), repr=False)
    credentials: Credentials | None = None
    scope: str = ""

    def to(self, url: str, credentials: Credentials | None) -> Access:
        """The same access with the credentials that stood in `url`."""
        parts = urlsplit(url)
        return replace(self, credentials=credentials, scope=f"{parts.scheme}://{parts.netloc}") if credentials else self

    def hide(self, text: str) -> str:
        """`text` without secrets, those that look like one and those that we know."""
        if self.credentials:
            for secret in (self.credentials.secret, self.credentials.user if not self.credentials.secret else ""):
                for form in (secret, quote(secret, safe="")):
                    text = text.replace(form, redact.MASK) if form else text
        return redact.text(text)


HERE = Access(protocols=("file",))  # for our own mirrors: no network, nobody's configuration


class GitFailed(Exception):
    """A git command that ended with an error. `stderr` is redacted."""

    def __init__(self, command: str, stderr: str) -> None:
        self.stderr = stderr
        super().__init__(f"git {command}: {self.deciding}")

    @property
    def deciding(self) -> str:
        """The lines that say why."""
        lines = [line.strip() for line in self.stderr.splitlines()]
        telling = [line for line in lines if line and not _NOISE.match(line)]
        return "\n".join(telling[-4:])

    @property
    def corrupt(self) -> bool:
        """Whether an object store is damaged (it may be the mirror's or the remote's)."""
        return bool(_CORRUPT.search(self.stderr))

    @property
    def lock_file(self) -> Path | None:
        """The lock file in the way, if that was it."""
        match = _LOCKED.search(self.stderr)
        return Path(match[1]) if match else None


_NOISE = re.compile(
    r"hint:|Please make sure you have|and the repository exists|To add an exception for|warning: redirect"
)
_LOCKED = re.compile(r"Unable to create '(.+\.lock)': File exists")
_CORRUPT = re.compile(
    r"\bcorrupt|object file .* is empty|bad (?:object|tree|pack|index|signature|config|HEAD)|not a git repository"
    r"|inflate|unknown object type|unable to (?:read|parse|unpack)|does not match index|index file .* is too small"
    r"|invalid sha1 pointer|does not point to a valid object|missing (?:blob|tree|commit|object|necessary)"
    r"|did not send all necessary objects|cannot be accessed|far too short to be a packfile"
)

_OWNER = "The folder belongs to somebody else, so git does not trust it: git config --global --add safe.directory "
_PRIVATE = (
    "Check the address. For a private repository set up a git credential helper or use ssh "
    "(user@host:group/repo); https://USER:TOKEN@host/… works too and the token is not stored."
)
# What git says → whose turn it is. The first that fits wins.
_CAUSES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"dubious ownership"), "is owned by another user", _OWNER),
    (
        re.compile(r"Could not resolve (?:host|hostname)|Name or service not known|Temporary failure in name"),
        "cannot be reached: its host is unknown here",
        "Check the address and the network; behind a proxy set https_proxy.",
    ),
    (
        re.compile(r"certificate|SSL_ERROR|SSL:"),
        "cannot be reached: its certificate is not trusted here",
        "Set SSL_CERT_FILE (or git's http.sslCAInfo) to your site's certificates.",
    ),
    (
        re.compile(r"Host key verification failed|REMOTE HOST IDENTIFICATION"),
        "cannot be reached: its ssh host key is not known here",
        "Connect once by hand (ssh user@host) and check the key.",
    ),
    (
        re.compile(r"Permission denied \(|Too many authentication failures"),
        "refuses us: no ssh key fits",
        "Add the key to ssh-agent (ssh-add); segserve never asks for a passphrase.",
    ),
    (
        re.compile(
            r"Authentication failed|could not read (?:Username|Password)|HTTP Basic|error: 40[13]|Access denied"
        ),
        "does not exist or refuses us",
        _PRIVATE,
    ),
    (
        re.compile(
            r"error: 404|[Rr]epository .*not found|does not appear to be a git repo|does not exist|No such file"
        ),
        "does not exist or is private",
        _PRIVATE,
    ),
    (
        re.compile(r"transport '.*' not allowed"),
        "is fetched over a protocol that is not allowed",
        "Use https or ssh. An url.*.insteadOf in your git configuration may have changed the address.",
    ),
    (re.compile(r"mismatched algorithms|object[- ]format"), "uses SHA-256 ids", "segserve reads SHA-1 repositories."),
)


@functools.cache
def require_git() -> None:
    """Check that there is a git that honours what we tell it.

    Raises:
        BackendError: there is none, or it is too old.
    """
    hint = f"Install git {OLDEST[0]}.{OLDEST[1]} or newer."
    try:
        text = process.run(["git", "version"], env=_environment(HERE)).stdout
    except FileNotFoundError:
        raise BackendError("There is no git on this machine.", hint=hint) from None
    match = re.search(r"(\d+)\.(\d+)", text)
    if match and (int(match[1]), int(match[2])) < OLDEST:
        raise BackendError(f"git {match[0]} is too old.", hint=hint)


def run(
    *words: str | os.PathLike[str],
    access: Access = HERE,
    folder: Path | None = None,
    repository: Path | None = None,
    settings: Settings = (),
    variables: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> str:
    """Run one git command and return its stdout.

    `folder` is where it runs; `repository` is a git directory (named, so git searches for none and checks no owner).

    Raises:
        GitFailed: exit code other than 0.
        BackendError: no usable git.
    """
    require_git()
    env = {**_environment(access, settings), **(variables or {})}
    if repository is not None:
        env["GIT_DIR"] = str(repository)
    done = process.run(["git", *words], cwd=folder, env=env, stdin=stdin, check=False)
    if done.code != 0:
        raise GitFailed(os.fspath(words[0]), access.hide(done.stderr))
    return done.stdout


def local_access(protocols: Iterable[str] = ("https", "ssh", "file")) -> Access:
    """The access of the user who runs us: some of their git configuration, read outside of every repository.

    `credential.*`, `http.*`, `url.*.insteadOf` and `core.sshCommand` are handed on, because without them private
    repositories cannot be reached; and `safe.directory`, because git itself tells people to set it.

    Raises:
        UsageError: that configuration cannot be read.
    """
    require_git()
    env = {name: value for name, value in os.environ.items() if name not in _LOCATIONS} | {"LC_ALL": "C"}
    done = process.run(["git", "config", "--list", "-z", "--show-scope"], cwd=Path("/"), env=env, check=False)
    if done.code != 0:
        raise UsageError("Your git configuration cannot be read.", hint="Try: git config --list", quote=done.stderr)
    settings = tuple(
        (key, value)
        for scope, key, value in parse_configuration(done.stdout)
        if scope in ("system", "global", "command") and _HANDED_ON.fullmatch(key)
    )
    return Access(local_user=True, protocols=tuple(protocols), settings=settings)


_LOCATIONS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_CONFIG", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_INDEX_FILE")


def parse_configuration(text: str) -> list[tuple[str, str, str]]:
    """(scope, key, value) from `git config --list -z --show-scope`; a key without a value means true."""
    words = text.split("\0")
    found = []
    for scope, entry in zip(words[::2], words[1::2], strict=False):
        key, has_value, value = entry.partition("\n")
        found.append((scope, key, value if has_value else "true"))
    return found


def _environment(access: Access, settings: Settings = ()) -> dict[str, str]:
    env = _handed_over(access)
    env |= {
        "LC_ALL": "C",  # we read its messages
        "GIT_ALLOW_PROTOCOL": ":".join(access.protocols),
        "GIT_PROTOCOL_FROM_USER": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_DEFAULT_REF_FORMAT": "files",
        "GIT_TEMPLATE_DIR": "",
    }
    pairs = [*_FIXED, *_certificates(), *access.settings, *settings]
    if not any(key == "core.sshcommand" for key, _ in pairs) and not {"GIT_SSH", "GIT_SSH_COMMAND"} & env.keys():
        env["GIT_SSH_COMMAND"] = _SSH
    if access.credentials:
        env |= {"SEGSERVE_GIT_USER": access.credentials.user, "SEGSERVE_GIT_SECRET": access.credentials.secret}
        # The empty one drops the user's helpers for this host: they would be told to store what they don't know.
        pairs += [(f"credential.{access.scope}.helper", ""), (f"credential.{access.scope}.helper", _HELPER)]
    env["GIT_CONFIG_COUNT"] = str(len(pairs))
    for number, (key, value) in enumerate(pairs):
        env[f"GIT_CONFIG_KEY_{number}"], env[f"GIT_CONFIG_VALUE_{number}"] = key, value
    return env


def _handed_over(access: Access) -> dict[str, str]:
    if not access.local_user:
        return {name: os.environ[name] for name in _FOR_ALL if name in os.environ}
    # Helpers of the user's are programs that may read any variable of theirs; git itself reads GIT_* and SSH_ASKPASS.
    kept = {*_FOR_ALL, *_FOR_USERS}
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(("GIT_", "SSH_ASKPASS", "LANGUAGE"))
    }


def _certificates() -> Settings:
    # As configuration, so that an http.sslCAInfo of the user's wins; libcurl by itself reads none of these variables.
    names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT")
    files = [os.environ[name] for name in names if os.environ.get(name)]
    folder = os.environ.get("SSL_CERT_DIR")
    return (*((("http.sslCAInfo", files[0]),) if files else ()), *((("http.sslCAPath", folder),) if folder else ()))


def explain(failure: GitFailed, repo: str) -> SegserveError:
    """What a failed conversation with a remote means and whose turn it is."""
    if "No space left on device" in failure.stderr:
        return DiskFull(f"The disk is full; {repo} was not fetched.", quote=failure.deciding)
    for pattern, what, hint in _CAUSES:
        if pattern.search(failure.stderr):
            folder = _owned_path(failure.stderr) if hint is _OWNER else ""
            return RepositoryUnreachable(f"{repo} {what}.", hint=hint + folder, quote=failure.deciding)
    general = "Try again; if it stays so, try `git ls-remote` on it by hand."
    return RepositoryUnreachable(f"{repo} cannot be fetched.", hint=general, quote=failure.deciding)


def _owned_path(stderr: str) -> str:
    match = re.search(r"dubious ownership in repository at '(.+)'", stderr)
    return shlex.quote(match[1].removesuffix("/.git")) if match else "FOLDER"
