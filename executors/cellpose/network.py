"""Cellpose 3 without its slow import, and networks of any width."""

import os
import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence

import numpy as np
from segserve_sdk.sources import NoModel
from segserve_sdk.weights import cache_folder, fetch

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
WITH_SIZE = ("cyto3", "cyto2", "cyto", "nuclei")
URL = "https://www.cellpose.org/models"
_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
NAMES = (*SYNONYMS, *PACKAGE_MODELS)
CHANNELS_IN = 2  # the one to segment, and nuclei or zeros
STYLE = 256  # numbers; cellpose.core makes room for so many, whatever the network has
USUAL_WIDTHS = (32, 64, 128, 256)


def cellpose() -> Any:
    """`cellpose.models`, imported in 2 s instead of 7.

    cellpose compiles eight functions by numba while it is imported, most of which a 2-D segmentation never calls. Here
    they are compiled when they are first called, and kept in `CACHE_FOLDER` for the next job.
    """
    with _compile_later(cache_folder().absolute() / "numba"):
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
    """The file of one of `NAMES`: where Cellpose keeps its models, or downloaded.

    Not by the package's own function: that one switches the check of certificates off, for the whole process.

    Raises:
        WeightsError: it cannot be had.
    """
    name = SYNONYMS.get(name, name)
    return _file(f"{name}torch_0" if name in ("cyto", "cyto2", "nuclei") else name)


def _file(name: str) -> Path:
    kept = Path(os.environ.get("CELLPOSE_LOCAL_MODELS_PATH") or Path.home() / ".cellpose" / "models") / name
    return kept if kept.is_file() else fetch(f"{URL}/{name}", name=name)


def size_model(model: Any, name: str) -> Any:
    """What estimates diameters for one of `WITH_SIZE`, a `cellpose.models.SizeModel` of `model`.

    Raises:
        WeightsError: its parameters cannot be had.
        NoModel: they are not what they should be.
    """
    file = _file(f"size_{name}.npy" if name == "cyto3" else f"size_{name}torch_0.npy")
    made = cellpose().SizeModel(model)
    made.params = _parameters(file)
    made.diam_mean = made.params["diam_mean"]
    return made


def _parameters(file: Path) -> Any:
    """The dictionary of arrays in a .npy file. It is pickled, and Cellpose would run whatever else is in there."""

    class ArraysOnly(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module.replace("._core.", ".core."), name) in _ARRAYS:
                return super().find_class(module, name)
            raise NoModel(f"'{file}' holds {module}.{name}; arrays and numbers are expected.")

    with file.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
        return ArraysOnly(stream).load().item()


def trained_at(name: str) -> Optional[float]:
    """To which diameter (pixels) a model of the package rescales cells, as the package says; None for other models."""
    return {"nuclei": 17.0}.get(name, 30.0) if name in NAMES else None


def new(widths: Sequence[int], diameter: float) -> Any:
    """A CPnet with fresh weights; `widths` are the channels of its levels, `diameter` (pixels) what it rescales to."""
    from cellpose.resnet_torch import CPnet

    class Network(CPnet):
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
    except Exception as error:  # whatever a damaged file makes of torch
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
