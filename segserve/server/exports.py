"""`/jobs/{id}/exports/{format}`: what `segserve export` writes, as one file or a zip of them."""

from __future__ import annotations

import mimetypes
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from segserve import conversion
from segserve.exporters import EXPORTERS, export_all
from segserve.journal import JobRecord
from segserve.server.access import Reader
from segserve.server.desk import Desk
from segserve.server.jobs import JobId
from segserve.server.problems import RESPONSES

_PACKED = frozenset({".zip", ".png", ".tif", ".tiff"})  # compressing them again gains nothing
_ALONE = frozenset({".json", ".geojson", ".xml", ".csv", *_PACKED})
_CHUNK = 1 << 20

Format = StrEnum("Format", {name.replace("-", "_"): name for name in EXPORTERS})  # type: ignore[misc]  # mypy wants literals


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/jobs/{job_id}/exports", tags=["jobs"], responses=RESPONSES)

    @routes.get("")
    def formats(job_id: JobId, caller: Reader) -> list[str]:
        """The formats that results can be exported to."""
        desk.get(job_id, caller.sees)
        return list(EXPORTERS)

    @routes.get(
        "/{target}",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/zip": {}, "application/octet-stream": {}}}},
    )
    def export(job_id: JobId, target: Format, caller: Reader) -> StreamingResponse:
        """The result for another program; several files come as a zip. What did not fit is counted in `X-Findings`."""
        return exported(desk, desk.get(job_id, caller.sees), target.value)

    return routes


def exported(desk: Desk, record: JobRecord, target: str) -> StreamingResponse:
    """Write the export of a job's result, and answer with it.

    Raises:
        SegserveError: the job has no result, or its result has no polygons.
    """
    output = desk.output(record)
    loaded = conversion.load(output.parent, staged=desk.folder(record.job_id).inputs_map)
    folder = Path(tempfile.mkdtemp(dir=desk.session.ctx.home.temporary))
    try:
        written = export_all(loaded.results, [target], folder)
        path = _single(written.paths) or _zipped(folder / target, folder / f"{target}.zip")
        stream, size = path.open("rb"), path.stat().st_size
    finally:  # what is open is still there for us, and nobody has to clean up behind a client that goes away
        shutil.rmtree(folder, ignore_errors=True)
    return StreamingResponse(
        _chunks(stream),
        media_type=mimetypes.guess_type(path.name)[0] or "application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{record.job_id}-{target}{path.suffix.lower()}"',
            "Content-Length": str(size),
            "X-Findings": str(len(written.findings)),
            "X-Content-Type-Options": "nosniff",
        },
    )


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _single(paths: Sequence[Path]) -> Path | None:
    """The only file, if it is one of the usual kinds: its suffix becomes a part of a header."""
    return paths[0] if len(paths) == 1 and paths[0].is_file() and paths[0].suffix.lower() in _ALONE else None


def _zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                kind = zipfile.ZIP_STORED if path.suffix in _PACKED else None
                archive.write(path, path.relative_to(folder.parent), compress_type=kind)
    return target
