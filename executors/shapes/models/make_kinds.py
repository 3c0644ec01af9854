"""Make models/kinds.onnx from drawn images alone, with the tools of the segmentor: python models/make_kinds.py

It runs in the segmentor's environment, some minutes on one CPU core, and the same numbers each time on one machine.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SEGMENTOR = FOLDER.parents[1] / "segmentor"
sys.path.insert(0, str(SEGMENTOR))

from segmentor import shapes  # noqa: E402
from segmentor.prepare import prepare  # noqa: E402

IMAGES, SIZE = 160, 96
OVERRIDES = (
    "model.network.features=[8,8,16,32,32,8]",
    "processing.tile=64",
    "training.epochs=14",
    "training.crops=3",
    "training.learning_rate=5e-3",
    "training.workers=0",
    "training.threads=1",
    "training.accelerator=cpu",
)


def main() -> None:
    """Draw, prepare, train, copy the exported network here."""
    with tempfile.TemporaryDirectory() as scratch:
        drawn, data, out = (Path(scratch) / name for name in ("drawn", "data", "out"))
        shapes.write_cvat(drawn, IMAGES, seed=5000, size=SIZE, variety=0.3)
        prepare(drawn, data, "cvat", [], fractions=(0.9, 0.1, 0))
        command = [sys.executable, "-m", "segmentor.train", f"data={data}", f"hydra.run.dir={out}", *OVERRIDES]
        subprocess.run(command, cwd=SEGMENTOR, check=True)
        shutil.copyfile(out / "model" / "model.onnx", FOLDER / "kinds.onnx")


if __name__ == "__main__":
    main()
