"""`/executors`: short names, and what an executor takes: entry points with typed parameters. Nothing is built."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from segserve import redact
from segserve.api import Session
from segserve.errors import NotFound
from segserve.project import kinds
from segserve.server import prewarm
from segserve.server.access import Reader
from segserve.server.desk import Desk
from segserve.server.prewarm import Warmth
from segserve.server.problems import RESPONSES

_FRESH_SECONDS = 30.0  # a branch may have moved since
_KEPT = 64
_PREPARED = ("path", "uri")


class ParameterModel(BaseModel):
    """A parameter, with what a form needs to offer it."""

    name: str
    type: str = Field(description="as declared: `int_range`, `string_enum`, `float`, `path` …")
    kind: str = Field(description="string, int, float, bool, path or uri: what one value is")
    many: bool = Field(description="several values: `[1, 2]` or `1,2`")
    default: str | None = Field(description="null: it has to be given")
    required: bool
    min: float | None = None
    max: float | None = None
    step: float | None = None
    options: list[str] = []
    description: str = ""
    adjustable: bool = Field(True, description="false: its author means it to stay as it is")


class EntryModel(BaseModel):
    """An entry point. `parameters` are those that people give: the images come with the request."""

    name: str
    description: str = ""
    takes_images: bool
    produces: str = Field(description="polygons, or files")
    parameters: list[ParameterModel]
    problems: list[str] = Field([], description="why it cannot be run")


class Description(BaseModel):
    """What an executor is and takes."""

    ref: str
    name: str
    title: str = ""
    description: str = ""
    citation: str = ""
    doi: str = ""
    licence: str = ""
    contact: str = ""
    repository: str
    commit: str
    environment: str = Field(description="uv, conda, docker or local, as the repository has it")
    deterministic: bool | None = Field(None, description="what its manifest says")
    algorithm_type: str = ""
    tags: list[str] = []
    entry_points: list[EntryModel]
    notes: list[str] = []


def described(session: Session, ref: str) -> Description:
    """Look at an executor, at the commit that `ref` means now.

    Raises:
        SegserveError: there is no such executor, or it is none.
    """
    request = session.request(ref)
    info = session.info(request)
    manifest, module = info["manifest"], info.get("module", {})
    citation = manifest.get("citation", {})
    texts = {name: entry.get("description", "") for name, entry in manifest.get("entry_points", {}).items()}
    return Description(
        ref=redact.text(ref),
        name=info["name"] or request.ref.name,
        title=manifest.get("title", ""),
        description=manifest.get("description", "") or module.get("description", ""),
        citation=citation.get("text", ""),
        doi=citation.get("doi", ""),
        licence=manifest.get("licence", ""),
        contact=manifest.get("contact", ""),
        repository=redact.url(info["repository"]),
        commit=info["commit"],
        environment=info["environment"]["kind"],
        deterministic=manifest.get("run", {}).get("deterministic"),
        algorithm_type=module.get("algorithm_type", ""),
        tags=list(module.get("tags", ())),
        entry_points=[_entry(entry, texts.get(entry["name"], "")) for entry in info["entry_points"]],
        notes=info["notes"],
    )


def _entry(entry: Mapping[str, Any], text: str) -> EntryModel:
    images = entry["images_parameter"]
    return EntryModel(
        name=entry["name"],
        description=text,
        takes_images=images is not None,
        produces=entry["produces"],
        parameters=[_parameter(one) for one in entry["parameters"] if one["name"] != images],
        problems=entry["problems"],
    )


def _parameter(parameter: Mapping[str, Any]) -> ParameterModel:
    declared = parameter["type"].lower()
    kind = declared if declared in _PREPARED else kinds.base(declared)
    return ParameterModel(**parameter, kind=kind, many=kinds.is_list(declared))


class Catalogue:
    """Descriptions, each for half a minute: a page asks often, and a remote should not be."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: OrderedDict[str, tuple[float, Description]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ref: str) -> Description:
        """What is known of an executor, or looked up now."""
        now = time.monotonic()
        with self._lock:
            known = self._known.get(ref)
        if known is not None and now - known[0] < _FRESH_SECONDS:
            return known[1]
        found = described(self._session, ref)
        with self._lock:
            self._known[ref] = (now, found)
            self._known.move_to_end(ref)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["executors"], responses=RESPONSES)
    catalogue = Catalogue(desk.session)

    @routes.get("/executors")
    def executors(
        algorithm_type: Annotated[str, Query(max_length=100, description="only algorithm modules of this type")] = "",
        tag: Annotated[list[str], Query(max_length=20, description="only modules that have all of these")] = [],  # noqa: B006 - FastAPI copies it
    ) -> list[dict[str, Any]]:
        """Short names of executors, what they stand for, and how far their environments are."""
        known = prewarm.states(desk.session.ctx.home)
        rows = desk.session.executors(algorithm_type=algorithm_type, tags=tag)
        return [{**row, "environment": known.get(row["name"], {"state": Warmth.ON_DEMAND})} for row in rows]

    @routes.get("/executor")
    def any_executor(
        caller: Reader,
        ref: Annotated[
            str, Query(min_length=1, max_length=2000, description="a short name, or repository[@rev][#entry]")
        ],
    ) -> Description:
        """What an executor is and takes: entry points, parameters with type, default, limits and text."""
        desk.permit(caller, ref)
        return catalogue.get(ref)

    @routes.get("/executors/{name}")
    def executor(name: Annotated[str, Path(max_length=200)], caller: Reader) -> Description:
        """The same of a short name."""
        if name not in {row["name"] for row in desk.session.executors()}:
            raise NotFound(f"No executor is registered under '{name}'.", hint="GET /executors lists them.")
        desk.permit(caller, name)
        return catalogue.get(name)

    return routes
