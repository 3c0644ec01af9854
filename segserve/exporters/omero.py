"""OMERO: per source image `<name>.ome.xml`, OME-XML (2016-06) with one ROI per object.

Corner coordinates, TheZ/TheT/TheC from 0 and absent for "all". OME polygons have no holes, so these are said by one
ring that walks to the hole and back.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from segserve.exporters import outline
from segserve.exporters.base import Exported, Object, Results, colour
from segserve.sheets import Sheet

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_SCHEMA = "http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_TYPES = {"uint8", "uint16", "uint32", "int8", "int16", "int32", "float", "double"}


def export(results: Results, folder: Path) -> Exported:
    """One file per source image."""
    return Exported(tuple(_write(results, sheet, folder / f"{sheet.name}.ome.xml") for sheet in results.sheets))


def _write(results: Results, sheet: Sheet, path: Path) -> Path:
    ET.register_namespace("", NAMESPACE)
    ET.register_namespace("xsi", _XSI)
    root = ET.Element(_tag("OME"), {f"{{{_XSI}}}schemaLocation": f"{NAMESPACE} {_SCHEMA}"})
    image = _image(results, sheet)
    root.append(image)
    number = 0
    for index in sheet.indices:
        for item in results.objects(index):
            root.append(_roi(item, number, _plane(results, index)))
            ET.SubElement(image, _tag("ROIRef"), {"ID": f"ROI:{number}"})
            number += 1
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    return path


def _tag(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _image(results: Results, sheet: Sheet) -> ET.Element:
    """The image that the ROIs lie on, without its pixels."""
    images = [results.images[index] for index in sheet.indices]
    channels = 1 + max((image.c for image in images if image.c is not None), default=0)
    dtype = {"float32": "float", "float64": "double"}.get(images[0].source_dtype, images[0].source_dtype)
    size = {
        "SizeX": sheet.shape[1],
        "SizeY": sheet.shape[0],
        "SizeZ": sheet.axes.get("Z", 1),
        "SizeC": max(sheet.axes.get("C", 1), channels),
        "SizeT": sheet.axes.get("T", 1),
    }
    attributes = {"ID": "Pixels:0", "DimensionOrder": "XYZCT", "Type": dtype if dtype in _TYPES else "uint16"}
    attributes |= {key: str(value) for key, value in size.items()}
    if sheet.pixel_size_um is not None:
        x, y = sheet.pixel_size_um
        attributes |= {"PhysicalSizeX": repr(float(x)), "PhysicalSizeY": repr(float(y))}
        attributes |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    image = ET.Element(_tag("Image"), {"ID": "Image:0", "Name": _text(sheet.name)})
    ET.SubElement(ET.SubElement(image, _tag("Pixels"), attributes), _tag("MetadataOnly"))
    return image


def _plane(results: Results, index: int) -> dict[str, str]:
    image = results.images[index]
    places = {"TheZ": image.z, "TheT": image.t, "TheC": image.c}
    return {key: str(place) for key, place in places.items() if isinstance(place, int)}


def _roi(item: Object, number: int, plane: dict[str, str]) -> ET.Element:
    name = _text(item.label) if item.score is None else f"{_text(item.label)} {item.score:.3g}"
    roi = ET.Element(_tag("ROI"), {"ID": f"ROI:{number}", "Name": f"{item.number} {name}"})
    red, green, blue = colour(item.label)
    stroke = int.from_bytes(bytes((red, green, blue, 255)), "big", signed=True)  # RGBA as a signed number
    union = ET.SubElement(roi, _tag("Union"))
    for part, ring in enumerate(outline.keyholes(item.polygons())):
        points = " ".join(f"{x},{y}" for x, y in ring.tolist())
        shape = {"ID": f"Shape:{number}:{part}", "StrokeColor": str(stroke), "Text": _text(item.label)}
        ET.SubElement(union, _tag("Polygon"), {**shape, "Points": points, **plane})
    return roi


def _text(text: str) -> str:
    """Without the control characters that XML cannot say."""
    return "".join(character if character.isprintable() else " " for character in text)
