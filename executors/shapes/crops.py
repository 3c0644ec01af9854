"""Crops as the network knows them: grey, one object in the middle of even ground, the brightest 1."""

import cv2
import numpy as np

TILE = 64  # rows and columns


def tile(crop: np.ndarray) -> np.ndarray:
    """(TILE, TILE) float32 in 0..1 of a crop (rows, columns) or (rows, columns, 3) as RGB; larger ones are reduced."""
    grey = crop if crop.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(crop[..., :3]), cv2.COLOR_RGB2GRAY)
    scale = min(1.0, TILE / max(grey.shape))
    if scale < 1:
        shape = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
        grey = cv2.resize(np.ascontiguousarray(grey), shape, interpolation=cv2.INTER_AREA)
    low, high = float(grey.min()), float(grey.max())
    return np.clip((centred(grey, low) - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def centred(values: np.ndarray, ground: float) -> np.ndarray:
    """The values (at most TILE × TILE) in the middle of (TILE, TILE) that is `ground` elsewhere."""
    placed = np.full((TILE, TILE), ground, values.dtype)
    top, left = ((TILE - length) // 2 for length in values.shape)
    placed[top : top + values.shape[0], left : left + values.shape[1]] = values
    return placed
