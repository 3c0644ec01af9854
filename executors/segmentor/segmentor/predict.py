"""The exported network on whole images: tiles that overlap, blended, then separated into objects. Needs no torch."""

import os
from itertools import product
from pathlib import Path

import cv2
import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime looks when it is imported
import onnxruntime

from segmentor import metadata
from segmentor.instances import DEFAULTS, Objects, Settings, separate
from segmentor.metadata import Metadata

FILE = "model.onnx"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ModelError(ValueError):
    """The model cannot be used; the message names file and reason."""


class Model:
    """An ONNX file that `export` wrote."""

    def __init__(self, path: Path, device: str = "auto") -> None:
        """Load `path`, a file or a folder with model.onnx. `device`: 'cpu', 'cuda', or 'auto': CUDA where it works.

        Raises:
            ModelError: no such file, no ONNX, not one of ours, or CUDA is asked for and not there.
        """
        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise ModelError(f"{file} is not there: give an ONNX file or a folder with {FILE}")
        try:
            self.session = onnxruntime.InferenceSession(str(file), providers=providers(device))
        except Exception as error:  # onnxruntime has a dozen classes for it, of no common base
            raise ModelError(f"{file} is no ONNX model that can be loaded: {error}") from None
        text = self.session.get_modelmeta().custom_metadata_map.get(metadata.KEY)
        if text is None:
            raise ModelError(f"{file} has no metadata '{metadata.KEY}': use the file that `export` wrote")
        try:
            self.metadata = Metadata.from_json(text)
        except ValueError as error:
            raise ModelError(f"{file}: {error}") from None

    def segment(
        self,
        image: np.ndarray,
        settings: Settings = DEFAULTS,
        *,
        overlap: float = 0.25,
        batch: int = 4,
        scale: float = 1,
    ) -> Objects:
        """The objects of an image: (rows, columns) or (rows, columns, 3 or 4) as RGB(A).

        scale: the image is resized by it for the network, so that objects have the size that it knows. Labels have the
        size of the image; `settings.min_area` counts its pixels.
        """
        shape = image.shape[:2]
        if scale != 1:
            image = cv2.resize(
                image, scaled(shape, scale), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            )
            settings = settings._replace(min_area=settings.min_area * scale**2)
        found = separate(*self.maps(image, overlap=overlap, batch=batch), settings)
        if scale == 1:
            return found
        labels = cv2.resize(found.labels, shape[::-1], interpolation=cv2.INTER_NEAREST)
        return found._replace(labels=labels)

    def maps(self, image: np.ndarray, *, overlap: float = 0.25, batch: int = 4) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities (1 + K, rows, columns) and distance (rows, columns), both float32."""
        pixels = self.metadata.normalisation(image)
        rows, columns = pixels.shape[1:]
        tile = self.metadata.tile
        missing = [max(0, tile[0] - rows), max(0, tile[1] - columns)]
        padded = np.pad(pixels, [(0, 0), *((m // 2, m - m // 2) for m in missing)], mode="symmetric")
        weight = _window(tile)
        total = np.zeros((len(self.metadata.classes) + 2, *padded.shape[1:]), np.float32)
        weights = np.zeros(padded.shape[1:], np.float32)
        everywhere = _places(padded.shape[1:], tile, overlap)
        for first in range(0, len(everywhere), batch):
            places = everywhere[first : first + batch]
            found = self.run(np.stack([padded[:, rows, columns] for rows, columns in places]))
            for (rows_, columns_), values in zip(places, found, strict=True):
                total[:, rows_, columns_] += values * weight
                weights[rows_, columns_] += weight
        top, left = missing[0] // 2, missing[1] // 2
        whole = (total / weights)[:, top : top + rows, left : left + columns]
        return whole[:-1], whole[-1]

    def run(self, tiles: np.ndarray) -> np.ndarray:
        """The network itself: (n, channels, rows, columns) → (n, 1 + K + 1, rows, columns), the distance last."""
        (result,) = self.session.run(None, {"image": np.ascontiguousarray(tiles, np.float32)})
        return result


def scaled(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    """Width and height, at least 1, of rows and columns times `scale`."""
    rows, columns = (max(1, round(length * scale)) for length in shape)
    return columns, rows


def providers(device: str) -> list[str]:
    """onnxruntime's names for a device.

    Raises:
        ModelError: CUDA is asked for, but this onnxruntime has no provider for it.
    """
    there = onnxruntime.get_available_providers()
    if device == "cuda" and _PROVIDERS["cuda"] not in there:
        raise ModelError("this onnxruntime has no CUDA: install onnxruntime-gpu, or take device=cpu")
    wanted = ["cuda", "cpu"] if device == "auto" else [device]
    return [_PROVIDERS[name] for name in wanted if _PROVIDERS[name] in there]


def _places(shape: tuple[int, ...], tile: tuple[int, int], overlap: float) -> list[tuple[slice, slice]]:
    """Where the tiles lie: evenly spread, neighbours share at least `overlap` of their length."""
    spans = []
    for length, size in zip(shape, tile, strict=True):
        step = max(1, int(size * (1 - overlap)))
        starts = np.linspace(0, length - size, -(-(length - size) // step) + 1).astype(int)
        spans.append([slice(start, start + size) for start in starts.tolist()])
    return list(product(*spans))


def _window(tile: tuple[int, int]) -> np.ndarray:
    """Weights of a tile's pixels: a Gaussian, an eighth of the tile wide, as MONAI's sliding window has it."""
    sides = [np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2) for size in tile]
    return np.maximum(np.outer(*sides), 1e-3).astype(np.float32)
