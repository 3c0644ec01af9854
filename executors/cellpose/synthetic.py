"""Images of cells with their truth, drawn from a seed: what the shipped model has learned from and is tested on."""

import argparse
from pathlib import Path
from typing import Tuple

import cv2
import numpy as np


def cells(
    seed: int, *, size: int = 192, count: int = 30, radius: float = 13.0, overlap: float = 0.1
) -> Tuple[np.ndarray, np.ndarray]:
    """One image (size, size) uint16 and its label mask (size, size) int32, 0 = background.

    Roundish bright cells with a wavy outline, a brighter nucleus and texture, many of them touching, on uneven ground
    with noise. `radius` in pixels, each cell 0.7 to 1.3 of it; a cell is left out when more than `overlap` of it lies
    on others, so that fewer than `count` may be drawn.
    """
    random = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    light = np.zeros((size, size), np.float32)
    number = 0
    for _ in range(count * 20):
        if number == count:
            break
        centre = random.uniform(0, size, 2)
        inside = _outline(random, centre, radius * random.uniform(0.7, 1.3), size)
        free = inside & (labels == 0)
        if free.sum() < 30 or free.sum() < (1 - overlap) * inside.sum():
            continue
        number += 1
        labels[free] = number
        core = _outline(random, centre, 0.5 * radius, size) & free
        light[free] = random.uniform(0.35, 0.8)
        light[core] += random.uniform(0.0, 0.3)
    return _photograph(random, light), _renumber(labels)


def _outline(random: np.random.Generator, centre: np.ndarray, radius: float, size: int) -> np.ndarray:
    """A filled closed curve: an ellipse with a few slow waves."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    stretch, turn = random.uniform(1.0, 1.5), random.uniform(0, np.pi)
    away = np.full_like(angle, radius)
    for wave in (2, 3, 4):
        away *= 1 + random.uniform(0, 0.12) / wave * np.cos(wave * angle + random.uniform(0, 2 * np.pi))
    x, y = away * np.cos(angle) * np.sqrt(stretch), away * np.sin(angle) / np.sqrt(stretch)
    ring = centre + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)
    return cv2.fillPoly(np.zeros((size, size), np.uint8), [ring.round().astype(np.int32)], 1) > 0


def _photograph(random: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """Uneven ground, texture, blur and the noise of a camera."""
    size = len(light)
    rows, columns = np.mgrid[0:size, 0:size] / size
    tilt = random.uniform(-0.2, 0.2, 2)
    ground = 0.25 + tilt[0] * (rows - 0.5) + tilt[1] * (columns - 0.5)
    texture = 1 + 0.4 * cv2.GaussianBlur(random.normal(size=light.shape), (0, 0), 2)
    image = ground + cv2.GaussianBlur(light * texture.astype(np.float32), (0, 0), random.uniform(0.8, 1.5))
    photons = random.uniform(150, 500)
    image = random.poisson(np.clip(image, 0, None) * photons) / photons
    return np.clip(image * 20_000, 0, 65535).astype(np.uint16)


def _renumber(labels: np.ndarray) -> np.ndarray:
    """1, 2, … without gaps: a later cell may have covered an earlier one."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)


def write(folder: Path, seeds: range, size: int) -> None:
    """Images as `images/NNN.png`, label masks as `truth/NNN.png` (16 bit)."""
    for seed in seeds:
        image, labels = cells(seed, size=size, count=round(60 * (size / 256) ** 2), overlap=0.05)
        for kind, data in (("images", image), ("truth", labels.astype(np.uint16))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / kind / f"{seed:03d}.png"), data)


def main() -> None:
    """python synthetic.py FOLDER [--first SEED] [--count N] [--size PIXELS]"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first image; training took those below 64")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="of an image, in pixels")
    options = parser.parse_args()
    write(options.folder, range(options.first, options.first + options.count), options.size)


if __name__ == "__main__":
    main()
