"""OME-XML: which plane of which image lies in which IFD of this very file, and how large a pixel is.

tifffile's own OME series opens every file of a set and fills missing planes with zeros; told not to open the others, it
gives up on the set. Here each file contributes exactly the planes that it holds, at their true positions.
https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from segserve.inputs.base import Plane, Unusable, check_count, micrometres


@dataclass(frozen=True, slots=True)
class OmeImage:
    """One Image element. `ifds` maps (t, z, c) to the index of a page in this file."""

    name: str
    shape: tuple[int, int]
    sizes: Mapping[str, int]
    samples: int
    channel_names: tuple[str, ...]
    pixel_size_um: tuple[float, float] | None
    ifds: Mapping[Plane, int]

    @property
    def complete(self) -> bool:
        """Does this file hold all planes?"""
        return len(self.ifds) == math.prod(self.sizes.values())


def parse(xml: str, file_name: str, pages: int) -> list[OmeImage]:
    """The images of an OME-TIFF of which this file holds at least one plane."""
    root = ET.fromstring(xml)  # noqa: S314 - expat limits entity expansion since 2.4.1
    if _find(root, "BinaryOnly") is not None:
        master = (_find(root, "BinaryOnly") or root).get("MetadataFile", "another file")
        raise Unusable(
            "image-axes", f"has its metadata in {master!r}", "Give that file, or export it to a single OME-TIFF."
        )
    own = {root.get("UUID")} - {None}
    images = []
    for element in _all(root, "Image"):
        pixels = _find(element, "Pixels")
        if pixels is not None:
            image = _image(element, pixels, own, file_name, pages)
            if image.ifds:
                images.append(image)
    return images


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _all(parent: ET.Element, tag: str) -> list[ET.Element]:
    return [child for child in parent if _tag(child) == tag]


def _find(parent: ET.Element, tag: str) -> ET.Element | None:
    return next(iter(_all(parent, tag)), None)


def _image(image: ET.Element, pixels: ET.Element, own: set[str | None], file_name: str, pages: int) -> OmeImage:
    channels = _all(pixels, "Channel")
    samples = {int(channel.get("SamplesPerPixel", 1)) for channel in channels} or {1}
    if len(samples) > 1:
        raise Unusable("image-axes", "mixes channels with different numbers of samples per pixel")
    sample_count = samples.pop()
    sizes = {axis: int(pixels.attrib[f"Size{axis}"]) for axis in "TZC"}
    sizes["C"] = max(1, sizes["C"] // sample_count)
    check_count(math.prod(sizes.values()))
    order = pixels.get("DimensionOrder", "XYZCT")[2:]  # fastest first
    if sorted(order) != ["C", "T", "Z"]:
        raise Unusable("image-axes", f"has an impossible DimensionOrder {order!r}")
    names = tuple(channel.get("Name", "") for channel in channels)
    return OmeImage(
        name=image.get("Name", ""),
        shape=(int(pixels.attrib["SizeY"]), int(pixels.attrib["SizeX"])),
        sizes=sizes,
        samples=sample_count,
        channel_names=names if any(names) else (),
        pixel_size_um=_pixel_size(pixels),
        ifds=_ifds(pixels, order, sizes, own, file_name, pages),
    )


def _ifds(
    pixels: ET.Element, order: str, sizes: Mapping[str, int], own: set[str | None], file_name: str, pages: int
) -> dict[Plane, int]:
    total = math.prod(sizes.values())
    strides = {order[0]: 1, order[1]: sizes[order[0]], order[2]: sizes[order[0]] * sizes[order[1]]}
    blocks = _all(pixels, "TiffData")
    found: dict[Plane, int] = {}
    steps = 0
    for block in blocks or [ET.Element("TiffData")]:
        if not _here(block, own, file_name):
            continue
        first = sum(int(block.get(f"First{axis}", 0)) * strides[axis] for axis in "TZC")
        ifd = int(block.get("IFD", 0))
        count = int(block.get("PlaneCount", block.get("NumPlanes", 1 if "IFD" in block.attrib else 0)))
        count = count or min(total - first, pages - ifd)
        steps += count
        check_count(max(1, steps))  # blocks may repeat each other
        if first < 0 or ifd < 0 or first + count > total:
            raise Unusable("image-axes", f"declares planes outside its own dimensions ({first + count} of {total})")
        for step in range(count):
            t, z, c = ((first + step) // strides[axis] % sizes[axis] for axis in "TZC")
            found[t, z, c] = ifd + step
    return found


def _here(block: ET.Element, own: set[str | None], file_name: str) -> bool:
    """Does a TiffData element speak of this file?"""
    uuid = _find(block, "UUID")
    if uuid is None:
        return True
    named = uuid.get("FileName")
    return uuid.text in own if own else named is None or named.lower() == file_name.lower()


def _unit(pixels: ET.Element, axis: str) -> float:
    return micrometres(pixels.get(f"PhysicalSize{axis}Unit", "µm")) or 0.0


def _pixel_size(pixels: ET.Element) -> tuple[float, float] | None:
    try:
        x, y = (float(pixels.attrib[f"PhysicalSize{axis}"]) * _unit(pixels, axis) for axis in "XY")
    except (KeyError, ValueError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None
