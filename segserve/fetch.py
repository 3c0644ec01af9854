"""Parameters that name something remote (https) are fetched before the launch, into a file whose hash is recorded."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from segserve import redact
from segserve.errors import InvalidParameters, TooLarge, disk_full

MAX_BYTES = 20 * 2**30
_CHUNK = 1 << 20
_LONGEST_NAME = 100
_CERTIFICATES = ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE")  # trusted besides SSL_CERT_FILE, which Python reads itself


@dataclass(frozen=True, slots=True)
class Fetched:
    """A local copy and the SHA-256 of its content."""

    path: Path
    sha256: str


def is_remote(value: str) -> bool:
    """Whether a `path` or `uri` value has to be fetched first."""
    return value.startswith(("https://", "runs:/", "models:/"))


def https(url: str, folder: Path, *, timeout: float = 60.0, max_bytes: int = MAX_BYTES) -> Fetched:
    """Download one file into `folder` under its own name. Proxies and certificates come from the environment.

    User and password in the URL are sent to its host and to no other; redirects to anything but https are refused.

    Raises:
        InvalidParameters: it cannot be had, or not all of it.
        TooLarge: it is over `max_bytes`.
    """
    shown = redact.url(url)
    try:
        request = _request(url)
        target = folder / name_of(urlsplit(url).path)
        folder.mkdir(parents=True, exist_ok=True)
        with _opener().open(request, timeout=timeout) as answer, target.open("wb") as stream:
            return Fetched(target, _copy(answer, stream, shown, max_bytes))
    except urllib.error.HTTPError as refusal:
        login = " It may need a login: https://USER:TOKEN@host/…" if refusal.code in (401, 403) else ""
        raise InvalidParameters(
            f"{shown} cannot be fetched: the server says {refusal.code} {refusal.reason}.",
            hint=f"Check the address, or download it yourself and pass the file.{login}",
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        if disk_full(error):
            raise
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        untrusted = isinstance(reason, ssl.SSLCertVerificationError)
        hint = "Set SSL_CERT_FILE to your site's certificates." if untrusted else "Check the address and the network"
        raise InvalidParameters(
            f"{shown} cannot be fetched: {_without(url, str(reason))}.",
            hint=f"{hint.rstrip('.')}, or pass a local file.",
        ) from None


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content; of a folder, of names and contents of its files in order."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if file != path:
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https, without the credentials when they lead to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request to follow with."""
        if not newurl.startswith("https://"):
            raise ValueError(f"it redirects to {redact.url(newurl)}, which is not https")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).netloc != req.host:
            following.remove_header("Authorization")
        return following


def _opener() -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    for file in filter(None, map(os.environ.get, _CERTIFICATES)):
        context.load_verify_locations(cafile=file)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _HttpsOnly())


def _request(url: str) -> urllib.request.Request:
    parts = urlsplit(url)
    bare = urlunsplit((parts.scheme, _host(parts), parts.path or "/", parts.query, ""))
    request = urllib.request.Request(bare)  # noqa: S310 - https, see is_remote
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    return request


def _host(parts: SplitResult) -> str:
    if not parts.hostname or (parts.port is not None and parts.port < 1):  # asking for the port checks it
        raise ValueError("it has no host")
    return parts.netloc.rpartition("@")[2]


def name_of(path: str) -> str:
    """A file name of our own making out of what the URL ends with."""
    name = re.sub(r"[^\w.@+-]+", "_", PurePosixPath(unquote(path)).name)[-_LONGEST_NAME:]
    return name.lstrip(".-") or "download"


def _copy(answer: Any, stream: IO[bytes], shown: str, max_bytes: int) -> str:
    """Write it all; returns the SHA-256."""
    headers: Message = answer.headers
    announced = int(headers.get("Content-Length") or -1)
    digest, size = hashlib.sha256(), 0
    if announced > max_bytes:
        raise _too_large(shown, max_bytes)
    while chunk := answer.read(_CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(shown, max_bytes)
        digest.update(chunk)
        stream.write(chunk)
    if announced >= 0 and size != announced:  # http.client does not complain when it is read in parts
        raise http.client.HTTPException(f"the connection ended after {size} of {announced} bytes")
    return digest.hexdigest()


def _too_large(shown: str, max_bytes: int) -> TooLarge:
    return TooLarge(f"{shown} is larger than {max_bytes / 2**30:.3g} GiB.", hint="Download it yourself, pass the file.")


def _without(url: str, text: str) -> str:
    """`text` without the user and password of `url`, should a library quote them."""
    userinfo = url.partition("://")[2].partition("/")[0].rpartition("@")[0]
    for part in (userinfo, *userinfo.split(":")):
        text = text.replace(part, redact.MASK) if len(part) > 3 else text
    return text
