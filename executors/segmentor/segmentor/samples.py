"""What the network is shown: a grid of augmented crops with the objects that it has to find."""

from typing import Any

import cv2
import numpy as np

# Colours of classes 1, 2, … as RGB (Okabe and Ito, readable for all).
PALETTE = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
)


def grid(crops: list[dict[str, Any]], columns: int = 4) -> np.ndarray:
    """(rows, columns, 3) uint8 RGB: image with outlines of classes, and beside it the distance, of every crop."""
    cells = [_cell(crop) for crop in crops]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[first : first + columns]) for first in range(0, len(cells), columns)])


def outlined(image: np.ndarray, masks: list[tuple[np.ndarray, tuple[int, int, int]]]) -> np.ndarray:
    """A copy of an RGB image with the rim of every mask (rows, columns) in its colour."""
    result = np.ascontiguousarray(image).copy()
    for mask, colour in masks:
        rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, rings, -1, colour, 1)
    return result


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """(rows, columns, 3) uint8 from (1 or 3, rows, columns) in 0..1."""
    planes = np.clip(pixels * 255, 0, 255).astype(np.uint8)
    return np.dstack([planes[0]] * 3 if len(planes) == 1 else list(planes))


def colour_of(number: int) -> tuple[int, int, int]:
    """Of class 1, 2, …"""
    red, green, blue = PALETTE[(number - 1) % len(PALETTE)].tolist()
    return red, green, blue


def _cell(crop: dict[str, Any]) -> np.ndarray:
    classes = np.asarray(crop["classes"])[0]
    masks = [(classes == number, colour_of(number)) for number in range(1, int(classes.max()) + 1)]
    left = outlined(to_rgb(np.asarray(crop["image"])), masks)
    return np.pad(np.hstack([left, to_rgb(np.asarray(crop["distance"]))]), [(2, 2), (2, 2), (0, 0)])
