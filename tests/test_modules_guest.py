"""The guest package by itself: modules started as their generated project starts them, without segserve and MLflow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import tifffile
from segserve_modules import datasets, devices, runners, schemas, values, writers
from segserve_modules.session import ModuleError, Session

from segserve import dialects
from tests.modules import write_module

LABELS = """
    def inference(self, data, args={}):
        labels = np.zeros(data.shape, np.int32)
        labels[..., 2:8, 2:8] = 7
        labels[..., 8:12, 2:8] = 3
        return labels
"""


def start(
    tmp_path: Path, words: tuple[str, ...] = (), *, images: Path | None = None, kind: str = "Image2Segmentation",
    environment: dict[str, str] | None = None, **module: Any,
) -> tuple[int, str, Path]:  # fmt: skip
    """Run a module on images (default: one of 20 × 30 pixels); exit status, log and output folder."""
    folder = write_module(tmp_path / "module", kind, imports=module.pop("imports", ""), **module)
    dialects.load(folder)
    if images is None:
        images = tmp_path / "images"
        images.mkdir()
        cv2.imwrite(str(images / "a.png"), np.arange(600, dtype=np.uint8).reshape(20, 30))
    done = subprocess.run(
        [sys.executable, "-m", "segserve_modules", "run", str(images), *words], cwd=folder, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, folder / ".segserve" / "output"


def counts(output: Path) -> list[int]:
    """Objects per image."""
    return [len(image) for image in json.loads((output / "output.json").read_text())["segmentation_data"]]


# --------------------------------------------------------------------------------------------------------- whole runs


def test_labels_stay_and_stacks_are_read_per_plane(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    np.save(images / "stack.npy", np.zeros((3, 20, 30), np.uint16))
    code, log, output = start(tmp_path, images=images, methods=LABELS, dialect="t3dserver")
    assert (code, counts(output)) == (0, [2, 2, 2]), log
    masks = tifffile.imread(output / "masks" / "stack.tif")
    assert masks.shape == (3, 20, 30)
    assert set(np.unique(masks)) == {0, 3, 7}


def test_colour_comes_with_channels_first(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    image = np.zeros((20, 30, 3), np.uint8)
    image[5:10, 5:10] = (0, 0, 200)  # red, as cv2 writes it
    cv2.imwrite(str(images / "a.png"), image)
    methods = """
    def inference(self, data, args={}):
        assert data.shape == (1, 3, 20, 30), data.shape
        assert data[0, 0].max() == 200 and data[0, 1:].max() == 0
        return data > 100
"""
    code, log, output = start(tmp_path, images=images, methods=methods)
    assert (code, counts(output)) == (0, [1]), log


def test_the_oldest_roots_and_relative_imports(tmp_path: Path) -> None:
    imports = "from .parts.more import threshold\nfrom algorithms.io_schemas import MaskSchema\n"
    folder = write_module(tmp_path / "module")
    (folder / "parts").mkdir()
    (folder / "parts" / "more.py").write_text("threshold = 100\n")
    methods = """
    def preprocess(self, input_data, args={}):
        return [found["image"] for found in self.fetch_data(input_data["input_dataset_ids"], "image")]

    def inference(self, data, args={}):
        return [image > threshold for image in data]

    def postprocess(self, data, args={}):
        return self.post_data([{"mask": mask} for mask in data], MaskSchema)
"""
    code, log, output = start(tmp_path, imports=imports, methods=methods, root="algorithms")
    assert (code, len(counts(output))) == (0, 1), log


def inference(body: str) -> dict[str, str]:
    """A module whose inference is one line."""
    return {"methods": f"\n    def inference(self, data, args={{}}):\n        {body}\n"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"imports": "from algorithms.io_schemas import MyDataSchema"}, "no schema 'MyDataSchema'"),
        ({"imports": "import compox.server"}, "not in the documented interface"),
        ({"imports": "import surely_missing"}, r"Name its package in \[project\].dependencies"),
        ({"base": "Image2ImageRunner"}, "has to inherit Image2SegmentationRunner, not Image2ImageRunner"),
        ({"methods": "\n    pass\n"}, "Runner has no method inference"),
        (inference("return data / 255"), "holds fractions"),
        (inference("return data[:, 1:] > 3"), "the mask is 19 × 30, the image 20 × 30"),
        (inference("return [data[0] > 3] * 2"), "2 results"),
        (inference("return self.fetch_asset('../x')"), "assets are"),
        (
            {"methods": "\n    def inference(self, data, args={}):\n        return data > 1\n"
                        "\n    def postprocess(self, data, args={}):\n        return None\n"},
            "the list that post_data gave",
        ),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_explained(tmp_path: Path, how: dict[str, str], message: str) -> None:
    code, log, _ = start(tmp_path, **how)
    assert code == 1
    last = log.splitlines()[-1]
    assert last.startswith("[ERROR] ")
    assert re.search(message, last), log


def test_fields_of_own_files_reach_own_schemas(tmp_path: Path) -> None:
    images = tmp_path / "features"
    images.mkdir()
    with h5py.File(images / "a.h5", "w") as file:
        file["features"] = np.arange(6.0).reshape(2, 3)
        file.attrs["input_size"] = (20, 30)
        file.attrs["original_size"] = (40, 60)
    methods = """
    def preprocess(self, input_data, args={}):
        return self.fetch_data(input_data["input_dataset_ids"], EmbeddingSchema)[0]

    def inference(self, data, args={}):
        assert data["input_size"] == (20, 30) and isinstance(data["features"], np.ndarray)
        return data["features"].sum(axis=1)

    def postprocess(self, data, args={}):
        return self.post_data([{"sums": data, "name": "x"}])
"""
    imports = "from compox.algorithm_utils.io_schemas import EmbeddingSchema"
    code, log, output = start(tmp_path, images=images, kind="Generic", methods=methods, imports=imports)
    assert code == 0, log
    with h5py.File(output / "outputs" / "a.h5") as file:
        assert file["sums"][()].tolist() == [3.0, 12.0]
        assert file.attrs["name"] == "x"


def test_progress_is_said_in_images(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    np.save(images / "stack.npy", np.zeros((10, 20, 30), np.uint8))
    methods = """
    def inference(self, data, args={}):
        time.sleep(0.3)  # what follows closer upon the last record is not written
        for share in (0.5, 0.2):
            self.set_progress(share)
        raise RuntimeError("half way")
"""
    (tmp_path / "progress").touch()
    environment = {"SEGSERVE_PROGRESS": str(tmp_path / "progress")}
    code, log, _ = start(tmp_path, images=images, methods=methods, imports="import time", environment=environment)
    assert code == 1
    assert "RuntimeError: half way" in log
    assert json.loads((tmp_path / "progress").read_text()) == {"done": 5, "total": 10}


# -------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("asked", "supported", "default", "leased", "device"),
    [
        ("auto", ["cpu", "gpu"], "gpu", "GPU-1", "cuda"),
        ("auto", ["cpu", "gpu"], "gpu", "", "cpu"),
        ("gpu", ["cpu", "gpu"], "cpu", "GPU-1", "cuda"),
        ("cpu", ["cpu", "gpu"], "gpu", "GPU-1", "cpu"),
        ("gpu", ["cpu", "gpu"], "cpu", "", None),
        ("auto", ["gpu"], "gpu", "", None),
        ("auto", ["gpu"], "cpu", "", "cpu"),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch, asked: str, supported: list[str], default: str, leased: str, device: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", leased)
    said: list[str] = []

    def choose() -> str:
        return devices.choose(asked, supported, default, lambda level, text: said.append(f"{level} {text}"))

    if device is None:
        with pytest.raises(ModuleError, match="--gpus 1"):
            choose()
        return
    assert choose() == device
    assert bool(said) is (default == "gpu" and asked == "auto" and not leased)


def test_schemas_check_fields() -> None:
    class Own(schemas.DataSchema):
        image: np.ndarray
        size: tuple
        name: str = "x"

    data = {"image": np.zeros((2, 2)), "size": np.array([2, 2]), "more": 1}
    assert schemas.checked(Own, data, "it") == {"image": data["image"], "size": (2, 2), "name": "x"}
    with pytest.raises(schemas.SchemaError, match="image"):
        schemas.checked(Own, {"image": [[1]], "size": (1, 1)}, "it")
    with pytest.raises(schemas.SchemaError, match="size"):
        schemas.checked(Own, {"image": data["image"]}, "it")
    with pytest.raises(schemas.SchemaError, match="is no dict"):
        schemas.checked(Own, [1], "it")


def test_values_have_their_types() -> None:
    declared = {"a": {"base": "int", "list": True}, "b": {"base": "bool", "list": False}}
    assert values.arguments(["a=1,2", "b=No"], declared) == {"a": [1, 2], "b": False}
    assert values.value("", "string", list=True) == []
    assert values.value('["a,b", "c=d"]', "string", list=True) == ["a,b", "c=d"]
    assert values.value("[true, false]", "bool", list=True) == [True, False]


def test_float_images_get_their_own_values_back(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[0, 65535]], np.uint16))
    about = {"scale": 2 / 65535, "offset": -1.0, "source_dtype": "float32"}
    image = datasets.read(datasets.Plane("a.png", tmp_path / "a.png", None, about))["image"]
    assert image.dtype == np.float32
    assert image[0].tolist() == pytest.approx([-1.0, 1.0])


def test_the_asset_is_the_file_and_an_lfs_pointer_is_not(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.bin").write_bytes(b"123")
    (tmp_path / "files" / "b.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "code.py").write_text("")
    (tmp_path / "out").symlink_to("/etc/hostname")
    session = Session(tmp_path, lambda level, text: None)
    assert session.fetch_asset("files/a.bin").read() == b"123"
    for path in ("files/b.bin", "code.py", "out", "../x", "/etc/hostname", "files", "files/c.bin"):
        with pytest.raises(ModuleError):
            session.fetch_asset(path)


def test_an_alignment_is_drawn_where_it_fits(tmp_path: Path) -> None:
    """The second image is the first one moved by (5, 3); the matrix that moves it back makes both agree."""
    first = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (60, 80), dtype=np.uint8), (9, 9), 0)
    second = np.roll(first, (3, 5), axis=(0, 1))
    planes = []
    for name, image in (("a.png", first), ("b.png", second)):
        cv2.imwrite(str(tmp_path / name), image)
        planes.append(datasets.Plane(name, tmp_path / name, None, {}))
    matrix = np.array([[1, 0, -5.0], [0, 1, -3.0], [0, 0, 1]])
    writer = writers.Alignment(tmp_path / "out", {})
    (tmp_path / "out").mkdir()
    writer.add(datasets.Call("sequence", planes), [{"transform_matrix": matrix, "confidence": 0.5}])
    writer.close()
    preview = cv2.imread(str(tmp_path / "out" / "previews" / "sequence-000.png"))[5:50, 5:70].astype(int)
    assert np.abs(preview[..., 0] - preview[..., 1]).mean() < 12
    (pair,) = json.loads((tmp_path / "out" / "alignment.json").read_text())["pairs"]
    assert (pair["first"], pair["second"], pair["confidence"]) == ("a.png", "b.png", 0.5)


def test_every_runner_has_a_writer() -> None:
    assert set(writers.WRITERS) == {*runners.OF_TYPE, "Generic"}
