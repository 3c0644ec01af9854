"""Pictures as clients of the service send them."""

from __future__ import annotations

import cv2
import numpy as np


def png(value: int = 0) -> bytes:
    """60 × 40 grey pixels of one value."""
    return bytes(cv2.imencode(".png", np.full((40, 60), value, np.uint8))[1])


def files(*names: str, field: str = "images") -> list[tuple[str, tuple[str, bytes, str]]]:
    """Parts of a form for httpx, one picture per name; each is a little brighter than the one before."""
    return [(field, (name, png(number), "image/png")) for number, name in enumerate(names)]
