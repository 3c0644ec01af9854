"""Make models/shapes.onnx, the default of `main`, from drawn images alone: python models/make_shapes.py

A quarter of an hour on one CPU core, and the same numbers each time on the same machine.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from segmentor import pixels, shapes
from segmentor.prepare import prepare

IMAGES, SIZE, RADIUS = 260, 128, (4.0, 32.0)
OVERRIDES = (
    "model.network.features=[8,8,16,32,64,8]",
    "processing.tile=96",
    "processing.augmentation.invert=0.5",
    "training.epochs=12",
    "training.crops=2",
    "training.learning_rate=4e-3",
    "training.workers=0",
    "training.accelerator=cpu",
)


def main() -> None:
    """Draw, prepare, train, copy the exported network here."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn, data, out = (Path(scratch) / name for name in ("drawn", "data", "out"))
        draw(drawn)
        prepare(drawn, data, "instances", ["object"], fractions=(0.9, 0.1, 0))
        command = [sys.executable, "-m", "segmentor.train", f"data={data}", f"hydra.run.dir={out}", *OVERRIDES]
        subprocess.run(command, cwd=FOLDER.parent, check=True)
        shutil.copyfile(out / "model" / "model.onnx", FOLDER / "shapes.onnx")


def draw(folder: Path) -> None:
    """Scenes from easy to hard, as images and masks of objects."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(IMAGES):
        image, annotation = shapes.scene(1000 + number, SIZE, RADIUS, variety=number / IMAGES)
        pixels.write_png(folder / "images" / f"{number:03d}.png", image)
        pixels.write_png(folder / "masks" / f"{number:03d}.png", annotation.instances.astype(np.uint16))


if __name__ == "__main__":
    main()
