"""Which tracking server: the http(s) one that `$MLFLOW_TRACKING_URI` names, else the embedded one."""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from segserve.errors import UsageError
from segserve.layout import Home
from segserve.tracking import embedded, record

URI, USERNAME, PASSWORD, TOKEN = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
INSECURE, SERVER_CERTIFICATE, CLIENT_CERTIFICATE = (
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
_HANDED_ON = (USERNAME, PASSWORD, TOKEN, INSECURE, SERVER_CERTIFICATE, CLIENT_CERTIFICATE)
_UNSUPPORTED = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")
_LOOPBACK = ("127.0.0.1", "localhost")
_NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@dataclass(frozen=True, slots=True)
class TrackingServer:
    """`uri` has no credentials; `variables` are for the environment of whoever logs to it, secrets included."""

    uri: str
    embedded: bool
    variables: Mapping[str, str] = field(repr=False)


def external() -> TrackingServer | None:
    """The server that the environment names, None when it names none. Asks nobody, so call it early.

    Raises:
        UsageError: it names something that executors cannot log to.
    """
    configured = os.environ.get(URI, "").strip()
    return _external(configured) if configured else None


def resolve(home: Home, *, idle_minutes: float | None = None) -> TrackingServer:
    """The server for new runs; the embedded one is started when needed.

    Raises:
        UsageError: see `external`.
        TrackingUnreachable: the embedded server does not start.
    """
    return external() or own(home, idle_minutes=idle_minutes)


def recorded(home: Home, uri: str) -> TrackingServer:
    """The server of an earlier run. One of ours is found (or started) again, on whatever port it has now.

    Raises:
        UsageError, TrackingUnreachable: as `resolve`.
    """
    parts = urlsplit(uri)
    known = record.read(home)
    if known and parts.hostname == record.HOST and parts.port in known.ports:
        return own(home)
    return _external(uri)


def own(home: Home, *, idle_minutes: float | None = None) -> TrackingServer:
    """The embedded server, started when needed.

    Raises:
        TrackingUnreachable: it does not start.
    """
    uri = embedded.ensure_server(home, idle_minutes=idle_minutes)
    return TrackingServer(uri, True, {URI: uri, **on_loopback()})


def on_loopback() -> dict[str, str]:
    """Variables for whoever logs to a server (or a gate to one) on loopback."""
    # Old and new clients alike go through a configured proxy unless told otherwise, also to loopback.
    bypass = [part for part in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",") if part.strip()]
    value = ",".join([*bypass, *(host for host in _LOOPBACK if host not in bypass)])
    return {"NO_PROXY": value, "no_proxy": value, "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", **_NO_TELEMETRY}


def taken_out(environ: MutableMapping[str, str]) -> dict[str, str]:
    """The credentials and certificates for a server that stand in an environment; they are gone from it afterwards."""
    return {name: environ.pop(name) for name in _HANDED_ON if name in environ}


def _external(configured: str) -> TrackingServer:
    parts = urlsplit(configured)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{URI} is '{configured}', but executors can only log to an MLflow server over http or https: the MLflow "
            "that an executor pins may be too old for a database or folder that a newer one wrote.",
            hint=f"Unset {URI} to use segserve's own server, or start `mlflow server` on that store and name its URL.",
        )
    for name in _UNSUPPORTED:
        if os.environ.get(name, "").lower() not in ("", "0", "false"):
            raise UsageError(
                f"{name} is set, but segserve can only sign in with user and password or a token.",
                hint=f"Use {USERNAME} and {PASSWORD}, or {TOKEN}.",
            )
    host = parts.netloc.rpartition("@")[2]
    uri = urlunsplit((parts.scheme.lower(), host, parts.path.rstrip("/"), "", ""))
    variables = {name: os.environ[name] for name in _HANDED_ON if os.environ.get(name)}
    if parts.username is not None:
        variables |= {USERNAME: unquote(parts.username), PASSWORD: unquote(parts.password or "")}
    else:
        variables = {**_credentials_file(), **variables}
    return TrackingServer(uri, False, {URI: uri, **variables, **_NO_TELEMETRY})


def _credentials_file() -> dict[str, str]:
    """User and password from `~/.mlflow/credentials`, as MLflow reads them."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(Path("~/.mlflow/credentials").expanduser())
    except (configparser.Error, OSError, UnicodeDecodeError):
        return {}
    if "mlflow" not in parser:
        return {}
    section = parser["mlflow"]
    return {name: section[name.lower()] for name in (USERNAME, PASSWORD) if section.get(name.lower())}
