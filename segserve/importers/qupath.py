"""QuPath: GeoJSON (a FeatureCollection, a list of features, or one), corner coordinates, `plane` for stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segserve.importers.base import NUMBER, Broken, Target, member, points, read_json, score_of, typed
from segserve.sheets import Sheet


def read(path: Path, target: Target) -> None:
    """The objects of one image, which the file's name tells."""
    sheet = target.sheet(path.name)
    found = read_json(path)
    if isinstance(found, list):
        features, root = found, "$"
    elif typed(found, dict, "$").get("type") == "Feature":
        features, root = [found], "$"
    else:
        features, root = member(found, "features", list, "$"), "$.features"
    for number, feature in enumerate(features):
        _add(feature, f"{root}[{number}]", sheet, target)


def _add(feature: Any, place: str, sheet: Sheet, target: Target) -> None:
    geometry = member(feature, "geometry", dict, place)
    kind = member(geometry, "type", str, f"{place}.geometry")
    inside = f"{place}.geometry.coordinates"
    if kind not in ("Polygon", "MultiPolygon"):
        target.note("import-no-area", f"A {kind[:40]} encloses nothing and is left out.", place)
        return
    listed = member(geometry, "coordinates", list, f"{place}.geometry")
    parts = [listed] if kind == "Polygon" else listed
    polygons = []
    for number, part in enumerate(parts):
        where = inside if kind == "Polygon" else f"{inside}[{number}]"
        polygons.append([points(ring, f"{where}[{at}]") for at, ring in enumerate(typed(part, list, where))])
    properties = typed(feature.get("properties") or {}, dict, f"{place}.properties")
    index = _index(geometry, place, sheet, target)
    target.add_polygons(index, polygons, _label(properties, place), _score(properties, place), place)


def _index(geometry: dict[str, Any], place: str, sheet: Sheet, target: Target) -> int:
    plane = typed(geometry.get("plane", {}), dict, f"{place}.geometry.plane")
    at: dict[str, int | None] = {}
    for axis, key in (("T", "t"), ("Z", "z"), ("C", "c")):
        value = typed(plane.get(key, -1 if key == "c" else 0), int, f"{place}.geometry.plane.{key}")
        at[axis] = None if value < 0 or axis not in sheet.axes else value
    return target.position(sheet, at, place)


def _label(properties: dict[str, Any], place: str) -> str:
    where = f"{place}.properties.classification"
    found = properties.get("classification")
    if found is None:
        return ""
    if isinstance(found, str):
        return found
    if "names" in typed(found, dict, where):
        names = typed(found["names"], list, f"{where}.names")
        return ": ".join(typed(name, str, f"{where}.names") for name in names)
    return str(member(found, "name", str, where))


def _score(properties: dict[str, Any], place: str) -> float | None:
    where = f"{place}.properties.measurements"
    found = properties.get("measurements", {})
    if isinstance(found, list):  # QuPath 0.2 and 0.3
        found = {one.get("name"): one.get("value") for one in found if isinstance(one, dict)}
    value = typed(found, dict, where).get("score")
    if value is not None and not isinstance(value, NUMBER):
        raise Broken("A number is expected.", f"{where}.score")
    return score_of(value, f"{where}.score")
