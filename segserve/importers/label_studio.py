"""Label Studio: its JSON export (tasks). Annotations where there are any, else predictions; polygons and rectangles."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import numpy.typing as npt

from segserve.importers.base import NUMBER, Broken, Target, member, points, read_json, score_of, typed

_SHAPES = {"polygonlabels": "polygonlabels", "polygon": "", "rectanglelabels": "rectanglelabels", "rectangle": ""}


def read(path: Path, target: Target) -> None:
    """Regions of all tasks that the file has; the image of every one must be among ours."""
    for number, task in enumerate(typed(read_json(path), list, "$")):
        place = f"$[{number}]"
        data = member(task, "data", dict, place)
        address = next((value for value in data.values() if isinstance(value, str)), None)
        address = data.get("image", address)
        index = target.plane(_file_name(typed(address, str, f"{place}.data.image")), f"{place}.data.image")
        for result, where in _results(task, place, target):
            _add(result, where, index, target)


def _file_name(address: str) -> str:
    """`cells.png` of `/data/upload/1/1a2b3c4d-cells.png` or `/data/local-files/?d=images/cells.png`."""
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    return local[0] if local else unquote(parts.path)


def _results(task: dict[str, Any], place: str, target: Target) -> list[tuple[Any, str]]:
    """The regions of the task's last annotation that was not cancelled, else of its last prediction."""
    for key in ("annotations", "completions", "predictions"):
        listed = typed(task.get(key) or [], list, f"{place}.{key}")
        kept = [
            number for number, one in enumerate(listed) if not typed(one, dict, f"{place}.{key}").get("was_cancelled")
        ]
        if kept:
            if len(kept) > 1:
                target.note("import-several", f"The task has {len(kept)} {key}; the last is read.", f"{place}.{key}")
            where = f"{place}.{key}[{kept[-1]}]"
            found = member(listed[kept[-1]], "result", list, where)
            return [(one, f"{where}.result[{number}]") for number, one in enumerate(found)]
    return []


def _add(region: Any, place: str, index: int, target: Target) -> None:
    kind = member(region, "type", str, place)
    if kind not in _SHAPES:
        target.note("import-no-area", f"A region of type '{kind[:40]}' is left out; polygons are read.", place)
        return
    rows, columns = target.images[index].shape
    size = member(region, "original_height", int, place), member(region, "original_width", int, place)
    if size != (rows, columns):
        raise Broken(f"The image is {size[1]} × {size[0]} pixels there, ours is {columns} × {rows}.", place)
    if region.get("image_rotation", 0) != 0:
        raise Broken("The image was rotated there.", f"{place}.image_rotation")
    value = member(region, "value", dict, place)
    ring = _ring(value, kind, f"{place}.value") * (columns / 100, rows / 100)
    names = value.get(_SHAPES[kind]) or []
    label = typed(names[0], str, f"{place}.value") if isinstance(names, list) and names else ""
    target.add_polygons(index, [[ring]], label, score_of(region.get("score"), f"{place}.score"), place)


def _ring(value: dict[str, Any], kind: str, place: str) -> npt.NDArray[np.float64]:
    """(n, 2) in percent of the image's size."""
    if kind.startswith("polygon"):
        return points(member(value, "points", list, place), f"{place}.points")
    if value.get("rotation", 0) != 0:
        raise Broken("A rotated rectangle is not read.", f"{place}.rotation")
    x, y, width, height = (float(member(value, key, NUMBER, place)) for key in ("x", "y", "width", "height"))
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
