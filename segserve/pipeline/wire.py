"""`Request` ⇄ JSON, for the queue. Secrets never stand in a row: they lie in a file of the job until it ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from segserve import redact
from segserve.environments.base import BuildOptions
from segserve.inputs import Selection
from segserve.model import Resources
from segserve.pipeline.bounds import Bounds
from segserve.pipeline.prepare import Request
from segserve.refs import Credentials, ExecutorRef, RepoKind

# They say where and how it runs, not what comes out.
_NOT_IN_DIGEST = (
    *("images", "output", "attached", "wait", "keep", "experiment", "parent_run", "tags", "bounds", "others"),
)


def to_json(request: Request) -> str:
    """The request as one JSON object, without credentials, with masks for secret parameters."""
    masked = {name: redact.value(name, value) for name, value in request.parameters.items()}
    plain = asdict(replace(request, ref=replace(request.ref, credentials=None), parameters=masked))
    plain["output"] = None if request.output is None else str(request.output)
    return json.dumps(plain, ensure_ascii=False)


def secrets_of(request: Request) -> str:
    """What `to_json` leaves out, as one JSON object; "" when there is nothing."""
    kept = {name: value for name, value in request.parameters.items() if redact.value(name, value) != value}
    known = request.ref.credentials
    if not kept and known is None:
        return ""
    pair = None if known is None else [known.user, known.secret]
    return json.dumps({"parameters": kept, "credentials": pair}, ensure_ascii=False)


def from_json(text: str, secrets: str = "") -> Request:
    """Read back what `to_json` and `secrets_of` gave."""
    data = json.loads(text)
    request = Request(**{**data, **_typed(data)})
    if not secrets:
        return request
    hidden = json.loads(secrets)
    known = Credentials(*hidden["credentials"]) if hidden["credentials"] else None
    return replace(
        request,
        ref=replace(request.ref, credentials=known),
        parameters={**request.parameters, **hidden["parameters"]},
    )


def _typed(data: Mapping[str, Any]) -> dict[str, Any]:
    build = {**data["build"]}
    for name in ("channels", "docker_volumes", "docker_variables"):
        build[name] = tuple(build[name])
    return {
        "ref": ExecutorRef(**{**data["ref"], "kind": RepoKind(data["ref"]["kind"])}),
        "images": tuple(data["images"]),
        "selection": Selection(**data["selection"]),
        "build": BuildOptions(**build),
        "resources": Resources(**data["resources"]),
        "output": None if data["output"] is None else Path(data["output"]),
        "exports": tuple(data["exports"]),
        "bounds": _bounds(data.get("bounds")),  # absent from rows of older versions
        "others": _others(data),
    }


def _others(data: Mapping[str, Any]) -> bool:
    """Whose it is; rows of older versions say it by their bounds, or do not say it."""
    if "others" in data:
        return bool(data["others"])
    bounds = data.get("bounds", {"roots": ()})
    return bounds is not None and bounds["roots"] is not None


def _bounds(data: Mapping[str, Any] | None) -> Bounds | None:
    if data is None:
        return None
    return Bounds(**{**data, "roots": None if data["roots"] is None else tuple(data["roots"])})


def pipeline_of(text: str) -> str:
    """The slug, if a request is one for a pipeline (`segserve.antenna`); else ""."""
    data = json.loads(text)
    return str(data.get("pipeline", ""))


def digest(request: Request, images: Mapping[str, str]) -> str:
    """SHA-256 (hex) over all of a request that decides its result; `images` maps their names to what is in them.

    "" when a secret parameter is part of that: a row must not tell whether two secrets are the same.
    """
    if any(redact.value(name, value) != value for name, value in request.parameters.items()):
        return ""
    plain = json.loads(to_json(request))
    decides = {name: value for name, value in plain.items() if name not in _NOT_IN_DIGEST}
    text = json.dumps({**decides, "images": dict(images)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
