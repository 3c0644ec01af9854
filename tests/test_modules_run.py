"""Algorithm modules from end to end: `segserve run` on folders that hold no MLProject."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import filters

import segserve
from segserve import api
from tests.modules import make_module
from tests.repositories import git

pytestmark = pytest.mark.network  # the environment comes from the configured package index
EXAMPLES = Path(__file__).parent.parent / "examples" / "images"


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for the module: the default environment is built once, as for a user's second module."""
    home = tmp_path_factory.mktemp("home")
    yield home
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_HOME", str(home))
        with api.session() as session:
            session.stop_ui()


@pytest.fixture(autouse=True)
def _here(shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_HOME", str(shared_home))
    monkeypatch.chdir(tmp_path)


def run(folder: Path, images: object, **how: object) -> api.Result:
    """Run a module to its end."""
    result = segserve.run(str(folder), images, **how)  # type: ignore[arg-type]
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
