"""Annotated images without a microscope: discs and bars with noise, as a person would export them from CVAT.

The tests train on them, the documentation starts with them, and the model that ships has seen nothing else.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from segmentor import pixels
from segmentor.annotation import Annotation

CLASSES = ("disc", "bar")
_COLOURS = {"background": (0, 0, 0), "disc": (250, 50, 83), "bar": (51, 221, 255)}


def scene(
    seed: int, size: int = 96, radius: tuple[float, float] = (8, 14), variety: float = 0.0
) -> tuple[np.ndarray, Annotation]:
    """An image (size, size) uint8 and its objects of classes 1 disc, 2 bar. Objects touch, but do not overlap.

    radius: half the length of objects, least and most, in pixels. variety: 0 bright discs and dimmer bars on even
    ground, up to 1: any brightness, dark on bright as well, uneven ground, texture, blur, more noise.
    """
    random = np.random.default_rng(seed)
    largest = float(np.exp(random.uniform(*np.log(radius))))
    instances, light, classes = np.zeros((size, size), np.int32), np.zeros((size, size), np.float32), []
    for _ in range(int(random.uniform(1.5, 4) * (size / largest / 2) ** 2)):
        kind = int(random.integers(1, 3))
        inside = _shape(random, size, largest * random.uniform(0.7, 1), kind)
        if not inside.any() or (instances[inside] > 0).any():
            continue
        classes.append(kind)
        instances[inside] = len(classes)
        brightest = 1 if kind == 1 else 0.65 + 0.35 * variety
        light[inside] = random.uniform(brightest - 0.2 - 0.4 * variety, brightest)
    return _photograph(random, light, variety), Annotation(instances, np.array(classes, np.int64))


def _shape(random: np.random.Generator, size: int, radius: float, kind: int) -> np.ndarray:
    canvas = np.zeros((size, size), np.uint8)
    centre = random.uniform(0, size, 2)
    if kind == 1:
        axes = radius * random.uniform(0.8, 1, 2)
        box = (centre.tolist(), (2 * axes).tolist(), float(random.uniform(0, 180)))
        return cv2.ellipse(canvas, box, 1, -1) > 0
    sides = 2 * radius * np.array([1.0, random.uniform(0.3, 0.4)])
    corners = cv2.boxPoints((centre.tolist(), sides.tolist(), float(random.uniform(0, 180))))
    return cv2.fillPoly(canvas, [corners.round().astype(np.int32)], 1) > 0


def _photograph(random: np.random.Generator, light: np.ndarray, variety: float) -> np.ndarray:
    size = len(light)
    rows, columns = np.mgrid[0:size, 0:size] / size - 0.5
    angle = random.uniform(0, 2 * np.pi)
    ground = 0.2 + variety * random.uniform(0, 0.5) * (rows * np.sin(angle) + columns * np.cos(angle))
    grain = cv2.GaussianBlur(random.normal(size=light.shape), (0, 0), random.uniform(1, 4))
    texture = 1 + variety * random.uniform(0, 0.3) * grain / grain.std()
    image = ground + 0.6 * cv2.GaussianBlur(light * texture, (0, 0), 0.5 + variety * random.uniform(0, 1.5))
    image += random.normal(0, 0.02 + variety * random.uniform(0, 0.06), light.shape)
    if random.random() < 0.5 * variety:
        image = 1 - image
    return np.clip(image * 255, 0, 255).astype(np.uint8)


def write_cvat(folder: Path, count: int, seed: int = 0, size: int = 96, variety: float = 0.0) -> None:
    """Write `count` scenes as CVAT's "Segmentation mask 1.1": labelmap.txt, images, a colour per class and object."""
    for name in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = [f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in _COLOURS.items()]
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(lines), "utf-8")
    palette = np.array(list(_COLOURS.values()), np.uint8)
    for number in range(count):
        image, annotation = scene(seed + number, size, variety=variety)
        label = annotation.instances
        by_object = np.dstack([label * 37 % 256, label * 91 % 256, label % 256]).astype(np.uint8)
        name = f"shapes{number:03d}.png"
        pixels.write_png(folder / "JPEGImages" / name, image)
        pixels.write_png(folder / "SegmentationClass" / name, palette[annotation.class_map()])
        pixels.write_png(folder / "SegmentationObject" / name, by_object)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a folder of scenes."""
    parser = argparse.ArgumentParser(prog="shapes", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--variety", type=float, default=0.0, help="0 easy … 1 hard")
    options = parser.parse_args(arguments)
    write_cvat(options.folder, options.images, options.seed, options.size, options.variety)


if __name__ == "__main__":
    main()
