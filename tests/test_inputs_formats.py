"""The other containers: OME-Zarr as zarr writes it, CZI, LIF and ND2 as small files made here; broken bytes."""

from __future__ import annotations

import json
import struct
import sys
import uuid
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr

from segserve import inputs
from segserve.errors import UnreadableImage
from segserve.inputs import Selection
from tests.test_inputs import noise, png, refused, staged

# --- OME-Zarr --------------------------------------------------------------------------------------------------------


def ome_zarr(path: Path, array: Any, axes: str, version: str) -> Path:
    """A multiscale image with a smaller second level, in NGFF 0.4 (Zarr 2) or 0.5 (Zarr 3)."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    kinds = {"t": "time", "c": "channel"}
    spatial = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in spatial:
        if axis["type"] == "space":
            axis["unit"] = "nanometer"
    datasets = []
    for level, data in (("0", array), ("1", array[..., ::2, ::2])):
        one = group.create_array(level, shape=data.shape, chunks=(1,) * (data.ndim - 2) + (16, 16), dtype=data.dtype)
        one[...] = data
        scale = [1.0] * (data.ndim - 2) + [65.0, 65.0]
        datasets.append({"path": level, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    multiscales = [{"axes": spatial, "datasets": datasets, "name": "cells", "version": version}]
    omero = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    content = {"multiscales": multiscales, "omero": omero}
    group.attrs.update(content if version == "0.4" else {"ome": {**content, "version": version}})
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    array = noise(3, 2, 4, 20, 30, dtype=np.uint16)
    path = ome_zarr(tmp_path / "a.ome.zarr", array, "tczyx", version)
    (source,) = inputs.describe([path])
    assert source.kind == "zarr"
    assert dict(source.series[0].sizes) == {"T": 3, "C": 2, "Z": 4}
    assert source.series[0].pixel_size_um == pytest.approx((0.065, 0.065))
    assert "0 'DAPI', 1 'GFP'" in refused(path).message
    read, images = staged(tmp_path, path, channel="GFP")
    assert [(image.t, image.z) for image in images] == [(t, z) for t in range(3) for z in range(4)]
    assert np.array_equal(np.stack(read).reshape(3, 4, 20, 30), array[:, 1])


def test_ome_zarr_in_a_folder_and_as_a_collection(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    one, two = noise(20, 30), noise(22, 33)
    ome_zarr(folder / "b.zarr" / "0", one, "yx", "0.4")
    ome_zarr(folder / "b.zarr" / "1", two, "yx", "0.4")
    (folder / "b.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / "b.zarr" / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    assert "holds 2 series" in refused(folder).message
    read, images = staged(tmp_path, folder, series="all")
    assert [pixels.shape for pixels in read] == [(20, 30), (22, 33)]
    assert np.array_equal(read[1], two)
    assert [image.series for image in images] == [0, 1]


def test_a_zarr_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a.zarr", noise(20, 30), "yx", "0.4")
    meta = json.loads((path / "0" / ".zarray").read_text())
    (path / "0" / ".zarray").write_text(json.dumps({**meta, "filters": [{"id": "pickle"}]}))
    assert "codecs that are not accepted: pickle" in refused(path).message
    (path / "0" / ".zarray").write_text(json.dumps({**meta, "chunks": [10**6, 10**6]}))
    assert "has chunks of" in refused(path).message
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["path"] = "../../elsewhere"
    (path / ".zattrs").write_text(json.dumps(attributes))
    assert "outside itself" in refused(path).message
    plain = tmp_path / "plain.zarr"
    zarr.create_array(plain, shape=(4, 4), dtype="uint8")
    assert "without OME-Zarr metadata" in refused(plain).message


# --- Leica LIF -------------------------------------------------------------------------------------------------------


def lif(path: Path, images: dict[str, Any]) -> Path:
    """A LIF with one memory block per image; arrays are (T, Z, C, Y, X) uint8, channels stored plane after plane."""
    elements, blocks = "", b""
    for number, (name, array) in enumerate(images.items()):
        t, z, c, y, x = array.shape
        inc = {"C": y * x, "Z": y * x * c, "T": y * x * c * z}
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="8" NameOfMeasuredQuantity="" Min="0" '
            f'Max="255" Unit="" LUTName="{lut}" IsLUTInverted="0" BytesInc="{k * inc["C"]}" BitInc="0"/>'
            for k, lut in zip(range(c), ("Green", "Red"), strict=False)
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{i}" NumberOfElements="{n}" Origin="0" Length="{(n - 1) * 2.5e-7}" Unit="m" '
            f'BitInc="0" BytesInc="{b}"/>'
            for i, n, b in ((1, x, 1), (2, y, x), (3, z, inc["Z"]), (4, t, inc["T"]))
            if n > 1
        )
        elements += (
            f'<Element Name="{name}" UniqueID="{number}"><Data><Image><ImageDescription><Channels>{channels}</Channels>'
            f"<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{array.nbytes}" MemoryBlockID="MemBlock_{number}"/></Element>'
        )
        block_id = f"MemBlock_{number}".encode("utf-16-le")
        description = struct.pack("<BqBI", 0x2A, array.nbytes, 0x2A, len(block_id) // 2) + block_id
        blocks += struct.pack("<II", 0x70, len(description)) + description + array.tobytes()
    xml = (
        f'<LMSDataContainerHeader Version="2"><Element Name="project"><Children>{elements}</Children></Element>'
        "</LMSDataContainerHeader>"
    ).encode("utf-16-le")
    path.write_bytes(struct.pack("<IIBI", 0x70, len(xml) + 5, 0x2A, len(xml) // 2) + xml + blocks)
    return path


def test_lif(tmp_path: Path) -> None:
    first, second = noise(2, 3, 2, 5, 7), noise(1, 1, 1, 6, 8)
    path = lif(tmp_path / "a.lif", {"first": first, "second": second})
    (source,) = inputs.describe([path])
    assert [dict(one.sizes) for one in source.series] == [{"T": 2, "Z": 3, "C": 2}, {}]
    assert source.series[0].pixel_size_um == pytest.approx((0.25, 0.25))
    assert inputs.channel_list(source.series[0]) == ("Green", "Red")
    assert "holds 2 series" in refused(path).message
    read, images = staged(tmp_path, path, series="0", channel="Red")
    assert np.array_equal(np.stack(read).reshape(2, 3, 5, 7), first[:, :, 1])
    assert [(image.series, image.t, image.z, image.c) for image in images[:2]] == [(0, 0, 0, 1), (0, 0, 1, 1)]
    read, _ = staged(tmp_path, path, series="1")
    assert np.array_equal(read[0], second[0, 0, 0])


# --- Zeiss CZI -------------------------------------------------------------------------------------------------------


def segment(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<16sqq", kind, len(body), len(body)) + body


def czi(path: Path, tiles: list[tuple[dict[str, int], Any]], compression: int = 0) -> Path:
    """A CZI of (start per axis, uint16 pixels (rows, columns)) as `ZISRAW` segments."""
    packed = {0: lambda data: data, 5: _zstd, 6: _zstd_split}[compression]
    xml = (
        b'<ImageDocument><Metadata><Scaling><Items><Distance Id="X"><Value>5e-7</Value></Distance><Distance Id="Y">'
        b"<Value>5e-7</Value></Distance></Items></Scaling><Information><Image><Dimensions><Channels>"
        b'<Channel Name="EGFP"/><Channel Name="mCher"/></Channels></Dimensions></Image></Information></Metadata>'
        b"</ImageDocument>"
    )
    metadata = segment(b"ZISRAWMETADATA", struct.pack("<ii248x", len(xml), 0) + xml)
    position = 32 + 512 + len(metadata)
    entries, body = b"", b""
    for starts, pixels in tiles:
        sizes = {"X": pixels.shape[1], "Y": pixels.shape[0]}
        axes = ["X", "Y", *(axis for axis in starts if axis not in "XY")]
        dimensions = b""
        for axis in axes:
            size = sizes.get(axis, 1)
            dimensions += struct.pack("<4siifi", axis.encode(), starts[axis], size, 0.0, size)
        entry = (
            struct.pack("<2siqiiBB4si", b"DV", 1, position + len(body), 0, compression, 0, 0, b"", len(axes))
            + dimensions
        )
        data = packed(pixels.tobytes())
        padding = bytes(max(240 - len(entry), 0))
        body += segment(b"ZISRAWSUBBLOCK", struct.pack("<iiq", 0, 0, len(data)) + entry + padding + data)
        entries += entry
    directory = segment(b"ZISRAWDIRECTORY", struct.pack("<i124x", len(tiles)) + entries)
    guid = uuid.UUID(int=1).bytes
    head = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, guid, guid, 0, position + len(body), 544, 0, 0)
    path.write_bytes(segment(b"ZISRAWFILE", head.ljust(512, b"\0")) + metadata + body + directory)
    return path


def _zstd(data: bytes) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.zstd_encode(data))


def _zstd_split(data: bytes) -> bytes:
    """Zstd1 with low bytes first, then high bytes."""
    halves = np.frombuffer(data, np.uint8).reshape(-1, 2)
    return b"\x03\x01\x01" + _zstd(np.ascontiguousarray(halves.T).tobytes())


@pytest.mark.parametrize("compression", [0, 5, 6])
def test_czi(tmp_path: Path, compression: int) -> None:
    array = noise(2, 3, 2, 6, 10, dtype=np.uint16)  # T Z C Y X, as a mosaic of two tiles side by side
    tiles = [
        ({"X": 100 + 5 * m, "Y": 40, "C": c, "Z": z, "T": t, "M": m}, array[t, z, c, :, 5 * m : 5 * m + 5])
        for t in range(2)
        for z in range(3)
        for c in range(2)
        for m in range(2)
    ]
    path = czi(tmp_path / "a.czi", tiles, compression)
    (source,) = inputs.describe([path])
    assert dict(source.series[0].sizes) == {"T": 2, "Z": 3, "C": 2}
    assert source.series[0].shape == (6, 10)
    assert source.series[0].pixel_size_um == pytest.approx((0.5, 0.5))
    assert "0 'EGFP', 1 'mCher'" in refused(path).message
    read, images = staged(tmp_path, path, channel="mCher")
    assert np.array_equal(np.stack(read).reshape(2, 3, 6, 10), array[:, :, 1])
    assert images[0].channel_name == "mCher"


def test_czi_scenes_are_series(tmp_path: Path) -> None:
    one, two = noise(6, 7, dtype=np.uint16), noise(8, 9, dtype=np.uint16)
    path = czi(tmp_path / "a.czi", [({"X": 0, "Y": 0, "S": 0}, one), ({"X": 50, "Y": 9, "S": 1}, two)])
    read, _ = staged(tmp_path, path, series="all")
    assert np.array_equal(read[0], one)
    assert np.array_equal(read[1], two)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UnreadableImage):
        staged(tmp_path, path, series="all")


# --- Nikon ND2 -------------------------------------------------------------------------------------------------------


def variant(name: str, value: Any) -> bytes:
    """One entry of Nikon's "lite variant": type, length of the name, name in UTF-16, value."""
    kind = {bool: 1, int: 3, float: 6, str: 8, dict: 11}[type(value)]
    head = struct.pack("BB", kind, len(name) + 1) + f"{name}\0".encode("utf-16-le")
    if isinstance(value, dict):
        body = b"".join(variant(key, one) for key, one in value.items())
        return head + struct.pack("<IQ", len(value), len(head) + 12 + len(body)) + body + bytes(8 * len(value))
    if isinstance(value, str):
        return head + f"{value}\0".encode("utf-16-le")
    return head + struct.pack({1: "?", 3: "I", 6: "d"}[kind], value)


def nd2(path: Path, array: Any, *, recorded: int | None = None) -> Path:
    """A version 3 file of a (T, P, Z, Y, X, C) uint16 array: one chunk per frame, channels interleaved."""
    t, p, z, rows, columns, channels = array.shape
    frames = array.reshape(t * p * z, rows, columns, channels)[:recorded]
    stack = {"eType": 4, "uLoopPars": {"uiCount": z, "dZStep": 0.5}}
    points = {f"i{number:010}": {"dPosX": 0.0, "dPosY": 0.0} for number in range(p)}
    field = {"eType": 2, "uLoopPars": {"Points": points}, "ppNextLevelEx": {"i0000000000": stack}}
    time = {"uiCount": t, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 1.0}
    attributes = {"uiWidth": columns, "uiWidthBytes": columns * channels * 2, "uiHeight": rows, "uiComp": channels}
    attributes |= {"uiBpcInMemory": 16, "uiBpcSignificant": 16, "uiSequenceCount": len(frames), "eCompression": 2}
    planes = {
        f"a{number}": {"sDescription": name, "pFluorescentProbe": {"m_sName": name}}
        for number, name in enumerate(("DAPI", "GFP")[:channels])
    }
    picture = {"bCalibrated": True, "dCalibration": 0.325, "sPicturePlanes": {"uiCount": channels, "sPlaneNew": planes}}
    chunks = {
        b"ImageAttributesLV!": variant("SLxImageAttributes", attributes),
        b"ImageMetadataSeqLV|0!": variant("SLxPictureMetadata", picture),
        b"ImageMetadataLV!": variant(
            "SLxExperiment", {"eType": 1, "uLoopPars": time, "ppNextLevelEx": {"i0000000000": field}}
        ),
        **{f"ImageDataSeq|{number}!".encode(): bytes(8) + frame.tobytes() for number, frame in enumerate(frames)},
    }
    magic, content, places = 0x0ABECEDA, b"", b""
    content = struct.pack("<IIQ32s64s", magic, 32, 64, b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0")
    for name, data in chunks.items():
        places += name + struct.pack("<QQ", len(content), len(data))
        content += struct.pack("<IIQ", magic, 4072, len(data)) + name.ljust(4072, b"\0") + data
    places += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(content))
    content += struct.pack("<IIQ", magic, 32, len(places)) + b"ND2 FILEMAP SIGNATURE NAME 0001!" + places
    path.write_bytes(content)
    return path


def test_nd2(tmp_path: Path) -> None:
    array = noise(2, 3, 4, 6, 8, 2, dtype=np.uint16)
    path = nd2(tmp_path / "a.nd2", array)
    (source,) = inputs.describe([path])
    assert [dict(one.sizes) for one in source.series] == [{"T": 2, "Z": 4, "C": 2}] * 3
    assert source.series[0].pixel_size_um == pytest.approx((0.325, 0.325))
    assert "holds 3 series" in refused(path).message
    assert "0 'DAPI', 1 'GFP'" in refused(path, series="0").message
    read, images = staged(tmp_path, path, series="2", channel="GFP")
    assert np.array_equal(np.stack(read).reshape(2, 4, 6, 8), array[:, 2, ..., 1])
    assert [(image.series, image.t, image.z, image.c) for image in images[:2]] == [(2, 0, 0, 1), (2, 0, 1, 1)]


def test_a_stopped_nd2_acquisition_is_not_filled_with_zeros(tmp_path: Path) -> None:
    path = nd2(tmp_path / "a.nd2", noise(3, 1, 1, 6, 8, 1, dtype=np.uint16), recorded=2)
    with pytest.raises(UnreadableImage, match="lacks the frame of t=2"):
        staged(tmp_path, path)
    assert len(staged(tmp_path, path, frames=":2")[0]) == 2


# --- libraries that are not there, bytes that make no sense ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "magic"), [("czifile", b"ZISRAWFILE"), ("nd2", b"\xda\xce\xbe\n"), ("liffile", b"p\0\0\0")]
)
def test_missing_library_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, magic: bytes
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a").write_bytes(magic + bytes(100))
    error = refused(tmp_path / "a")
    assert error.findings[0].rule == "image-missing-library"
    assert "pip install 'segserve[microscopes]'" in error.hint


def test_mutated_files_never_crash(tmp_path: Path) -> None:
    """Whatever the bytes: staged, or refused by name."""
    random = np.random.default_rng(1)
    seeds = [png(tmp_path / f"a.{suffix}", noise(9, 11, 3)) for suffix in ("png", "jpg", "bmp")]
    np.save(tmp_path / "a.npy", noise(3, 9, 11))
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 9, 11), imagej=True, photometric="minisblack")
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(3, 9, 11), photometric="minisblack", compression="zlib")
    seeds += [tmp_path / "a.npy", tmp_path / "a.tif", tmp_path / "a.ome.tif"]
    seeds.append(lif(tmp_path / "a.lif", {"x": noise(2, 1, 1, 5, 6)}))
    seeds.append(czi(tmp_path / "a.czi", [({"X": 0, "Y": 0, "C": 0}, noise(6, 7, dtype=np.uint16))]))
    seeds.append(nd2(tmp_path / "a.nd2", noise(2, 1, 1, 5, 6, 1, dtype=np.uint16)))
    refusals = []
    for seed in seeds:
        whole = seed.read_bytes()
        for number in range(60):
            data = bytearray(whole)
            for _ in range(int(random.integers(1, 5))):
                data[int(random.integers(4, len(data)))] = int(random.integers(0, 256))
            if number % 5 == 0:
                del data[int(random.integers(4, len(data))) :]
            path = tmp_path / f"mutant{seed.suffix}"
            path.write_bytes(data)
            folder = tmp_path / "mutants" / f"{seed.name}{number}"
            try:
                plan = inputs.plan([path], Selection(series="all", channel=0))
                images = inputs.stage(plan, folder, folder.with_suffix(".json"))
            except UnreadableImage as error:
                refusals.append(error)
                continue
            for image in images:
                read = cv2.imread(str(folder / image.name), cv2.IMREAD_UNCHANGED)
                assert read is None or read.shape[:2] == image.shape
    assert len(refusals) > 50
    assert all(error.findings for error in refusals)
