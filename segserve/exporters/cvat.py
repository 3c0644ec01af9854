"""CVAT: `annotations.xml` in the form "CVAT for images 1.1", every plane an image.

Corner coordinates. An object without holes is a `<polygon>`; the others are a `<mask>` (run lengths, row by row within
its box), because CVAT's polygons have no holes.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from segserve.exporters.base import Exported, Object, Results, colour


def export(results: Results, folder: Path) -> Exported:
    """One file for all images."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    ET.SubElement(task, "name").text = _text(results.document.model)
    ET.SubElement(task, "size").text = str(len(results.images))
    ET.SubElement(task, "mode").text = "annotation"
    labels = ET.SubElement(task, "labels")
    for name in results.labels:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = _text(name)
        ET.SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*colour(name))
        ET.SubElement(label, "attributes")
    for sheet in results.sheets:
        for index in sheet.indices:
            rows, columns = results.images[index].shape
            described = {"id": str(index), "name": sheet.flat_name(results.images[index])}
            image = ET.SubElement(root, "image", {**described, "width": str(columns), "height": str(rows)})
            for item in results.objects(index):
                _add(image, item)
    ET.indent(root)
    path = folder / "annotations.xml"
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    return Exported((path,))


def _add(image: ET.Element, item: Object) -> None:
    shared = {"label": _text(item.label), "source": "auto", "occluded": "0"}
    parts = item.polygons()
    if len(parts) == 1 and len(parts[0]) == 1:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in parts[0][0].tolist())
        ET.SubElement(image, "polygon", {**shared, "points": points, "z_order": "0"})
        return
    height, width = item.pixels.shape
    box = {"left": item.left, "top": item.top, "width": width, "height": height}
    runs = ", ".join(map(str, _run_lengths(item)))
    ET.SubElement(
        image, "mask", {**shared, "rle": runs, **{key: str(value) for key, value in box.items()}, "z_order": "0"}
    )


def _run_lengths(item: Object) -> list[int]:
    """Lengths of runs, row by row within the box, beginning with background."""
    flat = np.concatenate([[False], item.pixels.ravel()])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff(np.concatenate([[0], changes, [item.pixels.size]]))]


def _text(text: str) -> str:
    """Without the control characters that XML cannot say."""
    return "".join(character if character.isprintable() else " " for character in text)
