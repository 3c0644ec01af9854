"""Algorithm modules from end to end: `segserve run` on folders that hold no MLProject."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import tifffile
from skimage import filters

import segserve
from segserve import api
from segserve.errors import ExecutorFailed
from tests.commands import run_of, status_of
from tests.modules import EVERY_PARAMETER, make_module, write_module
from tests.repositories import git, make_repository

pytest_plugins = ["tests.command_fixtures"]
# The environment comes from the configured package index; all tests share a home, where it is built once.
pytestmark = [pytest.mark.network, pytest.mark.usefixtures("here")]
EXAMPLES = Path(__file__).parent.parent / "examples" / "images"


def run(folder: Path | str, images: object, **how: object) -> api.Result:
    """Run a module to its end."""
    result = segserve.run(str(folder), images, **how)
    assert isinstance(result, api.Result)
    return result


def log_of(result: api.Result) -> str:
    """The job's log."""
    with api.session() as session:
        return "".join(session.logs(result.job_id))


@pytest.mark.parametrize("dialect", ["compox", "t3dserver"])
def test_the_guides_segmentation(tmp_path: Path, dialect: str) -> None:
    sha = make_module(tmp_path / "module", "Image2Segmentation", dialect)
    result = run(tmp_path / "module", [EXAMPLES / "cell.png", EXAMPLES / "coins.png"], keep=True)
    assert result.pin.sha == sha
    coins = cv2.imread(str(EXAMPLES / "coins.png"), cv2.IMREAD_UNCHANGED)
    mask = coins > filters.threshold_otsu(coins)
    assert result.counts[1] == cv2.connectedComponents(mask.astype(np.uint8))[0] - 1
    form = "task_handler on cpu" if dialect == "compox" else "initialize on cpu"
    assert f"{form}: otsu on (1, " in log_of(result)
    with api.session() as session:
        checkout = session.ctx.home.job(result.job_id).attempt(1).checkout
    assert (checkout / "MLProject").exists()
    assert git(checkout, "status", "--porcelain") == ""


@pytest.mark.parametrize("dialect", ["compox", "t3dserver"])
def test_the_guides_denoising(tmp_path: Path, dialect: str) -> None:
    noisy = tmp_path / "images"
    noisy.mkdir()
    coins = cv2.imread(str(EXAMPLES / "coins.png"), cv2.IMREAD_UNCHANGED)
    noise = np.random.default_rng(1).normal(0, 25, coins.shape)
    image = np.clip(coins + noise, 0, 255).astype(np.uint8)
    cv2.imwrite(str(noisy / "single.png"), image)
    tifffile.imwrite(noisy / "series.tif", np.stack([image, image[::-1]]), metadata={"axes": "TYX"}, imagej=True)
    make_module(tmp_path / "module", "Image2Image", dialect)
    result = run(tmp_path / "module", noisy, parameters={"denoising_weight": 0.3})
    found = sorted(path.relative_to(result.folder / "artifacts") for path in result.folder.glob("artifacts/*/*"))
    assert [str(path) for path in found] == [
        "images/series.tif", "images/single.tif", "previews/series.png", "previews/single.png",
    ]  # fmt: skip
    with tifffile.TiffFile(result.folder / "artifacts" / "images" / "series.tif") as file:
        assert file.series[0].axes == "TYX"
        series = file.asarray()
    assert series.shape == (2, *coins.shape)
    assert series.dtype == np.float32
    single = tifffile.imread(result.folder / "artifacts" / "images" / "single.tif")
    rough = cv2.Laplacian(image / 255.0, cv2.CV_64F).std()
    assert cv2.Laplacian(single, cv2.CV_32F).std() < rough / 4


@pytest.mark.parametrize("dialect", ["compox", "t3dserver"])
def test_the_guides_registration(tmp_path: Path, dialect: str) -> None:
    frames = tmp_path / "images"
    frames.mkdir()
    for index in (1, 2, 10):
        cv2.imwrite(str(frames / f"frame{index}.png"), np.full((60, 80), index, np.uint8))
    make_module(tmp_path / "module", "Image2Alignment", dialect)
    result = run(tmp_path / "module", frames, parameters={"max_translation": 0.1})
    pairs = json.loads((result.folder / "artifacts" / "alignment.json").read_text())["pairs"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [
        ("frame1.png", "frame2.png"), ("frame2.png", "frame10.png"),
    ]  # fmt: skip
    for pair in pairs:
        matrix = np.array(pair["transform_matrix"])
        assert abs(matrix[0, 2]) <= 8
        assert abs(matrix[1, 2]) <= 6
        assert np.array_equal(matrix[:2, :2], np.eye(2))
    rows = (result.folder / "artifacts" / "alignment.csv").read_text().splitlines()
    assert rows[0].startswith("sequence,first,second,m00,")
    assert len(rows) == 3
    assert len(list(result.folder.glob("artifacts/previews/*.png"))) == 2


@pytest.mark.parametrize("dialect", ["compox", "t3dserver"])
def test_embeddings(tmp_path: Path, dialect: str) -> None:
    make_module(tmp_path / "module", "Image2Embedding", dialect)
    result = run(tmp_path / "module", EXAMPLES / "coins.png")
    coins = cv2.imread(str(EXAMPLES / "coins.png"), cv2.IMREAD_UNCHANGED)
    with np.load(result.folder / "artifacts" / "embeddings" / "coins.npz") as found:
        assert found["features"] == pytest.approx([coins.mean(), coins.std()], rel=1e-4)
        assert tuple(found["original_size"]) == coins.shape
    with h5py.File(result.folder / "artifacts" / "embeddings" / "coins.h5") as file:
        assert file["features"].shape == (2,)
        assert tuple(file.attrs["input_size"]) == coins.shape


@pytest.mark.parametrize("dialect", ["compox", "t3dserver"])
def test_own_schemas_and_every_parameter(tmp_path: Path, dialect: str) -> None:
    make_module(tmp_path / "module", "Generic", dialect, parameters=EVERY_PARAMETER)
    given = {
        "some_int_range_parameter": "7",
        "some_bool_parameter": "no",
        "some_string_parameter": 'it\'s $(id) "x"',
        "some_float_list_parameter": "1,2.5",
        "some_string_list_parameter": '["a, b", "c"]',
    }
    result = run(tmp_path / "module", EXAMPLES / "coins.png", parameters=given)
    with h5py.File(result.folder / "artifacts" / "outputs" / "coins.h5") as file:
        coins = cv2.imread(str(EXAMPLES / "coins.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(file["output"][()], coins.max(axis=0))
        arguments = dict(ast.literal_eval(file.attrs["settings"]))
    assert arguments == {
        "some_string_parameter": 'it\'s $(id) "x"',
        "some_int_parameter": 42,
        "some_float_parameter": 3.14,
        "some_bool_parameter": False,
        "some_int_range_parameter": 7,
        "some_float_range_parameter": 3.14,
        "some_string_enum_parameter": "hello",
        "some_int_enum_parameter": 42,
        "some_float_enum_parameter": 3.14,
        "some_string_list_parameter": ["a, b", "c"],
        "some_int_list_parameter": [42, 43, 44],
        "some_float_list_parameter": [1.0, 2.5],
        "some_bool_list_parameter": [True, False, True],
    }
    assert arguments["some_bool_parameter"] is False
    assert "[WARNING]" in log_of(result)


def test_a_generic_module_that_needs_the_whole_set_gets_it_in_one_call(tmp_path: Path) -> None:
    methods = """
    def preprocess(self, input_data, args={}):
        return [data["image"] for data in self.fetch_data(input_data["input_dataset_ids"], ImageSchema)]

    def inference(self, data, args={}):
        brightest = max(image.max() for image in data)
        return [image / brightest for image in data]

    def postprocess(self, inference_output, args={}):
        return self.post_data([{"output": image, "settings": ""} for image in inference_output], MyOutputSchema)
"""
    whole = "[run]\nwhole_set = true\n"
    folder = write_module(tmp_path / "module", "Generic", methods=methods)
    make_repository(folder, {"segserve.toml": whole})
    (tmp_path / "images").mkdir()
    for index, rows in enumerate((30, 40, 50)):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), np.full((rows, 20), 50 * (index + 1), np.uint8))
    result = run(tmp_path / "module", tmp_path / "images")
    found = []
    for path in sorted((result.folder / "artifacts" / "outputs").glob("*.h5")):
        with h5py.File(path) as file:
            found.append((path.stem, file["output"].shape, round(float(file["output"][()].max()), 3)))
    assert found == [("all-0000", (30, 20), 0.333), ("all-0001", (40, 20), 0.667), ("all-0002", (50, 20), 1.0)]


ASSETS = """
        self.model = self.fetch_asset("files/weights.bin").getvalue()
        self.calls = []
"""
COUNTING = """
    def inference(self, data, args={}):
        assert len(self.model) == 100_000_000
        self.calls.append(1)
        return data > 100
"""


def test_assets_of_100_mb_load_once_for_50_images(tmp_path: Path) -> None:
    folder = write_module(tmp_path / "module", imports="", methods=COUNTING, assets=ASSETS)
    (folder / "files").mkdir()
    (folder / "files" / "weights.bin").write_bytes(b"weights!" * 12_500_000)
    images = tmp_path / "images"
    images.mkdir()
    for index in range(50):
        cv2.imwrite(str(images / f"{index}.png"), np.full((20, 20), 4 * index, np.uint8))
    result = run(folder, images)
    assert len(result.counts) == 50
    log = log_of(result)
    assert log.count("Asset files/weights.bin: 100.0 MB in") == 1
    assert log.count("it set model, calls, locked from now on") == 1
    assert log.count("50/50 ") == 1
    metrics = {metric["key"]: metric["value"] for metric in run_of(result.run_url)["data"]["metrics"]}
    assert metrics["seconds.load_assets"] > 0
    assert metrics["mb.assets"] == 100


def test_what_load_assets_sets_is_locked_and_good_outputs_survive(tmp_path: Path) -> None:
    """The third image fails: a FAILED run with its traceback, and the two before it."""
    methods = """
    def inference(self, data, args={}):
        if data.max() == 30:
            self.threshold = 0
        return data > self.threshold
"""
    make_module(tmp_path / "module", imports="", methods=methods, assets="        self.threshold = 5")
    images = tmp_path / "images"
    images.mkdir()
    for value in (10, 20, 30, 40):
        image = np.zeros((30, 30), np.uint8)
        image[5:15, 5:15] = value
        cv2.imwrite(str(images / f"{value}.png"), image)
    with pytest.raises(ExecutorFailed) as caught:
        segserve.run(str(tmp_path / "module"), images)
    assert "'threshold' was set in load_assets and is locked" in caught.value.message
    log = Path(caught.value.log or "").read_text()
    assert "Traceback" in log
    assert 'Runner.py", line' in log
    assert "2 of 4 were finished before" in log
    with api.session() as session:
        shown = session.show(session.jobs(everything=True, limit=1)[0]["job"])
        assert status_of(shown["mlflow"]) == "FAILED"
        partial = Path(run_of(shown["mlflow"])["info"]["artifact_uri"].removeprefix("file://")) / "partial"
    document = json.loads((partial / "output.json").read_text())
    assert [len(image) for image in document["segmentation_data"]] == [1, 1]
    assert json.loads((partial / "finished.json").read_text()) == ["10", "20"]
    assert len(list((partial / "masks").iterdir())) == 2


def test_check_importable_really_checks(tmp_path: Path) -> None:
    """`late.py` is only imported by a function of Runner.py, so that the run itself would not have noticed."""
    folder = write_module(tmp_path / "module", settings="check_importable = true")
    (folder / "parts").mkdir()
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "late.py").write_text("import surely_not_installed\n")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_late.py").write_text("import pytest\n")  # is no part of the module
    make_repository(folder, {})
    with pytest.raises(ExecutorFailed) as caught:
        segserve.run(str(folder), EXAMPLES / "coins.png")
    assert "surely_not_installed" in caught.value.message + caught.value.quote
    log = Path(caught.value.log or "").read_text()
    assert "parts/late.py cannot be imported" in log
    assert "otsu on" not in log
    (folder / "parts" / "late.py").write_text("")
    make_repository(folder, {})
    checked = run(f"{folder}#check", ())
    assert json.loads((checked.folder / "artifacts" / "output.json").read_text())["type"] == "info"


LABELS = """
    def inference(self, data, args={}):
        assert data.ndim == 3
        labels = np.zeros(data.shape, np.uint16)
        labels[:, 2:8, 2:8] = 7
        labels[1:, 8:12, 2:8] = 3  # touches the first one: as a binary mask both would be one object
        return labels
"""


def test_stacks_and_hdf5_are_segmented_per_plane(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    stack = np.zeros((3, 20, 30), np.uint8)
    tifffile.imwrite(images / "a.tif", stack, metadata={"axes": "ZYX"}, imagej=True)
    with h5py.File(images / "b.h5", "w") as file:
        file["image"] = stack[:2]
    make_module(tmp_path / "module", "Image2Segmentation", "t3dserver", imports="", methods=LABELS)
    result = run(tmp_path / "module", images)
    assert [(Path(image.source).name, image.z, image.t) for image in result.images] == [
        ("a.tif", 0, None), ("a.tif", 1, None), ("a.tif", 2, None), ("b.h5", None, 0), ("b.h5", None, 1),
    ]  # fmt: skip
    assert result.counts == (1, 2, 2, 1, 2)
