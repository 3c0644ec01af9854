"""conda channels: the file's, the caller's, mirrors; Anaconda's own become conda-forge; tokens in URLs stay unseen."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from segserve import redact
from segserve.environments.base import BuildOptions
from segserve.environments.condafile import CondaFile, parse_spec
from segserve.errors import InvalidProject

DEFAULT = "conda-forge"
ALIAS = "https://conda.anaconda.org"
_ANACONDA = "https://repo.anaconda.com/pkgs"
# Names and addresses of Anaconda's own channels: free of charge for some, a contract for others
# (https://www.anaconda.com/legal), so that nobody gets them without having said so.
_DEFAULTS = {"defaults", "main", "anaconda", "free", "r", "pro", "msys2", "archive", "mro"}
_SUBDIR = re.compile(r"/(noarch|(linux|osx|win|emscripten|wasi|freebsd|zos)-\w+)/?$")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*")
_TOKEN = re.compile(r"/t/[^/\s]+")

# What is recorded has no credentials, what is asked has. Both ends are in this process: `choose` writes, `real` reads.
_real: dict[str, str] = {}
_canonical: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels of one solve, as they may be recorded, best first."""

    shown: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def choose(file: CondaFile | None, options: BuildOptions) -> Channels:
    """Which channels to ask: the caller's, else the file's and those that single requirements name.

    Raises:
        InvalidProject: the file names something that is neither a channel's name nor a URL.
    """
    named = list(options.channels) or _of_file(file)
    urls: list[str] = []
    replaced: list[str] = []
    for name in named:
        if name == "nodefaults":
            continue
        foreign = is_anaconda(name) and not options.keep_defaults
        replaced += [without_tokens(name)] if foreign else []
        asked = DEFAULT if foreign else name
        urls += (_effective(url, asked, options) for url in _urls(asked))
    warnings = []
    if replaced:
        warnings.append(
            f"conda-forge is used instead of {', '.join(dict.fromkeys(replaced))} (Anaconda's terms of service); "
            "keep_defaults under [environments] in config.toml changes that."
        )
    if not urls:
        urls = [_effective(url, DEFAULT, options) for url in _urls(DEFAULT)]
        warnings.append("The file names no channel: conda-forge is used.")
    return Channels(tuple(dict.fromkeys(map(_hidden, urls))), tuple(warnings))


def real(shown: str) -> str:
    """The URL to ask for a recorded channel: with the credentials that this process was given."""
    return _real.get(shown, shown)


def canonical(url: str) -> str:
    """The URL of a package as everybody knows it: without mirror, without credentials."""
    for effective, original in _canonical.items():
        if url.startswith(f"{effective}/"):
            return without_tokens(original + url.removeprefix(effective))
    return without_tokens(url)


def aimed(text: str, channels: list[str]) -> str:
    """A requirement whose `channel::` names one of the URLs that are asked; mirrors and replacements included."""
    channel = _SUBDIR.sub("", parse_spec(text).channel)
    if not channel:
        return text
    name = DEFAULT if is_anaconda(channel) and not any(is_anaconda(url) for url in channels) else channel
    wanted = set(_urls(name))
    target = next((url for url in channels if url in wanted or _canonical.get(url) in wanted), None)
    if target is None:  # the caller's channels replace all others
        target = channels[0]
    if "::" in text:
        return f"{target}::{text.split('::', 1)[1]}"
    spec = parse_spec(text)
    parts = {"version": spec.version, "build": spec.build, "channel": target}
    return f"{spec.name}[{', '.join(f'{key}={value!r}' for key, value in parts.items() if value)}]"


def is_anaconda(channel: str) -> bool:
    """Whether it is one of Anaconda's own channels, by name or URL."""
    if "://" not in channel:
        return channel.removeprefix("pkgs/") in _DEFAULTS
    address = urlsplit(channel)
    if address.hostname in ("repo.anaconda.com", "repo.continuum.io"):
        return True
    return address.hostname == "conda.anaconda.org" and address.path.strip("/") in _DEFAULTS


def platform() -> str:
    """conda's name of this platform: `linux-64`."""
    from rattler.platform import Subdir

    return str(Subdir.current())


def without_tokens(text: str) -> str:
    """`text` without the secrets that channel URLs carry: `user:password@` and `/t/<token>/`."""
    return redact.text(_TOKEN.sub(f"/t/{redact.MASK}", text))


def _of_file(file: CondaFile | None) -> list[str]:
    if file is None:
        return [DEFAULT]
    inline = (_SUBDIR.sub("", spec.channel) for spec in file.specs)
    names = [*file.channels, *(channel for channel in inline if channel)]
    for name in names:
        if not _NAME.fullmatch(name) and urlsplit(name).scheme not in ("https", "http", "file", "s3", "oci"):
            raise InvalidProject(
                f"'{without_tokens(name)}' is neither the name of a conda channel nor a URL.",
                hint="The author of the executor has to correct its conda file.",
            )
    return names


def _urls(name: str) -> list[str]:
    if name == "defaults":
        return [f"{_ANACONDA}/main", f"{_ANACONDA}/r"]
    if "://" in name:
        return [_SUBDIR.sub("", name).rstrip("/")]
    if name in ("main", "r", "free", "pro", "msys2", "archive", "mro"):
        return [f"{_ANACONDA}/{name}"]
    if name.startswith("pkgs/"):
        return [f"{_ANACONDA}/{name.removeprefix('pkgs/')}"]
    return [f"{ALIAS}/{name}"]


def _effective(url: str, name: str, options: BuildOptions) -> str:
    """The URL to ask: a mirror for the channel's name or URL, or for what its URL begins with."""
    mirror = options.mirrors.get(name) or options.mirrors.get(url)
    if mirror is None:
        begins = [base for base in options.mirrors if "://" in base and url.startswith(f"{base.rstrip('/')}/")]
        base = max(begins, key=len, default=None)
        mirror = options.mirrors[base].rstrip("/") + url.removeprefix(base.rstrip("/")) if base else url
    effective = mirror.rstrip("/")
    if effective != url:
        _canonical[effective] = url
    return effective


def _hidden(url: str) -> str:
    shown = without_tokens(url)
    _real[shown] = url
    return shown
