"""How a tracking server is reached: credentials, TLS, proxies, by the standard library."""

from __future__ import annotations

import base64
import os
import ssl
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from segserve.tracking import address
from segserve.tracking.address import TrackingServer
from segserve.tracking.record import HOST


def authorization(variables: Mapping[str, str]) -> dict[str, str]:
    """The header that the variables of a server ask for; user and password win over a token, as in MLflow."""
    if address.USERNAME in variables:
        pair = f"{variables[address.USERNAME]}:{variables.get(address.PASSWORD, '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    if address.TOKEN in variables:
        return {"Authorization": f"Bearer {variables[address.TOKEN]}"}
    return {}


def opener(server: TrackingServer) -> urllib.request.OpenerDirector:
    """Opens requests to that server: no redirect is followed, no proxy stands before loopback."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if server.embedded or urlsplit(server.uri).hostname == HOST:
        handlers.append(urllib.request.ProxyHandler({}))
    if server.uri.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=_tls(server.variables)))
    return urllib.request.build_opener(*handlers)


def _tls(variables: Mapping[str, str]) -> ssl.SSLContext:
    bundle = variables.get(address.SERVER_CERTIFICATE) or os.environ.get("REQUESTS_CA_BUNDLE")
    folder = bundle if bundle and Path(bundle).is_dir() else None
    context = ssl.create_default_context(cafile=None if folder else bundle, capath=folder)
    if variables.get(address.INSECURE, "").lower() in ("1", "true"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client := variables.get(address.CLIENT_CERTIFICATE):
        context.load_cert_chain(client)
    return context


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would hand the credentials on to wherever it is sent."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
