"""Download weights once: cached, checked by hash, continued where it was cut off, safe with many processes at once."""

import fcntl
import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Iterator, Optional
from urllib.parse import urlsplit

CACHE = "CACHE_FOLDER"
TRIES = 4
TIMEOUT_SECONDS = 60.0
_CHUNK = 1 << 20
# What an interrupted connection looks like; other OSErrors are the disk's. Until 3.10 a time-out has a type of its own.
_INTERRUPTED = (urllib.error.URLError, http.client.HTTPException, ConnectionError, socket.timeout, ssl.SSLError)
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class WeightsError(RuntimeError):
    """Weights cannot be had; the message says which, from where, and why."""


def cache_folder() -> Path:
    """Where weights are kept: `CACHE_FOLDER`, which segserve sets, else the user's own cache."""
    configured = os.environ.get(CACHE)
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segserve-executors"


def fetch(url: str, sha256: Optional[str] = None, name: str = "", *, tries: int = TRIES) -> Path:
    """The file at `url`, on this disk: from the cache, or downloaded now.

    `sha256` (64 hex digits) is what it must be; without one, only `https` is taken, and nothing more is known of it.
    `name` is for people and for the file's name (default: the last part of the URL). An interrupted download goes on
    where it stopped. Of several processes one downloads, the others wait for it.

    Raises:
        WeightsError: no network, no such file, or not the file that was expected.
        ValueError: the URL or the hash is none.
    """
    _check(url, sha256)
    name = name or PurePosixPath(urlsplit(url).path).name or "weights"
    key = (sha256 or hashlib.sha256(url.encode()).hexdigest())[:16]
    target = cache_folder() / "weights" / key / re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-.")
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f"{target.name}.lock")):
            if not target.exists():  # another process has downloaded it meanwhile
                _Download(url, sha256, name, target).run(tries)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"could not store the weights '{name}' in {target.parent}: {error}") from error
    return target


def _check(url: str, sha256: Optional[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError(f"weights are downloaded from an https URL, not from {url!r}")
    if sha256 is None and parts.scheme != "https":
        raise ValueError(f"{url!r} is not https: without a sha256 nobody knows what would come")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"sha256 has 64 lower-case hex digits, not {sha256!r}")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield


class _Download:
    """One file on its way; `target.part` is what has come so far, and survives an interruption."""

    def __init__(self, url: str, sha256: Optional[str], name: str, target: Path) -> None:
        self.url, self.sha256, self.name, self.target = url, sha256, name, target
        self.part = target.with_name(f"{target.name}.part")
        self.version = ""  # ETag of what is in the part, as far as this process knows

    def run(self, tries: int) -> None:
        if self.sha256 is None:
            _remove(self.part)  # nobody knows whether it is of the same file
        print(f"downloading {self.name} from {_shown(self.url)}", flush=True)
        for attempt in range(1, tries + 1):
            try:
                self._receive()
                return self._finish()
            except _Mismatch as problem:
                _remove(self.part)  # perhaps two files, the one before and the one behind an interruption
                error: Exception = problem
            except urllib.error.HTTPError as problem:
                if problem.code not in _AGAIN:
                    raise self._failed(f"the server says {problem.code} {problem.reason}") from problem
                error = problem
            except _INTERRUPTED as problem:
                error = problem
            if attempt < tries:
                print(f"download of {self.name} was interrupted ({error}); trying again", flush=True)
                time.sleep(min(2.0**attempt / 2, 30.0))
        if isinstance(error, _Mismatch):
            raise WeightsError(f"the weights '{self.name}' from {_shown(self.url)} are not what was expected: {error}")
        raise self._failed(f"the network did not answer ({error})") from error

    def _failed(self, why: str) -> WeightsError:
        return WeightsError(
            f"could not download the weights '{self.name}' from {_shown(self.url)}: {why}. "
            f"Without a network, put the file at {self.target}"
        )

    def _receive(self) -> None:
        """Append what is missing to the part; begin anew when the server cannot go on."""
        there = self.part.stat().st_size if self.part.exists() else 0
        headers = {"User-Agent": "segserve_sdk", "Accept-Encoding": "identity"}
        if there:
            headers["Range"] = f"bytes={there}-"
            if self.version:
                headers["If-Range"] = self.version
        request = urllib.request.Request(self.url, headers=headers)  # noqa: S310 - `_check` has seen the scheme
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # noqa: S310
        except urllib.error.HTTPError as error:
            if error.code != 416 or not there:  # 416: it is complete already, or is another file now
                raise
            if self.sha256 is None or digest_of(self.part) != self.sha256:
                _remove(self.part)
                raise ConnectionError("the server has another file than before") from error
            return
        with answer:
            if self.sha256 is None and not answer.geturl().startswith("https:"):
                raise self._failed("it is forwarded to an address without encryption")
            goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {there}-")
            self.version = answer.headers.get("ETag", "")
            with self.part.open("ab" if goes_on else "wb") as stream:
                _copy(answer, stream)

    def _finish(self) -> None:
        if self.sha256 is not None:
            digest = digest_of(self.part)
            if digest != self.sha256:
                raise _Mismatch(f"sha256 is {digest}, not {self.sha256}")
        self.part.replace(self.target)  # it appears at once


class _Mismatch(Exception):
    """Something came, but it is another file."""


def _copy(answer: http.client.HTTPResponse, stream: IO[bytes]) -> None:
    expected = answer.headers.get("Content-Length")
    received = 0
    while True:
        data = answer.read(_CHUNK)
        if not data:
            break
        stream.write(data)
        received += len(data)
    if expected is not None and received < int(expected):
        raise ConnectionError(f"{received} of {expected} bytes came")


def digest_of(path: Path) -> str:
    """SHA-256 of a file (hexadecimal)."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        for data in iter(lambda: stream.read(_CHUNK), b""):
            found.update(data)
    return found.hexdigest()


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def _shown(url: str) -> str:
    """The URL without user, password and query: signed addresses are secrets."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
