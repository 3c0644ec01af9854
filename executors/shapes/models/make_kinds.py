"""Make models/kinds.onnx from drawn images alone, with the tools of the segmentor: python models/make_kinds.py

It runs in the segmentor's environment, some minutes on one CPU core, and the same numbers each time on one machine.
The network is trained on what it will be asked: crops of single objects on even ground (`crops.tile`).
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SEGMENTOR = FOLDER.parents[1] / "segmentor"
sys.path[:0] = [str(FOLDER.parent), str(SEGMENTOR)]

import crops
from segmentor import pixels, shapes
from segmentor.prepare import prepare

SCENES, SIZE, MOST = 80, 128, 1400
COLOURS = {"background": (0, 0, 0), "disc": (250, 50, 83), "bar": (51, 221, 255)}
OVERRIDES = (
    "model.network.features=[8,8,16,32,32,8]",
    f"processing.tile={crops.TILE}",
    "processing.low=0",
    "processing.high=100",
    "training.epochs=14",
    "training.crops=1",
    "training.learning_rate=5e-3",
    "training.workers=0",
    "training.threads=1",
    "training.accelerator=cpu",
)


def main() -> None:
    """Draw, prepare, train, copy the exported network here."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn, data, out = (Path(scratch) / name for name in ("drawn", "data", "out"))
        draw(drawn)
        prepare(drawn, data, "cvat", [], fractions=(0.9, 0.1, 0), group=r"(.*)")
        command = [sys.executable, "-m", "segmentor.train", f"data={data}", f"hydra.run.dir={out}", *OVERRIDES]
        subprocess.run(command, cwd=SEGMENTOR, check=True)
        shutil.copyfile(out / "model" / "model.onnx", FOLDER / "kinds.onnx")


def draw(folder: Path) -> None:
    """Crops of objects as CVAT's "Segmentation mask 1.1"."""
    for name in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (folder / name).mkdir(parents=True)
    lines = [f"{name}:{','.join(map(str, colour))}::\n" for name, colour in COLOURS.items()]
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(lines), "utf-8")
    number = 0
    for scene in range(SCENES):
        image, annotation = shapes.scene(5000 + scene, SIZE, variety=0.3 * scene / SCENES)
        classes = annotation.class_map()
        for label in range(1, int(annotation.instances.max()) + 1):
            inside = annotation.instances == label
            if inside.sum() < 40 or number == MOST:
                continue
            rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
            around = number % 5  # a localiser's boxes are never as tight as these
            box = tuple(slice(max(0, one[0] - around), one[-1] + 1 + around) for one in (rows, columns))
            write(folder, f"crop{number:04d}.png", image[box], np.where(inside, classes, 0)[box])
            number += 1


def write(folder: Path, name: str, crop: np.ndarray, classes: np.ndarray) -> None:
    """One crop as the network sees it, and the mask that belongs to it."""
    tile = (crops.tile(crop) * 255).astype(np.uint8)
    mask = crops.centred(classes.astype(np.uint8), 0)
    pixels.write_png(folder / "JPEGImages" / name, tile)
    pixels.write_png(folder / "SegmentationClass" / name, np.array(list(COLOURS.values()), np.uint8)[mask])
    pixels.write_png(folder / "SegmentationObject" / name, np.dstack([(mask > 0).astype(np.uint8) * 200] * 3))


if __name__ == "__main__":
    main()
