"""Staging PNGs beside `cp -r` of the same folder, in one run: `python benchmarks/staging.py [--side 256]`.

Both read from a warm page cache and write to the same disk; neither calls fsync. Staging reads headers, checks every
chunk's CRC, hashes with SHA-256, and writes inputs.json. Rounds alternate, so that a busy machine hits both alike;
nothing is deleted before the end, since ext4 creates files several times more slowly after a mass deletion.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from segserve import inputs
from segserve.inputs import png


def write_images(folder: Path, count: int, side: int) -> int:
    """Smooth cells with noise, like a microscope's; returns the bytes of one."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    clean = 100 + 60 * np.sin(x / 9) * np.sin(y / 11)
    variants = [png.encode((clean + random.normal(0, 4, clean.shape)).clip(0, 255).astype(np.uint8)) for _ in range(50)]
    for index in range(count):
        (folder / f"frame_{index}.png").write_bytes(variants[index % len(variants)])
    return len(variants[0])


def copy(source: Path, target: Path) -> float:
    """Seconds of `cp -r`."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    return time.perf_counter() - start


def stage(source: Path, target: Path) -> tuple[float, float]:
    """Seconds of planning and of staging."""
    start = time.perf_counter()
    plan = inputs.plan([source])
    planned = time.perf_counter()
    inputs.stage(plan, target, target.with_suffix(".json"))
    return planned - start, time.perf_counter() - planned


def main() -> int:
    """Print one JSON document with medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        work = Path(name)
        source = work / "images"
        source.mkdir()
        size = write_images(source, arguments.count, arguments.side)
        copies, plans, stages = [], [], []
        for number in range(arguments.rounds):
            for turn in ("copy", "stage") if number % 2 else ("stage", "copy"):
                os.sync()
                if turn == "copy":
                    copies.append(copy(source, work / f"copied{number}"))
                else:
                    planned, staged = stage(source, work / f"staged{number}")
                    plans.append(planned)
                    stages.append(staged)
    both = [one + two for one, two in zip(plans, stages, strict=True)]
    result = {
        "images": arguments.count,
        "bytes_per_image": size,
        "cp_r_s": round(float(np.median(copies)), 3),
        "plan_s": round(float(np.median(plans)), 3),
        "stage_s": round(float(np.median(stages)), 3),
        "ratio": round(float(np.median(both) / np.median(copies)), 2),
        "ratios_per_round": [round(one / two, 2) for one, two in zip(both, copies, strict=True)],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    json.dump(result, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
