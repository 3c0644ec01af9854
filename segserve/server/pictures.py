"""`/jobs/{id}/images` and `/jobs/{id}/polygons`: what people look at. Images are counted from 0, as in output.json."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from fastapi import APIRouter, Query
from fastapi import Path as InPath
from fastapi.responses import Response
from pydantic import BaseModel, Field

from segserve import conversion, inputs
from segserve.errors import NotFound, UsageError
from segserve.format import Document
from segserve.journal import JobRecord
from segserve.model import JobState, StagedImage
from segserve.report.preview import LEAST, MOST, Preview, Region, preview
from segserve.server.access import Reader
from segserve.server.desk import Desk
from segserve.server.jobs import JobId
from segserve.server.problems import RESPONSES

_Index = Annotated[int, InPath(ge=0, le=10_000_000, description="of the image, from 0")]
_KEPT = 4  # documents of jobs that somebody looks at now
_AT_ONCE = 2  # images that are decoded at the same time
_REGION = r"^\d{1,7},\d{1,7},\d{1,7},\d{1,7}$"


class Picture(BaseModel):
    """One image of a job. `objects` is None while there is no result."""

    index: int
    name: str
    width: int = Field(description="pixels of the image")
    height: int
    t: int | None = None
    z: int | str | None = None
    c: int | None = None
    channel: str = ""
    pixel_size_um: tuple[float, float] | None = Field(None, description="(x, y) micrometres per pixel")
    objects: int | None = None


@dataclass
class Gallery:
    """Images and polygons of jobs. The documents that were looked at last stay in memory."""

    desk: Desk
    _documents: OrderedDict[str, Document] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _drawing: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_AT_ONCE))

    def images(self, record: JobRecord) -> list[Picture]:
        """The images of a job, in input order."""
        staged = self._staged(record)
        counts = self._document(record).counts().tolist() if _has_polygons(record) else [None] * len(staged)
        rows = zip(staged, inputs.short_names(staged), counts, strict=True)
        return [_picture(index, *row) for index, row in enumerate(rows)]

    def draw(self, record: JobRecord, index: int, largest: int, region: Region | None) -> Preview:
        """A picture of one image. Those of whole images are kept with the job."""
        image = _at(self._staged(record), index)
        folder = self.desk.folder(record.job_id)
        kept = folder.previews / f"{index}-{largest}"
        if region is None and (known := _kept(kept, image, largest)):
            return known
        with self._drawing:
            drawn = preview(folder.inputs / image.name, largest, region)
        if region is None:
            _keep(kept, drawn)
        return drawn

    def polygons(self, record: JobRecord, index: int) -> bytes:
        """The objects of one image, as JSON."""
        image = _at(self._staged(record), index)
        found = self._document(record).image(index)
        scores = np.round(found.scores, 4).tolist()
        rings = np.split(np.round(found.coordinates, 3), found.offsets[1:-1])
        objects = [
            {"label": label, "score": None if math.isnan(score) else score, "points": ring.tolist()}
            for label, score, ring in zip(found.labels, scores, rings, strict=False)
        ]
        height, width = image.shape
        shape = {"index": index, "width": width, "height": height, "origin": "pixel centres"}
        return msgspec.json.encode({**shape, "objects": objects})

    def _staged(self, record: JobRecord) -> tuple[StagedImage, ...]:
        listed = self.desk.folder(record.job_id).inputs_map
        if not listed.exists():
            state = "takes none" if record.state.final else "has none yet"
            raise NotFound(f"Job {record.job_id} {state}: no images were staged.")
        return inputs.read_map(listed)

    def _document(self, record: JobRecord) -> Document:
        with self._lock:
            known = self._documents.get(record.job_id)
            if known is not None:
                self._documents.move_to_end(record.job_id)
                return known
        output = self.desk.output(record)
        loaded = conversion.load(output.parent, staged=self.desk.folder(record.job_id).inputs_map).results.document
        with self._lock:
            self._documents[record.job_id] = loaded
            while len(self._documents) > _KEPT:
                self._documents.popitem(last=False)
        return loaded


def _has_polygons(record: JobRecord) -> bool:
    return record.state is JobState.SUCCEEDED and (Path(record.result) / conversion.RESULTS).is_file()


def _at(staged: tuple[StagedImage, ...], index: int) -> StagedImage:
    if index >= len(staged):
        raise NotFound(f"There is no image {index}.", hint=f"There are {len(staged)}, counted from 0.")
    return staged[index]


def _picture(index: int, image: StagedImage, name: str, objects: int | None) -> Picture:
    height, width = image.shape
    return Picture(
        index=index,
        name=name,
        width=width,
        height=height,
        t=image.t,
        z=image.z,
        c=image.c,
        channel=image.channel_name,
        pixel_size_um=image.pixel_size_um,
        objects=objects,
    )


def _kept(path: Path, image: StagedImage, largest: int) -> Preview | None:
    for suffix, kind in ((".png", "image/png"), (".jpg", "image/jpeg")):
        try:
            content = path.with_suffix(suffix).read_bytes()
        except FileNotFoundError:
            continue
        return Preview(content, kind, min(1.0, largest / max(image.shape)))
    return None


def _keep(path: Path, drawn: Preview) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    beside = path.with_name(f".{path.name}.{threading.get_ident()}.tmp")
    beside.write_bytes(drawn.content)
    beside.replace(path.with_suffix(".png" if drawn.media_type == "image/png" else ".jpg"))


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], responses=RESPONSES)
    gallery = Gallery(desk)

    @routes.get("/images")
    def images(job_id: JobId, caller: Reader) -> list[Picture]:
        """The images of a job, in input order, with the number of objects when it has a result."""
        return gallery.images(desk.get(job_id, caller.sees))

    @routes.get(
        "/images/{index}",
        response_class=Response,
        responses={
            200: {
                "content": {"image/png": {}, "image/jpeg": {}},
                "description": "`X-Scale`: its pixels per pixel of the image",
            }
        },
    )
    def image(
        job_id: JobId,
        caller: Reader,
        index: _Index,
        size: Annotated[int, Query(ge=LEAST, le=MOST, description="of the longer side at most, in pixels")] = 2048,
        region: Annotated[
            str | None,
            Query(pattern=_REGION, description="left,top,width,height in pixels of the image; else all of it"),
        ] = None,
    ) -> Response:
        """A picture of an image: grey values stretched between two quantiles, 8 bits."""
        chosen = _region(region) if region else None
        drawn = gallery.draw(desk.get(job_id, caller.sees), index, size, chosen)
        headers = {
            "X-Scale": f"{drawn.scale:.8g}",
            "Cache-Control": "private, max-age=3600",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(drawn.content, media_type=drawn.media_type, headers=headers)

    @routes.get("/polygons/{index}", response_class=Response, responses={200: {"content": {"application/json": {}}}})
    def polygons(job_id: JobId, index: _Index, caller: Reader) -> Response:
        """The objects of one image: `points` are (x, y) in pixels of the image, whole numbers are pixel centres."""
        content = gallery.polygons(desk.get(job_id, caller.sees), index)
        return Response(content, media_type="application/json")

    return routes


def _region(text: str) -> Region:
    left, top, width, height = (int(part) for part in text.split(","))
    if not width or not height:
        raise UsageError("The region is empty.", hint="region=left,top,width,height, in pixels of the image")
    return left, top, width, height
