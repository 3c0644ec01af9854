"""Inputs end to end: real files of every kind → plan → staged PNGs, read back by OpenCV as executors read them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import psutil
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segserve import inputs
from segserve.errors import BackendError, InvalidParameters, NotFound, UnreadableImage
from segserve.inputs import Selection, copiers, pngcopy
from segserve.model import StagedImage

random = np.random.default_rng(0)


def noise(*shape: int, dtype: Any = np.uint8) -> Any:
    return random.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def png(path: Path, pixels: Any) -> Path:
    assert cv2.imwrite(str(path), pixels if pixels.ndim == 2 else pixels[..., ::-1])
    return path


def staged(tmp_path: Path, *paths: Path | str, **choices: Any) -> tuple[list[Any], tuple[StagedImage, ...]]:
    """Plan and stage; the images as executors see them (RGB order), and the map read back."""
    folder = tmp_path / "staged" / str(len(list(tmp_path.glob("staged/*"))))
    plan = inputs.plan(paths, Selection(**choices))
    images = inputs.stage(plan, folder, folder.with_suffix(".json"))
    assert inputs.read_map(folder.with_suffix(".json")) == images
    assert [image.name for image in images] == sorted(path.name for path in folder.iterdir())
    pixels = []
    for image in images:
        read = cv2.imread(str(folder / image.name), cv2.IMREAD_UNCHANGED)
        assert read.shape[:2] == image.shape
        assert read.dtype == image.dtype
        assert image.channels == (3 if read.ndim == 3 else 1)
        pixels.append(read if read.ndim == 2 else read[..., ::-1])
    return pixels, images


def refused(*paths: Path | str, **choices: Any) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        inputs.plan(paths, Selection(**choices))
    return caught.value


# --- order and names -------------------------------------------------------------------------------------------------


def test_natural_order_and_padding(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (10, 2, 1, 100):
        png(folder / f"t{number}.png", np.full((4, 4), number, np.uint8))
    for litter in ("Thumbs.db", ".DS_Store", "._t1.png"):
        (folder / litter).write_bytes(b"x")
    pixels, images = staged(tmp_path, folder)
    assert [int(image[0, 0]) for image in pixels] == [1, 2, 10, 100]
    assert [image.name for image in images] == ["00000.png", "00001.png", "00002.png", "00003.png"]
    assert images[0].source == str(folder / "t1.png")
    assert inputs.short_names(images) == ("t1.png", "t2.png", "t10.png", "t100.png")


def test_ten_thousand_names_sort_like_numbers(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "many.tif", np.zeros((100_001, 1, 1), np.uint8), metadata={"axes": "TYX"})
    names = inputs.plan([tmp_path / "many.tif"]).names
    assert len(names) == 100_001
    assert list(names) == sorted(names)
    assert names[-1] == "100000.png"
    folder = tmp_path / "in"
    folder.mkdir()
    data = png(tmp_path / "one.png", noise(2, 2)).read_bytes()
    for index in range(10_000):
        (folder / f"i{index:03d}.png").write_bytes(data)
    plan = inputs.plan([folder])
    done: list[int] = []
    images = inputs.stage(plan, tmp_path / "out", tmp_path / "out.json", progress=lambda n, total: done.append(n))
    on_disk = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert on_disk == [image.name for image in images]
    assert [Path(image.source).name for image in images] == [f"i{index:03d}.png" for index in range(10_000)]
    assert done == sorted(done)
    assert done[-1] == 10_000


def test_patterns_arguments_and_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b2.png", "b10.png", "a.png", "weird[1].png"):
        png(tmp_path / name, noise(3, 3))
    monkeypatch.chdir(tmp_path)
    assert [source.given for source in inputs.plan(["b*.png", "a.png"]).sources] == ["b2.png", "b10.png", "a.png"]
    assert inputs.plan(["weird[1].png"]).count == 1
    plan = inputs.plan(["a.png", "./a.png", tmp_path / "a.png"])
    assert plan.count == 1
    assert "named more than once" in plan.notes[0]


def test_first_spreads_over_the_input(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "t.tif", noise(101, 4, 4), metadata={"axes": "TYX"})
    assert [one.t for one in inputs.plan([tmp_path / "t.tif"], Selection(first=5)).requests] == [0, 25, 50, 75, 100]
    assert inputs.plan([tmp_path / "t.tif"], Selection(first=1000)).count == 101
    assert inputs.plan([tmp_path / "t.tif"], Selection(first=1)).count == 1


# --- PNG -------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def insert(data: bytes, extra: bytes) -> bytes:
    """Put a chunk behind IHDR."""
    return data[:33] + extra + data[33:]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_goes_byte_for_byte(tmp_path: Path, dtype: Any) -> None:
    source = png(tmp_path / "a.png", noise(20, 30, dtype=dtype))
    source.write_bytes(insert(source.read_bytes(), chunk(b"tEXt", b"Comment\0" + b"x" * 9000)))
    _, images = staged(tmp_path, source)
    copy = tmp_path / "staged" / "0" / "00000.png"
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_ino != source.stat().st_ino
    assert copy.stat().st_nlink == 1
    assert images[0].scale == 1.0
    assert images[0].source_dtype == np.dtype(dtype).name


def test_reflinks_where_the_file_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a file system with shared blocks: what is hashed and checked is the clone."""
    sources = [png(tmp_path / f"{index}.png", noise(5, 6)) for index in range(3)]
    cloned = []

    def clone(target: int, request: int, origin: int) -> None:
        assert request == 0x40049409
        cloned.append(os.pwrite(target, os.pread(origin, 2**20, 0), 0))

    monkeypatch.setattr(pngcopy.fcntl, "ioctl", clone)
    staged(tmp_path, *sources)
    assert len(cloned) == 3
    for index, source in enumerate(sources):
        assert (tmp_path / "staged" / "0" / f"0000{index}.png").read_bytes() == source.read_bytes()


def test_thousands_are_copied_by_programs_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(70):  # more than one batch
        png(folder / f"odd \n name {index}.png", noise(5, 6))
    _, by_threads = staged(tmp_path, folder)
    monkeypatch.setattr(copiers, "_MANY", 1)
    monkeypatch.setattr(copiers, "_cores", lambda: 2)
    started = []
    spawn = copiers.process.spawn
    monkeypatch.setattr(copiers.process, "spawn", lambda *a, **k: started.append(spawn(*a, **k)) or started[-1])
    _, by_programs = staged(tmp_path, folder)
    assert by_programs == by_threads
    assert [program.poll() for program in started] == [0, 0]
    cut = bytearray((folder / "odd \n name 3.png").read_bytes())
    cut[-20] ^= 0xFF
    (folder / "odd \n name 3.png").write_bytes(cut)
    plan = inputs.plan([folder])
    (folder / "odd \n name 5.png").unlink()
    png(folder / "odd \n name 66.png", noise(6, 5))
    with pytest.raises(UnreadableImage) as caught:
        inputs.stage(plan, tmp_path / "out", tmp_path / "out.json")
    rules = {Path(finding.place.path).name: finding.rule for finding in caught.value.findings}
    assert rules == {
        "odd \n name 3.png": "image-truncated",
        "odd \n name 5.png": "image-unreadable",
        "odd \n name 66.png": "image-changed",
    }
    assert not (tmp_path / "out").exists()


def test_a_killed_copying_program_is_said(tmp_path: Path) -> None:
    program = copiers._Program(tmp_path)
    program._process.kill()
    program._process.wait()
    with pytest.raises(BackendError, match="ended early"):
        program.copy_all([pngcopy.Order("a", "b", 1, 1, 1)])
    program.close()


def test_copying_programs_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom segserve.inputs import copiers\n"
        "copiers._cores = lambda: 2\n"
        "started = copiers.Copiers(Path(sys.argv[1]), 2, 10**6)\n"
        "print(*(one._process.pid for one in started._all), flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        programs = [psutil.Process(int(word)) for word in command.stdout.readline().split()]
        assert len(programs) == 2
        command.kill()
    _, alive = psutil.wait_procs(programs, timeout=20)
    assert alive == []


def test_palette_and_one_bit_png_go_byte_for_byte(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + bytes([byte]) for byte in (0xA0, 0x40))
    palette = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 1, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes([0, 0, 0, 255, 0, 0]))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "p.png").write_bytes(palette)
    pixels, images = staged(tmp_path, tmp_path / "p.png")
    assert images[0].channels == 3
    assert pixels[0][0].tolist() == [[255, 0, 0], [0, 0, 0], [255, 0, 0]]
    assert (tmp_path / "staged" / "0" / "00000.png").read_bytes() == palette


def test_png_pixel_size_but_no_print_resolution(tmp_path: Path) -> None:
    source = png(tmp_path / "a.png", noise(4, 4)).read_bytes()
    for name, per_metre in (("micro", 2_000_000), ("screen", 2835)):
        (tmp_path / f"{name}.png").write_bytes(
            insert(source, chunk(b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1)))
        )
    assert inputs.describe([tmp_path / "micro.png"])[0].series[0].pixel_size_um == (0.5, 0.5)
    assert inputs.describe([tmp_path / "screen.png"])[0].series[0].pixel_size_um is None


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path) -> None:
    colours = noise(5, 6, 3)
    opaque = np.dstack([colours, np.full((5, 6), 255, np.uint8)])
    (tmp_path / "opaque.png").write_bytes(imagecodecs.png_encode(opaque))
    pixels, images = staged(tmp_path, tmp_path / "opaque.png")
    assert np.array_equal(pixels[0], colours)
    assert images[0].channels == 3
    opaque[0, 0, 3] = 7
    (tmp_path / "clear.png").write_bytes(imagecodecs.png_encode(opaque))
    with pytest.raises(UnreadableImage, match=r"clear\.png has transparent pixels"):
        staged(tmp_path, tmp_path / "clear.png")
    pixels, images = staged(tmp_path, tmp_path / "clear.png", channel="G")
    assert np.array_equal(pixels[0], colours[..., 1])
    assert (images[0].c, images[0].channel_name) == (1, "G")


def test_sixteen_bit_colour_needs_a_channel(tmp_path: Path) -> None:
    pixels = noise(5, 6, 3, dtype=np.uint16)
    png(tmp_path / "a.png", pixels)
    assert "has 3 channels: 0 'R', 1 'G', 2 'B'" in refused(tmp_path / "a.png").message
    read, images = staged(tmp_path, tmp_path / "a.png", channel=2)
    assert np.array_equal(read[0], pixels[..., 2])
    assert images[0].c == 2


def test_exif_orientation_is_applied_as_opencv_does(tmp_path: Path) -> None:
    pixels = noise(4, 7, 3)
    for orientation in range(1, 9):
        block = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
        data = insert(imagecodecs.png_encode(pixels), chunk(b"eXIf", block))
        (tmp_path / f"{orientation}.png").write_bytes(data)
        (ok, jpeg) = cv2.imencode(".jpg", pixels[..., ::-1])
        assert ok
        body = b"Exif\0\0" + block
        jpeg = jpeg.tobytes()[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg.tobytes()[2:]
        path = tmp_path / f"{orientation}.jpg"
        path.write_bytes(jpeg)
        (from_png, from_jpeg), images = staged(tmp_path, tmp_path / f"{orientation}.png", path)
        assert np.array_equal(from_jpeg, cv2.imread(str(path))[..., ::-1])
        assert np.array_equal(from_png, cv2.imread(str(tmp_path / f"{orientation}.png"))[..., ::-1])
        assert [image.orientation for image in images] == [orientation] * 2


# --- JPEG, BMP, NPY --------------------------------------------------------------------------------------------------


def test_jpeg_and_bmp_equal_opencv(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(noise(33, 40, 3), (0, 0), 3)
    for name, pixels in (("c.jpg", smooth), ("g.jpg", smooth[..., 0]), ("c.bmp", smooth), ("g.bmp", smooth[..., 0])):
        png(tmp_path / name, pixels)
        read, images = staged(tmp_path, tmp_path / name)
        expected = cv2.imread(str(tmp_path / name), cv2.IMREAD_ANYCOLOR)
        assert np.array_equal(read[0], expected if expected.ndim == 2 else expected[..., ::-1])
        assert images[0].shape == (33, 40)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_by_the_rule_of_shapes(tmp_path: Path, order: Any) -> None:
    for number, shape in enumerate([(5, 6), (4, 5, 6), (5, 6, 3)]):
        array = np.asarray(noise(*shape), order=order)
        path = tmp_path / f"{number}.npy"
        np.save(path, array)
        read, images = staged(tmp_path, path)
        assert [image.t for image in images] == ([0, 1, 2, 3] if number == 1 else [None])
        assert np.array_equal(np.stack(read) if number == 1 else read[0], array)
    np.save(tmp_path / "5d.npy", np.zeros((2, 3, 4, 5)))
    assert "nothing says what its axes mean" in refused(tmp_path / "5d.npy").message


# --- TIFF ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations("TZC"),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    kind=st.sampled_from(["ome", "imagej", "ome-zlib", "ome-big"]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    seed=st.integers(0, 2**16),
)
def test_every_plane_of_a_stack_is_staged_at_its_place(
    tmp_path_factory: pytest.TempPathFactory, order: Any, sizes: Any, kind: str, dtype: Any, seed: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("stack")
    axes = "TZC" if kind == "imagej" else "".join(order)
    lengths = dict(zip("TZC", sizes, strict=True))
    array = np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, (*(lengths[a] for a in axes), 5, 7), dtype=dtype
    )
    path = tmp_path / ("a.tif" if kind == "imagej" else "a.ome.tif")
    options: dict[str, Any] = {"metadata": {"axes": f"{axes}YX"}, "photometric": "minisblack"}
    if kind == "imagej":
        options["imagej"] = True
    elif kind == "ome-zlib":
        options |= {"compression": "zlib", "tile": (16, 16)}
    elif kind == "ome-big":
        options["bigtiff"] = True
    tifffile.imwrite(path, array, **options)
    for channel in range(lengths["C"]):
        read, images = staged(tmp_path, path, channel=channel)
        assert len(read) == lengths["T"] * lengths["Z"]
        for pixels, image in zip(read, images, strict=True):
            place = {"T": image.t or 0, "Z": image.z or 0, "C": channel}
            assert np.array_equal(pixels, array[tuple(place[axis] for axis in axes)])
        assert [(image.t or 0, image.z or 0) for image in images] == sorted({(i.t or 0, i.z or 0) for i in images})


def test_ome_names_sizes_and_refusal_with_the_list(tmp_path: Path) -> None:
    metadata = {
        "axes": "TCZYX",
        "Channel": {"Name": ["DAPI", "GFP"]},
        "PhysicalSizeX": 65,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.000065,
        "PhysicalSizeYUnit": "mm",
    }
    array = noise(3, 2, 4, 5, 6, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata)
    series = inputs.describe([tmp_path / "a.ome.tif"])[0].series[0]
    assert dict(series.sizes) == {"T": 3, "Z": 4, "C": 2}
    assert series.pixel_size_um == pytest.approx((0.065, 0.065))
    assert inputs.channel_list(series) == ("DAPI", "GFP")
    (listed,) = json.loads(json.dumps(inputs.structure(inputs.describe([tmp_path / "a.ome.tif"]))))
    assert listed["series"][0].items() >= {"T": 3, "Z": 4, "C": 2, "channels": ["DAPI", "GFP"]}.items()
    error = refused(tmp_path / "a.ome.tif")
    assert "has 2 channels: 0 'DAPI', 1 'GFP'" in error.message
    assert "--channel" in error.hint
    read, images = staged(tmp_path, tmp_path / "a.ome.tif", channel="gfp", z="max", frames="1:")
    assert np.array_equal(np.stack(read), array[1:, 1].max(axis=1))
    assert [(image.t, image.z, image.c, image.channel_name) for image in images] == [
        (1, "max", 1, "GFP"),
        (2, "max", 1, "GFP"),
    ]
    read, _ = staged(tmp_path, tmp_path / "a.ome.tif", channel=0, z="mean", frames="0")
    assert np.array_equal(read[0], np.rint(array[0, 0].mean(axis=0)).astype(np.uint16))
    read, images = staged(tmp_path, tmp_path / "a.ome.tif", channel=0, z="2", frames="::2")
    assert np.array_equal(np.stack(read), array[::2, 0, 2])
    assert "has no channel RFP" in refused(tmp_path / "a.ome.tif", channel="RFP").message
    assert "4 z planes" in refused(tmp_path / "a.ome.tif", channel=0, z="4").message
    assert "chooses none" in refused(tmp_path / "a.ome.tif", channel=0, frames="7:9").message


def test_a_set_of_ome_files_contributes_every_plane_once(tmp_path: Path) -> None:
    array = noise(4, 5, 6)
    uuids = ["urn:uuid:00000000-0000-0000-0000-00000000000a", "urn:uuid:00000000-0000-0000-0000-00000000000b"]
    blocks = "".join(
        f'<TiffData FirstT="{t}" IFD="{t % 2}" PlaneCount="1">'
        f'<UUID FileName="{t // 2}.ome.tif">{uuids[t // 2]}</UUID></TiffData>'
        for t in range(4)
    )
    for number, uuid in enumerate(uuids):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
            'SizeX="6" SizeY="5" SizeZ="1" SizeC="1" SizeT="4">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{blocks}</Pixels></Image></OME>'
        )
        with tifffile.TiffWriter(tmp_path / f"{number}.ome.tif", ome=False) as writer:
            for index in range(2):
                writer.write(array[2 * number + index], description=xml if index == 0 else None, metadata=None)
    read, images = staged(tmp_path, tmp_path / "*.ome.tif")
    assert [image.t for image in images] == [0, 1, 2, 3]
    assert np.array_equal(np.stack(read), array)
    read, images = staged(tmp_path, tmp_path / "1.ome.tif")
    assert [image.t for image in images] == [2, 3]


def test_plain_pages_become_t_and_series_need_a_choice(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        pages = noise(3, 5, 6)
        for page in pages:
            writer.write(page, metadata=None)
    read, images = staged(tmp_path, tmp_path / "pages.tif")
    assert np.array_equal(np.stack(read), pages)
    assert [image.t for image in images] == [0, 1, 2]
    two = (noise(5, 6), noise(7, 8))
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        for page in two:
            writer.write(page, metadata=None)
    assert "holds 2 series" in refused(tmp_path / "two.tif").message
    read, images = staged(tmp_path, tmp_path / "two.tif", series="1")
    assert np.array_equal(read[0], two[1])
    assert images[0].series == 1
    assert len(staged(tmp_path, tmp_path / "two.tif", series="all")[0]) == 2
    assert "has no series 5" in refused(tmp_path / "two.tif", series="5").message


def test_pyramids_are_one_series_at_full_resolution(tmp_path: Path) -> None:
    full = noise(128, 128, 3)
    with tifffile.TiffWriter(tmp_path / "p.ome.tif") as writer:
        writer.write(full, subifds=1, tile=(64, 64), photometric="rgb", metadata={"axes": "YXS"})
        writer.write(full[::2, ::2], subfiletype=1, tile=(64, 64), photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "flat.tif") as writer:
        writer.write(full, photometric="rgb", metadata=None)
        writer.write(full[::2, ::2], subfiletype=1, photometric="rgb", metadata=None)
    for name in ("p.ome.tif", "flat.tif"):
        read, _ = staged(tmp_path, tmp_path / name)
        assert len(read) == 1
        assert np.array_equal(read[0], full)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_colour_and_inverted_grey(tmp_path: Path, planar: str) -> None:
    colours = noise(8, 9, 3)
    written = colours if planar == "contig" else np.moveaxis(colours, -1, 0)
    tifffile.imwrite(tmp_path / "c.tif", written, photometric="rgb", planarconfig=planar)
    read, images = staged(tmp_path, tmp_path / "c.tif")
    assert np.array_equal(read[0], colours)
    assert images[0].channels == 3
    grey = noise(8, 9, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "w.tif", grey, photometric="miniswhite")
    read, images = staged(tmp_path, tmp_path / "w.tif")
    assert np.array_equal(read[0], 65535 - grey)
    assert (images[0].offset, images[0].scale) == (65535, -1)


def test_imagej_pixel_size_and_one_ifd_for_many_planes(tmp_path: Path) -> None:
    array = noise(5, 8, 9, dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "ij.tif", array, imagej=True, resolution=(5.0, 5.0), metadata={"axes": "ZYX", "unit": "nm"}
    )
    series = inputs.describe([tmp_path / "ij.tif"])[0].series[0]
    assert series.pixel_size_um == pytest.approx((0.0002, 0.0002))
    assert dict(series.sizes) == {"Z": 5}
    # ImageJ's own way for stacks beyond 4 GB: cut the chain after the first IFD.
    data = bytearray((tmp_path / "ij.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "ij.tif") as tif:
        order, first = tif.byteorder, tif.pages[0].offset
        (count,) = struct.unpack_from(f"{order}H", data, first)
    struct.pack_into(f"{order}I", data, first + 2 + 12 * count, 0)
    (tmp_path / "virtual.tif").write_bytes(data)
    read, images = staged(tmp_path, tmp_path / "virtual.tif")
    assert np.array_equal(np.stack(read), array)
    assert [image.z for image in images] == [0, 1, 2, 3, 4]


def test_unknown_axes_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(3, 4, 5), metadata={"axes": "EYX"}, photometric="minisblack")
    assert "axes other than T, Z and C" in refused(tmp_path / "a.tif").message


# --- scales ----------------------------------------------------------------------------------------------------------


def values(pixels: Any, image: StagedImage) -> Any:
    return image.offset + image.scale * pixels.astype(np.float64)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_floats_get_one_scale_per_file(tmp_path: Path, dtype: str) -> None:
    array = random.normal(3, 1, (3, 20, 30)).astype(dtype)
    array[0, 0, 0], array[1, 0, 0], array[2, 0, 0] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "f.npy", array)
    tifffile.imwrite(tmp_path / "f.tif", array, metadata={"axes": "TYX"}, photometric="minisblack")
    for name in ("f.npy", "f.tif"):
        read, images = staged(tmp_path, tmp_path / name)
        assert {(image.offset, image.scale, image.dtype) for image in images} == {
            (images[0].offset, images[0].scale, "uint16")
        }
        finite = array[np.isfinite(array)].astype(np.float64)
        assert images[0].offset == finite.min()
        assert images[0].scale == pytest.approx((finite.max() - finite.min()) / 65535)
        got = np.stack([values(pixels, image) for pixels, image in zip(read, images, strict=True)])
        assert np.abs(got[np.isfinite(array)] - finite).max() <= images[0].scale * 0.501
        assert [int(pixels[0, 0]) for pixels in read] == [0, 65535, 0]


@pytest.mark.parametrize(
    ("dtype", "low", "high", "exact"),
    [
        ("int8", -128, 127, True),
        ("int16", -32768, 32767, True),
        ("uint32", 0, 65535, True),
        ("int64", 1_000_000, 1_000_255, True),
        ("int32", -5, 65530, True),
        ("uint32", 0, 4_000_000_000, False),
        ("uint64", 2**63, 2**64 - 1, False),
    ],
)
def test_integers_stay_exact_where_they_fit(tmp_path: Path, dtype: str, low: int, high: int, exact: bool) -> None:
    array = random.integers(low, high, (10, 12), dtype=dtype, endpoint=True)
    array[0, :2] = low, high
    np.save(tmp_path / "i.npy", array)
    read, images = staged(tmp_path, tmp_path / "i.npy")
    got = values(read[0], images[0])
    assert (images[0].scale == 1.0) == exact
    assert np.abs(got - array.astype(np.float64)).max() <= (0 if exact else images[0].scale)


def test_masks_and_constant_images(tmp_path: Path) -> None:
    mask = random.random((5, 6)) > 0.5
    np.save(tmp_path / "m.npy", mask)
    tifffile.imwrite(tmp_path / "m.tif", mask)
    for name, white in (("m.npy", mask), ("m.tif", ~mask)):  # a TIFF of bits says "0 is white"
        read, images = staged(tmp_path, tmp_path / name)
        assert np.array_equal(read[0], white * np.uint8(255))
        assert np.array_equal(values(read[0], images[0]), mask)
    np.save(tmp_path / "flat.npy", np.full((5, 6), 2.5))
    read, images = staged(tmp_path, tmp_path / "flat.npy")
    assert np.array_equal(values(read[0], images[0]), np.full((5, 6), 2.5))
    np.save(tmp_path / "nan.npy", np.full((5, 6), np.nan))
    with pytest.raises(UnreadableImage, match="no finite value"):
        staged(tmp_path, tmp_path / "nan.npy")


def test_depth_8_on_request(tmp_path: Path) -> None:
    stack = random.integers(100, 5000, (3, 9, 8)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", stack, metadata={"axes": "TYX"}, photometric="minisblack")
    read, images = staged(tmp_path, tmp_path / "s.tif", depth=8)
    assert {image.dtype for image in images} == {"uint8"}
    assert images[0].scale == pytest.approx((stack.max() - stack.min()) / 255)
    assert np.abs(values(np.stack(read), images[0]) - stack).max() <= images[0].scale * 0.501
    png(tmp_path / "a.png", stack[0])
    read, images = staged(tmp_path, tmp_path / "a.png", depth=8)
    assert (images[0].dtype, images[0].source_dtype) == ("uint8", "uint16")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_all_bad_inputs_are_listed_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = png(folder / "good.png", noise(40, 40)).read_bytes()
    (folder / "cut.png").write_bytes(good[:-30])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("hello")
    (folder / "page.gif").write_bytes(b"GIF89a......")
    ok, jpeg = cv2.imencode(".jpg", noise(40, 40))
    assert ok
    (folder / "cut.jpg").write_bytes(jpeg.tobytes()[:-200])
    tifffile.imwrite(folder / "cut.tif", noise(3, 40, 40), metadata={"axes": "TYX"}, photometric="minisblack")
    os.truncate(folder / "cut.tif", 4000)
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    np.save(folder / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "bomb.png").write_bytes(
        good[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0)) + good[33:]
    )
    (folder / "zero.png").write_bytes(
        good[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 9, 8, 0, 0, 0, 0)) + good[33:]
    )
    (tmp_path / "void").mkdir()
    error = refused(folder, tmp_path / "void", tmp_path / "absent.png", tmp_path / "*.none")
    rules = {Path(finding.place.path).name: finding.rule for finding in error.findings}
    assert rules == {
        "cut.png": "image-truncated",
        "empty.png": "image-empty",
        "notes.txt": "image-foreign",
        "page.gif": "image-foreign",
        "cut.jpg": "image-truncated",
        "cut.tif": rules["cut.tif"],  # by what tifffile meets first
        "pipe.png": "image-foreign",
        "dangling.png": "image-unreadable",
        "pickle.npy": "image-foreign",
        "bomb.png": "image-too-large",
        "zero.png": "image-empty",
        "void": "image-empty-folder",
        "absent.png": "image-not-found",
        "*.none": "image-not-found",
    }
    assert error.message.startswith("14 of 15 inputs cannot be used.")
    assert error.exit_code == 2


def test_truncated_tiffs_of_every_layout_are_refused(tmp_path: Path) -> None:
    array = noise(6, 64, 64, dtype=np.uint16)
    for name, options in {
        "plain": {"metadata": {"axes": "TYX"}},
        "imagej": {"imagej": True},
        "ome": {"ome": True},
        "zlib": {"compression": "zlib"},
        "tiles": {"ome": True, "compression": "zlib", "tile": (32, 32)},
    }.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, array, photometric="minisblack", **options)
        whole = path.read_bytes()
        for part in (0.15, 0.4, 0.6, 0.9):
            path.write_bytes(whole[: int(len(whole) * part)])
            with pytest.raises(UnreadableImage):
                staged(tmp_path, path)


def test_damage_inside_is_found_while_staging(tmp_path: Path) -> None:
    good = bytearray(png(tmp_path / "a.png", noise(40, 40)).read_bytes())
    good[200] ^= 0xFF
    (tmp_path / "b.png").write_bytes(good)
    tifffile.imwrite(tmp_path / "c.tif", noise(64, 64), compression="zlib")
    data = bytearray((tmp_path / "c.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "c.tif") as tif:
        at = tif.pages[0].dataoffsets[0]
    data[at : at + 40] = bytes(40)
    (tmp_path / "c.tif").write_bytes(data)
    plan = inputs.plan([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.tif"])
    with pytest.raises(UnreadableImage) as caught:
        inputs.stage(plan, tmp_path / "out", tmp_path / "out.json")
    assert [Path(finding.place.path).name for finding in caught.value.findings] == ["b.png", "c.tif"]
    assert "checksum" in caught.value.findings[0].message
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_bombs_are_refused_by_their_headers(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    assert "truncated" in refused(tmp_path / "a.npy").message
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 4), metadata=None)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        tags = [tif.pages[0].tags[name] for name in ("ImageWidth", "ImageLength")]
        for tag in tags:
            struct.pack_into(f"{tif.byteorder}I", data, tag.valueoffset, 500_000)
    (tmp_path / "a.tif").write_bytes(data)
    assert refused(tmp_path / "a.tif").findings[0].rule == "image-too-large"
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYZCT" Type="uint8" SizeX="4" SizeY="4" SizeZ="100000" SizeC="100000" SizeT="100000">'
        "<TiffData/></Pixels></Image></OME>"
    )
    tifffile.imwrite(tmp_path / "o.ome.tif", noise(4, 4), description=xml, metadata=None)
    assert "planes; the limit is" in refused(tmp_path / "o.ome.tif").message


def test_content_counts_not_the_suffix(tmp_path: Path) -> None:
    ok, jpeg = cv2.imencode(".jpg", noise(8, 8))
    assert ok
    (tmp_path / "a.png").write_bytes(jpeg.tobytes())
    plan = inputs.plan([tmp_path / "a.png"])
    assert plan.sources[0].kind == "jpeg"
    assert "is JPEG inside" in plan.notes[0]


def test_selections_are_checked_before_files(tmp_path: Path) -> None:
    for wrong in ({"z": "median"}, {"frames": "a:b"}, {"depth": 12}, {"first": 0}):
        with pytest.raises(InvalidParameters, match=f"--{next(iter(wrong))}"):
            inputs.plan([tmp_path / "absent.png"], Selection(**wrong))


# --- the map, the digest, memory -------------------------------------------------------------------------------------


def test_map_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    with pytest.raises(NotFound):
        inputs.read_map(path)
    staged(tmp_path, png(tmp_path / "a.png", noise(4, 4)))
    good = json.loads((tmp_path / "staged" / "0.json").read_text())
    assert good["version"] == 1
    bad: list[Any] = [
        "{",
        {**good, "version": 2},
        {**good, "images": [{**good["images"][0], "name": "../../x.png"}]},
        {**good, "images": [{**good["images"][0], "sha256": "zz"}]},
        {**good, "images": [{**good["images"][0], "shape": [4]}]},
        {**good, "images": good["images"] * 2},
    ]
    for value in bad:
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        with pytest.raises(UnreadableImage):
            inputs.read_map(path)


def test_digest_follows_content_and_order(tmp_path: Path) -> None:
    one, two = png(tmp_path / "1.png", noise(4, 4)), png(tmp_path / "2.png", noise(4, 4))
    _, forward = staged(tmp_path, one, two)
    _, again = staged(tmp_path, one, two)
    _, backward = staged(tmp_path, two, one)
    assert inputs.digest(forward) == inputs.digest(again) != inputs.digest(backward)


def test_a_killed_attempt_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "00000.png").write_bytes(b"half")
    plan = inputs.plan([png(tmp_path / "a.png", noise(4, 4))])
    inputs.stage(plan, tmp_path / "out", tmp_path / "out.json")
    assert not (tmp_path / ".out.partial").exists()
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_memory_is_bounded(tmp_path: Path) -> None:
    """400 MiB of float planes in one file and 300 MiB of PNGs are staged within 500 MiB."""
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((100, 1024, 1024), np.float32), metadata={"axes": "TYX"})
    (tmp_path / "in").mkdir()
    data = png(tmp_path / "a.png", noise(1024, 1024)).read_bytes()
    for index in range(300):
        (tmp_path / "in" / f"{index}.png").write_bytes(data)
    script = (
        "import re, sys\nfrom pathlib import Path\nfrom segserve import inputs\n"
        "plan = inputs.plan(sys.argv[2:])\n"
        "inputs.stage(plan, Path(sys.argv[1]) / 'out', Path(sys.argv[1]) / 'out.json')\n"
        # Not ru_maxrss: after a fork that counts what the parent (a long test session) has in memory.
        "print(plan.count, int(re.findall('VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[0]) // 1024)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "f.tif"), str(tmp_path / "in")],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    count, peak = map(int, done.stdout.split())
    assert count == 400
    assert peak < 500
