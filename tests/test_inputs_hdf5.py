"""HDF5 as images: which arrays count, and that nothing outside of the file is read."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from segserve import inputs
from tests.test_inputs import noise, refused, staged


def test_planes_colours_and_stacks(tmp_path: Path) -> None:
    plane, colour, stack = noise(9, 11, dtype=np.uint16), noise(9, 11, 3), noise(4, 9, 11)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["plane"] = plane
        file["group/colour"] = colour
        file.create_dataset("stack", data=stack, chunks=(1, 9, 11), compression="gzip")
        file["table"] = np.arange(5)
        file["text"] = "not an image"
    (source,) = inputs.describe([path])
    assert [series.name for series in source.series] == ["group/colour", "plane", "stack"]
    assert "--series" in refused(path).message + refused(path).hint
    read, _ = staged(tmp_path, path, series="plane")
    assert np.array_equal(read[0], plane)
    read, _ = staged(tmp_path, path, series="group/colour")
    assert np.array_equal(read[0], colour)
    read, images = staged(tmp_path, path, series="stack")
    assert [image.t for image in images] == [0, 1, 2, 3]
    assert np.array_equal(np.stack(read), stack)


def test_nothing_outside_of_the_file_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(100))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"] = noise(9, 11)
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["a"] = h5py.ExternalLink("other.h5", "/image")
        file["b"] = h5py.SoftLink("/nowhere")
    assert "without an array" in refused(tmp_path / "links.h5").message
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("a", (10, 10), dtype="u1", external=[(str(secret), 0, 100)])
    assert "other files" in refused(tmp_path / "external.h5").message
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((9, 11), dtype="u1")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "image", shape=(9, 11))
        file.create_virtual_dataset("a", layout)
    assert "other files" in refused(tmp_path / "virtual.h5").message


@pytest.mark.parametrize("declared", [(2**16, 2**16), (2**21, 4), (2**30, 2, 2)])
def test_what_it_declares_is_believed_only_so_far(tmp_path: Path, declared: tuple[int, ...]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("bomb", declared, dtype="u1", chunks=tuple(min(length, 64) for length in declared))
    assert "declares" in refused(tmp_path / "a.h5").message


@pytest.mark.parametrize("length", [8, 100, 500, 1500])
def test_truncated_files_are_refused(tmp_path: Path, length: int) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = noise(30, 40)
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:length])
    refused(tmp_path / "b.h5")
