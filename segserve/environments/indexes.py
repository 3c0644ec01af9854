"""Where Python packages come from on this machine: pip's configuration and uv's, as variables for uv.

uv ignores pip's configuration (index, wheel folders, certificates), so that a site's mirror would be passed by:
https://docs.astral.sh/uv/pip/compatibility/#configuration-files-and-environment-variables
"""

from __future__ import annotations

import configparser
import os
import re
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from segserve import redact
from segserve.environments.base import hash_file, hash_text
from segserve.errors import UsageError

# Variables of uv that decide what is installed; the rest (cache, concurrency, certificates) decides only how.
_DECIDING = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|INDEX_STRATEGY|PRERELEASE|RESOLUTION"
    r"|EXCLUDE_NEWER|TORCH_BACKEND|NO_BINARY\w*|NO_BUILD\w*|OFFLINE)"
)
_FILES = ("UV_CONSTRAINT", "UV_OVERRIDE", "UV_BUILD_CONSTRAINT", "UV_EXCLUDE")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT", "GIT_SSL_CAINFO")
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # other programs' words for SSL_CERT_FILE; git is told of them too
# What would aim uv at another environment or project than the one we name.
_AIMS = re.compile(
    r"VIRTUAL_ENV|CONDA_(PREFIX|DEFAULT_ENV)|GIT_(DIR|WORK_TREE|INDEX_FILE|COMMON_DIR|PREFIX|OBJECT_DIRECTORY)|PYTHON(PATH|HOME|STARTUP)|UV_(PYTHON|PROJECT\w*|SYSTEM_PYTHON|TARGET|PREFIX|"
    r"WORKING_DIR\w*|ENV_FILE|NO_CONFIG|BREAK_SYSTEM_PACKAGES|NO_DEPS|REQUIRE_HASHES|COMPILE_BYTECODE|VENV_\w+)"
)


@dataclass(frozen=True, slots=True)
class Indexes:
    """Package sources: `index` (None: uv's default, PyPI), `extra` indexes, wheel folders or pages `find_links`.

    URLs may carry credentials: they are handed to uv by variables and are recorded nowhere.
    """

    index: str | None = None
    extra: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    trusted_hosts: tuple[str, ...] = ()

    def over(self, host: Indexes) -> Indexes:
        """These, as options of a requirements file, over the host's: `index` replaces, lists add up, as in pip."""
        if self.no_index:
            return Indexes(None, (), _unique(host.find_links, self.find_links), True, host.trusted_hosts)
        return Indexes(
            self.index or host.index,
            _unique(host.extra, self.extra),
            _unique(host.find_links, self.find_links),
            host.no_index,
            _unique(host.trusted_hosts, self.trusted_hosts),
        )

    def identity(self) -> dict[str, Any]:
        """For the key: no secrets, and a change of a wheel folder's content counts."""
        return {
            "index": redact.url(self.index or ""),
            "extra": [redact.url(url) for url in self.extra],
            "find_links": [_link_identity(link) for link in self.find_links],
            "no_index": self.no_index,
        }


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What this machine says about packages: indexes, further variables for uv, what of it belongs into the key."""

    indexes: Indexes
    variables: Mapping[str, str]  # for uv: certificates, proxies, time-outs
    constraints: tuple[Path, ...] = ()
    arguments: tuple[str, ...] = ()  # for `uv pip install`
    decided: Mapping[str, str] | None = None  # uv's own deciding variables and files, redacted

    def identity(self, extra: Indexes = Indexes()) -> dict[str, Any]:
        """For the key."""
        return {
            "indexes": extra.over(self.indexes).identity(),
            "uv": dict(self.decided or {}),
            "arguments": list(self.arguments),
            "constraints": [hash_file(path) for path in self.constraints],
        }

    def words(self, extra: Indexes = Indexes()) -> tuple[str, ...]:
        """What a call of uv that looks for packages needs on its command line: there is no variable for it."""
        return ("--no-index",) if extra.over(self.indexes).no_index else ()

    def environment(self, extra: Indexes = Indexes()) -> dict[str, str]:
        """The whole environment for a call of uv; `extra` are the options of the requirements files."""
        indexes = extra.over(self.indexes)
        variables = {name: value for name, value in os.environ.items() if _handed_on(name)}
        variables |= {**self.variables, "NO_COLOR": "1", "UV_NO_PROGRESS": "1", "GIT_TERMINAL_PROMPT": "0"}
        variables |= {"GIT_ALLOW_PROTOCOL": "https:http:ssh:file", "GIT_LFS_SKIP_SMUDGE": "1"}
        variables |= {"GIT_OPTIONAL_LOCKS": "0"}  # `git status` in a build leaves the checkout's index alone
        for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"):
            variables.pop(name, None)
        if indexes.index:
            variables["UV_DEFAULT_INDEX"] = indexes.index
        if indexes.extra:
            variables["UV_EXTRA_INDEX_URL"] = " ".join(indexes.extra)
            # pip takes the best version of all indexes, uv by default only looks at the first one that knows the name;
            # a mirror that holds a few packages of its own beside PyPI works only in pip's way.
            variables.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
        if indexes.find_links:
            variables["UV_FIND_LINKS"] = ",".join(indexes.find_links)
        if indexes.trusted_hosts:
            variables["UV_INSECURE_HOST"] = " ".join(indexes.trusted_hosts)
        return variables


def host_settings() -> HostSettings:
    """Read pip's files and `PIP_*` variables and uv's `UV_*` variables and files; uv's own win over pip's.

    Raises:
        UsageError: a configuration file of pip is malformed.
    """
    pip = pip_settings()
    uv_files = [path for path in _uv_files() if path.is_file()]
    uv_index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    # uv.toml may name indexes (in several ways); uv reads it itself, and a variable would win over it.
    if not uv_index and not any("index" in path.read_text("utf-8", "replace") for path in uv_files):
        uv_index = pip.get("index-url")
    indexes = Indexes(
        uv_index or None,
        _unique(_words("UV_EXTRA_INDEX_URL"), tuple(pip.get("extra-index-url", "").split())),
        _unique(
            tuple(link for link in os.environ.get("UV_FIND_LINKS", "").split(",") if link),
            tuple(_absolute(link) for link in pip.get("find-links", "").split()),
        ),
        _true(pip.get("no-index", "")),
        _unique(_words("UV_INSECURE_HOST"), tuple(pip.get("trusted-host", "").split())),
    )
    decided = {name: redact.text(value) for name, value in os.environ.items() if _DECIDING.fullmatch(name)}
    decided |= {path.name: hash_text(redact.text(path.read_text("utf-8", "replace"))) for path in uv_files}
    for name in _FILES:
        for position, word in enumerate(os.environ.get(name, "").split()):
            if Path(word).is_file():
                decided[f"{name}.{position}"] = hash_file(Path(word))
    constraints = tuple(Path(word).expanduser().absolute() for word in pip.get("constraint", "").split())
    return HostSettings(indexes, _connection(pip), constraints, _arguments(pip), decided)


def host_files() -> tuple[Path, ...]:
    """Files and folders of this machine that uv reads besides: its own files, wheel folders, certificates, constraints.

    An index that is a folder links to files beside it: the folder around it counts.
    """
    host = host_settings()
    variables = {**os.environ, **host.variables}
    paths = [*_uv_files(), *host.constraints]
    paths += [Path(variables[name]) for name in (*_CERTIFICATES, *_BUNDLES) if variables.get(name)]
    paths += [Path(word) for name in _FILES for word in variables.get(name, "").split()]
    for url in (host.indexes.index or "", *host.indexes.extra):
        if url.startswith("file:"):
            paths.append(Path(unquote(urlsplit(url).path)).parent)
    paths += [Path(_local(link)) for link in host.indexes.find_links if "://" not in link or link.startswith("file:")]
    return tuple(path for path in paths if path.is_absolute())


def pip_settings() -> dict[str, str]:
    """pip's effective options for `install`: files, least important first, then `PIP_*` variables.

    https://pip.pypa.io/en/stable/topics/configuration/#precedence-override-order

    Raises:
        UsageError: a configuration file is malformed.
    """
    options: dict[str, str] = {}
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for path in _pip_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise UsageError(
                f"pip's configuration file {path} is malformed: {error}", hint="Correct it, or set PIP_CONFIG_FILE."
            ) from None
        for section, values in sections.items():
            if parser.has_section(section):
                values |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    options |= sections["global"] | sections["install"]
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value and name != "PIP_CONFIG_FILE":
            options[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return options


def _pip_files() -> Iterator[Path]:
    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return
    for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep):
        yield Path(folder) / "pip" / "pip.conf"
    yield Path("/etc/pip.conf")
    yield Path.home() / ".pip" / "pip.conf"
    if sys.platform == "darwin":
        yield Path.home() / "Library" / "Application Support" / "pip" / "pip.conf"
    yield Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "pip" / "pip.conf"
    yield Path(sys.prefix) / "pip.conf"
    if chosen:
        yield Path(chosen).expanduser()


def _uv_files() -> Iterator[Path]:
    if os.environ.get("UV_CONFIG_FILE"):
        yield Path(os.environ["UV_CONFIG_FILE"])
        return
    for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep):
        yield Path(folder) / "uv" / "uv.toml"
    yield Path("/etc/uv/uv.toml")
    yield Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "uv" / "uv.toml"


def _connection(pip: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}

    def default(name: str, value: str | None) -> None:
        if value and name not in os.environ and name.lower() not in os.environ:
            found[name] = value

    default("SSL_CERT_FILE", next(filter(None, (pip.get("cert"), *map(os.environ.get, _BUNDLES))), None))
    default("SSL_CLIENT_CERT", pip.get("client-cert"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        default(name, pip.get("proxy"))
    default("UV_HTTP_TIMEOUT", pip.get("default-timeout") or pip.get("timeout"))
    if pip.get("keyring-provider") in ("subprocess", "import"):
        default("UV_KEYRING_PROVIDER", "subprocess")
    store = ssl.get_default_verify_paths()
    if "SSL_CERT_FILE" not in os.environ | found and (store.cafile or store.capath):
        # pip trusts the system's certificates (an institute's own authority is there), uv by default only its own list.
        default("UV_SYSTEM_CERTS", None if "UV_NATIVE_TLS" in os.environ else "1")
    return found


def _arguments(pip: Mapping[str, str]) -> tuple[str, ...]:
    arguments: list[str] = ["--prerelease=allow"] if _true(pip.get("pre", "")) else []
    for option, flag in (("only-binary", "--only-binary"), ("no-binary", "--no-binary")):
        for name in re.split(r"[\s,]+", pip.get(option, "")):
            if name:
                arguments.append(f"{flag}={name}")
    return tuple(arguments)


def _handed_on(name: str) -> bool:
    # A package's build runs its author's code: what is secret and no business of uv stays here.
    if redact.SECRET_NAME.search(name):
        return name.startswith("UV_INDEX_")
    return not _AIMS.fullmatch(name)


def _link_identity(link: str) -> Any:
    # A wheel folder decides by what it holds: names and sizes, no path, so that a moved folder is the same.
    path = Path(_local(link))
    if "://" in link and not link.startswith("file:"):
        return redact.url(link)
    if not path.is_dir():
        return str(path)
    with os.scandir(path) as entries:
        return sorted([entry.name, entry.stat().st_size] for entry in entries if entry.is_file())


def _local(link: str) -> str:
    return unquote(urlsplit(link).path) if link.startswith("file:") else link


def _absolute(link: str) -> str:
    return link if "://" in link or link.startswith("file:") else str(Path(link).expanduser().absolute())


def _words(name: str) -> tuple[str, ...]:
    return tuple(os.environ.get(name, "").split())


def _unique(*parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for part in parts for word in part))


def _true(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on", "y", "t")
