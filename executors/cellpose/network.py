"""Cellpose 3 without its slow import, and networks of any width."""

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence

from segserve_sdk.sources import NoModel
from segserve_sdk.weights import cache_folder

PACKAGE_MODELS = (
    "cyto3",
    "nuclei",
    "bact_phase_cp3",
    "bact_fluor_cp3",
    "cyto2_cp3",
    "tissuenet_cp3",
    "livecell_cp3",
    "yeast_PhC_cp3",
    "yeast_BF_cp3",
    "deepbacs_cp3",
    "cyto",
    "cyto2",
)
SYNONYMS = {"bacteria": "bact_phase_cp3"}
NAMES = (*SYNONYMS, *PACKAGE_MODELS)
CHANNELS_IN = 2  # the one to segment, and nuclei or zeros
STYLE = 256  # numbers; cellpose.core makes room for so many, whatever the network has
USUAL_WIDTHS = (32, 64, 128, 256)


def cellpose() -> Any:
    """`cellpose.models`, imported in 2 s instead of 7.

    cellpose compiles eight functions by numba while it is imported, most of which a 2-D segmentation never calls. Here
    they are compiled when they are first called, and kept in `CACHE_FOLDER` for the next job. The weights that the
    package downloads by name go there, too.
    """
    cache = cache_folder().absolute()
    os.environ.setdefault("CELLPOSE_LOCAL_MODELS_PATH", str(cache / "cellpose"))
    with _compile_later(cache / "numba"):
        from cellpose import models
    return models


@contextmanager
def _compile_later(cache: Path) -> Iterator[None]:
    """Within this, `numba.njit` takes no signature (so compiles at the first call) and keeps what it has compiled."""
    import numba

    cache.mkdir(parents=True, exist_ok=True)
    numba.config.CACHE_DIR = str(cache)
    at_once = numba.njit

    def later(*given: Any, **options: Any) -> Any:
        function = given[:1] if given and callable(given[0]) else ()
        return at_once(*function, **{"cache": True, **options})

    numba.njit = later
    try:
        yield
    finally:
        numba.njit = at_once


def weights_of(name: str) -> Path:
    """The file of one of `NAMES`, downloaded by the package.

    Raises:
        NoModel: there is no network.
    """
    models = cellpose()
    try:
        return Path(models.model_path(SYNONYMS.get(name, name)))
    except OSError as error:
        raise NoModel(
            f"The weights '{name}' could not be downloaded from {models._MODEL_URL}: {error}. Without a network, put "
            f"the file into {models.MODEL_DIR}, or give -P model=<file>."
        ) from error


def trained_at(name: str) -> Optional[float]:
    """To which diameter (pixels) a model of the package rescales cells, as the package says; None for other models."""
    return {"nuclei": 17.0}.get(name, 30.0) if name in NAMES else None


def new(widths: Sequence[int], diameter: float) -> Any:
    """A CPnet with fresh weights; `widths` are the channels of its levels, `diameter` (pixels) what it rescales to."""
    from cellpose.resnet_torch import CPnet

    class Network(CPnet):  # type: ignore[misc]
        """A CPnet whose style vector is as long as cellpose expects, also when the network is narrower."""

        def forward(self, data: Any) -> Any:
            from torch.nn.functional import pad

            flows, style, levels = super().forward(data)
            return flows, pad(style, (0, STYLE - style.shape[1])), levels

    return Network([CHANNELS_IN, *widths], 3, sz=3, mkldnn=False, max_pool=True, diam_mean=diameter)


def load(weights: Path, device: Any, diameter: Optional[float] = None) -> Any:
    """A `CellposeModel` with the network in a file, whatever its widths.

    diameter: to which the network rescales cells, where that is known better than the file says (pixels).

    Raises:
        NoModel: the file holds no Cellpose 3 network.
    """
    import torch

    models = cellpose()
    try:
        state = torch.load(str(weights), map_location="cpu", weights_only=True)  # never runs what is pickled
    except Exception as error:
        raise NoModel(f"'{weights}' holds no weights that can be loaded: {_first_line(error)}") from error
    widths = _widths(state, weights)
    mean = diameter or float(state.get("diam_mean", [30.0])[0])
    network = new(widths, mean)
    try:
        missing = network.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise NoModel(f"'{weights}' does not fit Cellpose 3: {_first_line(error)}") from error
    if set(missing) - {"diam_mean", "diam_labels"}:  # the package's oldest models have none
        raise NoModel(f"'{weights}' lacks {len(missing)} parts of a Cellpose 3 network, {missing[0]} among them.")
    model = models.CellposeModel(pretrained_model=False, device=device, mkldnn=False)
    model.net = network.to(device).eval()
    model.nbase = [CHANNELS_IN, *widths]
    model.diam_mean = mean
    model.diam_labels = float(state.get("diam_labels", [mean])[0])
    model.pretrained_model = str(weights)
    return model


def _widths(state: Any, weights: Path) -> List[int]:
    if isinstance(state, dict) and "W2" in state:
        raise NoModel(f"'{weights}' holds a network of Cellpose 4; Cellpose 3 is what runs here.")
    found: List[int] = []
    while isinstance(state, dict) and f"downsample.down.res_down_{len(found)}.proj.1.weight" in state:
        found.append(int(state[f"downsample.down.res_down_{len(found)}.proj.1.weight"].shape[0]))
    if not found or found[-1] > STYLE:
        raise NoModel(f"'{weights}' holds no network of Cellpose 3.")
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
