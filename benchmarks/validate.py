"""`segserve validate` beside other readers of JSON: `python benchmarks/validate.py [--sizes 1000 100000 1000000]`.

`--gb 5` instead makes one document of so many gigabytes, validates it under a memory limit, and removes it.

Every contender is a process of its own, timed from its start to the end of its work (start-up included), with the page
cache warm; rounds alternate. Polygons have 40 vertices and integral coordinates, 1000 per image of 2048²: four fifths
are round cells, one fifth bent rods, whose middle lies outside of them. Needs orjson (`pip install segserve[dev]`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 2048
TYPES = """
from typing import Literal
{imports}
class Object({base}):
    label: str
    contour_coordinates: list[tuple[float, float]]
    type: Literal["Polygon"]
    score: float | None = None
class Document({base}):
    model: str
    format_version: Literal["0.2"]
    segmentation_data: list[list[Object]]
"""
READ = "import sys; data = open(sys.argv[1], 'rb').read()\n"
QUIET = "import gc; gc.disable()\n"
VALIDATE = """
from segserve.cli.validate import validate_command
validate_command.main([sys.argv[1], "--images", sys.argv[2], *sys.argv[3:]], standalone_mode=False)
"""
CONTENDERS = {
    "read": READ,
    "json": QUIET + READ + "import json; json.loads(data)",
    "orjson": QUIET + READ + "import orjson; orjson.loads(data)",
    "pydantic": QUIET
    + READ
    + TYPES.format(imports="from pydantic import BaseModel", base="BaseModel")
    + "Document.model_validate_json(data)",
    "msgspec typed": QUIET
    + READ
    + TYPES.format(imports="import msgspec", base="msgspec.Struct, gc=False")
    + "msgspec.json.decode(data, type=Document)",
    "segserve load": "import sys\nfrom segserve import format\nformat.decode(open(sys.argv[1], 'rb'))",
    "segserve validate": "import sys" + VALIDATE,
}
END = "\nimport os; os._exit(0)"  # nobody's objects are taken apart one by one

PAIRS = """
import sys, time
import numpy as np, shapely
from segserve import format
from segserve.format import geometry, pairs, rings
document = format.decode(open(sys.argv[1], "rb"))
box = geometry.boxes(document.coordinates, document.offsets)
started = time.perf_counter(); again = pairs.duplicates(document, box); duplicates = time.perf_counter() - started
odd = rings.odd_rings(document.coordinates, document.offsets)
started = time.perf_counter(); found = pairs.compare(document, box, odd, (again >= 0) | odd)
compared = time.perf_counter() - started
started = time.perf_counter()
index = np.repeat(np.arange(len(document)), np.diff(document.offsets))
polygons = shapely.polygons(shapely.linearrings(document.coordinates, indices=index))
starts, hits = document.starts(), 0
for begin, end in zip(starts[:-1], starts[1:]):
    one, other = shapely.STRtree(polygons[begin:end]).query(polygons[begin:end], predicate="intersects")
    hits += int((one < other).sum())
tree = time.perf_counter() - started
import json
print(json.dumps({"duplicates_s": round(duplicates, 2), "overlap_nesting_s": round(compared, 2),
                  "strtree_s": round(tree, 2), "overlapping": len(found.first), "intersecting": hits}))
"""

LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1)) << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""


def polygons(count: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """(count, 40, 2) integers within the image."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = random.uniform(14, 34, (count, 1)) * (
        1
        + sum(
            random.normal(0, 0.12 / k, (count, 1)) * np.cos(k * angle + random.uniform(0, 7, (count, 1)))
            for k in (2, 3, 4)
        )
    )
    x, y = radius * np.cos(angle), radius * random.uniform(0.6, 1, (count, 1)) * np.sin(angle)
    rods = random.random(count) < 0.2
    along = np.abs(np.linspace(-1, 1, 40, endpoint=False)) * 2.6 - 1.3  # to the end and back
    width = np.where(np.arange(40) < 20, 26.0, 18.0) + 0 * x
    x, y = (np.where(rods[:, None], width * f(along + 0 * x), axis) for f, axis in ((np.cos, x), (np.sin, y)))
    turn = random.uniform(0, 7, (count, 1))
    middle = random.uniform(60, SIDE - 60, (count, 2))
    turned = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=2)
    return np.rint(turned + middle[:, None]).astype(int)


def write(path: Path, count: int, per_image: int) -> int:
    """A document as executors write it (`json.dump`); the number of its images."""
    random = np.random.default_rng(0)
    images = -(-count // per_image)
    with path.open("w") as stream:
        stream.write('{"model": "https://host/executor.git#abc", "format_version": "0.2", "segmentation_data": [')
        for number in range(images):
            stream.write(", [" if number else "[")
            for begin in range(number * per_image, min((number + 1) * per_image, count), 1000):
                end = min(begin + 1000, (number + 1) * per_image, count)
                found = [
                    {"label": "Cell", "contour_coordinates": ring, "type": "Polygon"}
                    for ring in polygons(end - begin, random).tolist()
                ]
                stream.write((", " if begin > number * per_image else "") + json.dumps(found)[1:-1])
            stream.write("]")
        stream.write("]}")
    return images


def write_large(path: Path, size: int, per_image: int) -> int:
    """A document of at least `size` bytes: ten images again and again; the number of its images."""
    random = np.random.default_rng(0)
    images = [
        json.dumps([{"label": "Cell", "contour_coordinates": ring, "type": "Polygon"} for ring in rings.tolist()])
        for rings in (polygons(per_image, random) for _ in range(10))
    ]
    count = 0
    with path.open("w") as stream:
        stream.write('{"model": "https://host/executor.git#abc", "format_version": "0.2", "segmentation_data": [')
        while stream.tell() < size:
            stream.write((", " if count else "") + ", ".join(images))
            count += len(images)
        stream.write("]}")
    return count


def blank_images(folder: Path, count: int) -> Path:
    """Black images; all are links to one file."""
    import cv2

    folder.mkdir()
    first = folder / "0000000.png"
    cv2.imwrite(str(first), np.zeros((SIDE, SIDE), np.uint8))
    for number in range(1, count):
        os.link(first, folder / f"{number:07d}.png")
    return folder


def measure(code: str, *arguments: str | Path) -> tuple[float, int]:
    """Seconds and peak memory (MiB) of a process that runs `code`."""
    seconds, _, peak = measure_all(code, *arguments)
    return seconds, peak


def measure_all(code: str, *arguments: str | Path) -> tuple[float, float, int]:
    """Seconds, seconds of processor time and peak memory (MiB) of a process that runs `code`."""
    import time

    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code + END, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    good = child.returncode == 0
    return (seconds if good else float("nan")), usage.ru_utime + usage.ru_stime, usage.ru_maxrss // 1024


def contest(work: Path, count: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Median seconds of each contender on one size."""
    document = work / f"{count}.json"
    images = blank_images(work / f"images{count}", write(document, count, 1000))
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    memory = dict.fromkeys(CONTENDERS, 0)
    for _ in range(rounds):
        for name, code in CONTENDERS.items():
            seconds, peak = measure(code, document, images)
            times[name].append(seconds)
            memory[name] = max(memory[name], peak)
    typed = float(np.median(times["msgspec typed"]))
    for name, taken in times.items():
        yield {
            "polygons": count,
            "MB": round(document.stat().st_size / 1e6, 1),
            "reader": name,
            "s": round(float(np.median(taken)), 3),
            "of typed": round(float(np.median(taken)) / typed, 2),
            "peak MiB": memory[name],
        }


def limited(work: Path, count: int, per_image: int) -> dict[str, Any]:
    """`validate` under a limit of address space: 400 MB and four times the largest image's share."""
    document = work / f"{count}-{per_image}.json"
    number = write(document, count, per_image)
    images = blank_images(work / f"images{count}-{per_image}", number)
    share = document.stat().st_size / 1e6 * per_image / count
    limit = int(400 + 4 * share)
    seconds, peak = measure(LIMITED + VALIDATE, str(limit), document, images)
    loaded = measure(CONTENDERS["segserve load"], document)[1]
    size = document.stat().st_size / 1e6
    result = {"MB": round(size), "images": number, "limit MB": limit, "validate s": round(seconds, 2), "peak MiB": peak}
    document.unlink()
    return {**result, "load peak MiB": loaded, "load of file": round(loaded * 1.048576 / size, 2)}


def gigabytes(work: Path, size: float, per_image: int = 1000) -> dict[str, Any]:
    """`validate` of one large document under a limit of address space, and the raw read beside it."""
    document = work / "large.json"
    number = write_large(document, int(size * 1e9), per_image)
    images = blank_images(work / "images", number)
    length = document.stat().st_size
    limit = int(400 + 4 * length / 1e6 / number)
    read = measure("import sys\nwith open(sys.argv[1], 'rb') as f:\n    while f.read(1 << 24): pass", document)[0]
    seconds, processor, peak = measure_all(LIMITED + VALIDATE, str(limit), document, images)
    document.unlink()
    return {
        "GB": round(length / 1e9, 2),
        "images": number,
        "polygons": number * per_image,
        "limit MB": limit,
        "read s": round(read, 1),
        "validate s": round(seconds, 1),
        "of which processor s": round(processor, 1),
        "peak MiB": peak,
    }


def main() -> int:
    """Print tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary folder)")
    parser.add_argument("--gb", type=float, help="one document of so many GB, and nothing else")
    arguments = parser.parse_args()
    print("load average", os.getloadavg(), "cores", os.cpu_count())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        work = Path(name)
        if arguments.gb:
            table([gigabytes(work, arguments.gb)])
            print("load average", os.getloadavg())
            return 0
        for size in arguments.sizes:
            table(list(contest(work, size, arguments.rounds if size < 1_000_000 else 1)))
            if size <= 100_000:
                found = subprocess.run([sys.executable, "-c", PAIRS, work / f"{size}.json"], stdout=subprocess.PIPE)
                table([{"polygons": size, **json.loads(found.stdout)}])
        largest = max(arguments.sizes)
        table([limited(work, largest, 1000), limited(work, largest, largest)])
    print("load average", os.getloadavg())
    return 0


def table(rows: list[dict[str, Any]]) -> None:
    """Rows as a Markdown table."""
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
