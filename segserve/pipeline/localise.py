"""What parameters name elsewhere (URLs, artifacts of MLflow) on this disk; local paths made absolute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from segserve import fetch, fetching
from segserve.config import FetchSettings
from segserve.project import EntryPoint, ParameterType

_SECONDS_TO_FETCH = 3600.0  # weights are large


@dataclass(frozen=True)
class Localised:
    """Parameter values for the launch, SHA-256 of what was fetched, and local paths that a container has to see."""

    values: Mapping[str, str]
    digests: Mapping[str, str]
    mounts: tuple[Path, ...]


def localise(
    entry: EntryPoint,
    parameters: Mapping[str, str],
    folder: Path,
    download: Callable[[str, Path], Path],
    https: Callable[[str, Path], fetch.Fetched] = fetch.https,
) -> Localised:
    """Make `path` and `uri` values usable on this machine; `download` gets `runs:/` and `models:/` URIs, `https` the
    others.

    Raises:
        InvalidParameters: something remote cannot be had.
    """
    values, digests, mounts = dict(parameters), dict[str, str](), list[Path]()
    for name, value in parameters.items():
        if entry.parameters[name].type not in (ParameterType.PATH, ParameterType.URI):
            continue
        if value.startswith("https://"):
            fetched = https(value, folder / name)
            values[name], digests[name] = str(fetched.path), fetched.sha256
        elif fetch.is_remote(value):
            local = download(value, folder / name)
            values[name], digests[name] = str(local), fetch.digest_of(local)
        if "://" not in values[name] and not _is_other_uri(entry.parameters[name].type, values[name]):
            path = Path(values[name].removeprefix("file:")).expanduser().resolve()
            values[name] = str(path)
            mounts.append(path)
    return Localised(values, digests, tuple(mounts))


def for_others(settings: FetchSettings) -> Callable[[str, Path], fetch.Fetched]:
    """What `localise` fetches with when somebody else has named the URL: nothing that only this machine can reach."""
    policy = fetching.Policy(settings.allow, settings.only, frozenset(settings.ports))
    limits = fetching.Limits(fetch.MAX_BYTES, _SECONDS_TO_FETCH)

    def https(url: str, folder: Path) -> fetch.Fetched:
        found = fetching.download(url, folder / fetch.name_of(urlsplit(url).path), limits, policy)
        return fetch.Fetched(found.path, found.sha256)

    return https


def _is_other_uri(kind: ParameterType, value: str) -> bool:
    """Whether it is a URI that names no file here, without slashes: `doi:10.5281/zenodo.1`."""
    return kind is ParameterType.URI and not value.startswith(("file:", "/"))
