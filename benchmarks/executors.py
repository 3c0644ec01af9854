"""Every executor that ships and runs here, on every annotated set: the table of docs/executors.md, made by `bench`.

    python benchmarks/executors.py [--home FOLDER] [--only NAME]

The sets: `examples/annotated/crowded-nuclei` (real), well separated nuclei and touching cells (generated, from seeds
that no shipped model has seen). Environments are built below `--home` if they are not there. For a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from segserve import api
from segserve.bench import Benchmark
from tests.nuclei import nuclei

ROOT = Path(__file__).resolve().parent.parent
# title → reference, parameters
EXECUTORS = {
    "threshold": (f"{ROOT}", {}),
    "threshold, background=keep": (f"{ROOT}", {"background": ["keep"]}),
    "cellpose, models/tiny_cells": (f"{ROOT}#executors/cellpose:", {"model": ["models/tiny_cells"]}),
    "segmentor, models/shapes.onnx": (f"{ROOT}#executors/segmentor:", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, help="SEGSERVE_HOME  [default: a scratch folder]")
    parser.add_argument("--only", default="", help="rows whose title begins with this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segserve-executors-") as scratch:
        os.environ["SEGSERVE_HOME"] = str(arguments.home or Path(scratch) / "home")
        sets = annotated_sets(Path(scratch))
        print("| Executor | Images | AP@0.5 | mean AP | PQ | F1 | seconds | MB |")
        print("|---|---|---:|---:|---:|---:|---:|---:|")
        with api.session() as session:
            chosen = {title: row for title, row in EXECUTORS.items() if title.startswith(arguments.only)}
            for number, (title, (ref, parameters)) in enumerate(chosen.items()):
                for name, folder in sets.items():
                    output = Path(scratch) / f"{number}-{folder.name}"
                    done = session.bench(
                        [ref], folder / "images", folder / "truth", parameters=parameters, output=output, gpus="none"
                    )
                    print(f"| {title} | {name} | {cells(done)} |", flush=True)
            session.stop_ui()


def annotated_sets(scratch: Path) -> dict[str, Path]:
    """Title → folder with `images` and `truth`."""
    separated = scratch / "separated-nuclei"
    for kind in ("images", "truth"):
        (separated / kind).mkdir(parents=True)
    for seed in range(4):
        image, labels = nuclei(seed)
        cv2.imwrite(str(separated / "images" / f"{seed}.png"), image)
        cv2.imwrite(str(separated / "truth" / f"{seed}.png"), labels.astype(np.uint16))
    script = [sys.executable, str(ROOT / "executors" / "cellpose" / "synthetic.py"), str(scratch / "touching-cells")]
    subprocess.run(script, check=True)
    return {
        "crowded nuclei, real, 1 of 512²": ROOT / "examples" / "annotated" / "crowded-nuclei",
        "separated nuclei, generated, 4 of 512²": separated,
        "touching cells, generated, 4 of 256²": scratch / "touching-cells",
    }


def cells(done: Benchmark) -> str:
    """The numbers of one row."""
    row = done.rows[0]
    if row.error:
        return f"{row.error} | | | | |"
    scores = (row.ap, row.mean_ap, row.pq, row.f1)
    return " | ".join([*(f"{score:.2f}" for score in scores), f"{row.seconds:.1f}", f"{row.memory_mb:.0f}"])


if __name__ == "__main__":
    main()
