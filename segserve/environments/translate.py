"""conda requirements in PyPI's words, for `--env uv` and for the seeds of every uv environment."""

from __future__ import annotations

import re
from collections.abc import Iterable

from segserve.environments.condafile import PLAIN, MatchSpec
from segserve.errors import InvalidParameters

# conda name → PyPI name. Only what was looked at stands here: a name that is the same on both sides by chance is
# another package more often than one likes (conda's `opencv`, PyPI's `pytorch`).
_SAME = """
    numpy scipy pandas pillow tifffile scikit-image scikit-learn imageio imagecodecs h5py zarr numcodecs xarray networkx
    shapely numba cython joblib psutil matplotlib seaborn tqdm pyyaml requests click packaging six certifi attrs
    torchvision torchaudio tensorflow keras pytorch-lightning lightning timm einops monai albumentations transformers
    safetensors onnx onnxruntime mlflow mlflow-skinny gitpython fsspec s3fs boto3 dask distributed pyarrow cellpose
    stardist csbdeep aicsimageio nd2 readlif pooch rasterio pycocotools simpleitk nibabel pydicom mahotas edt
    fill-voids ipython jupyter notebook pytest typing-extensions jsonschema pydantic rich python-dateutil protobuf
"""
PYPI_NAMES: dict[str, str] = {
    **{name: name for name in _SAME.split()},
    "pytorch": "torch",
    "pytorch-gpu": "torch",
    "pytorch-cpu": "torch",
    "tensorflow-gpu": "tensorflow",
    "matplotlib-base": "matplotlib",
    "dask-core": "dask",
    "opencv": "opencv-python-headless",
    "py-opencv": "opencv-python-headless",
    "libopencv": "opencv-python-headless",
    "pytables": "tables",
    "huggingface_hub": "huggingface-hub",
    "msgpack-python": "msgpack",
}

# Libraries below Python that PyPI's wheels bring themselves (torch's carry CUDA), or that only steer conda.
CARRIED_BY_WHEELS = re.compile(
    r"cudatoolkit|cudnn|cuda(-.*)?|pytorch-cuda|pytorch-mutex|nccl|cpuonly|mkl(-service)?|nomkl|blas|libblas|openblas"
    r"|liblapack|intel-openmp|llvm-openmp|libgcc(-ng)?|libstdcxx-ng|ca-certificates|openssl|libtiff|libpng|jpeg|zlib"
    r"|python_abi|_libgcc_mutex|_openmp_mutex"
)
# Their PyPI versions have one more number than conda's: 4.5.5 is 4.5.5.64 there.
_LONGER_ON_PYPI = {"opencv-python-headless"}


def to_pypi(specs: Iterable[MatchSpec]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(requirement lines, warnings) for conda requirements; python, pip, setuptools, wheel and git are left out.

    Raises:
        InvalidParameters: naming every requirement that cannot be said in PyPI's words.
    """
    lines, warnings, failed = list[str](), list[str](), list[str]()
    for spec in specs:
        if spec.name in PLAIN:
            continue
        name = PYPI_NAMES.get(spec.name)
        version = pep440(spec.version, fuzzy=name in _LONGER_ON_PYPI)
        if CARRIED_BY_WHEELS.fullmatch(spec.name):
            warnings.append(f"'{spec.text}' is left out by --env uv: wheels carry such libraries themselves.")
        elif name is None or version is None:
            failed.append(spec.text)
        else:
            lines.append(f"{name}{version}")
            if spec.build:
                warnings.append(f"'{spec.text}': --env uv takes {name} from PyPI, which has no build '{spec.build}'.")
    if failed:
        raise InvalidParameters(
            f"--env uv knows no PyPI package for {', '.join(repr(text) for text in failed)}.",
            hint="Leave --env away: then conda packages are installed from their channels.",
        )
    return tuple(lines), tuple(warnings)


def pep440(version: str, *, fuzzy: bool = False) -> str | None:
    """A conda version constraint for pip: `=1.9` → `==1.9.*`, `>=1,<2` as it is; None when there is no such.

    `fuzzy` makes an exact version a prefix.
    """
    if not version:
        return ""
    parts = [_clause(part.strip(), fuzzy=fuzzy) for part in version.split(",")]
    return None if None in parts else ",".join(part for part in parts if part)


def seeds(specs: Iterable[MatchSpec]) -> dict[str, str]:
    """What a conda part says about pip, setuptools and wheel: name → requirement line."""
    named = {spec.name: spec for spec in specs if spec.name in ("pip", "setuptools", "wheel")}
    return {name: name + (pep440(spec.version) or "") for name, spec in named.items()}


_CLAUSE = re.compile(r"(?P<operator>==|>=|<=|!=|~=|=|<|>)?(?P<version>[0-9][0-9A-Za-z.!+_]*?)(?P<star>\.?\*)?")


def _clause(text: str, *, fuzzy: bool) -> str | None:
    if text == "*":
        return ""
    match = _CLAUSE.fullmatch(text)
    if match is None:
        return None
    operator, version = match["operator"] or "=", match["version"]
    if operator == "=" or (operator == "==" and (match["star"] or fuzzy)):
        return f"=={version}.*"
    if operator == "!=" and match["star"]:
        return f"!={version}.*"
    if match["star"]:  # >=1.9.* is >=1.9
        return None if operator in ("<=", ">") else f"{operator}{version}"
    return f"{operator}{version}"
