"""Annotated images → a data set in three parts. Nothing is written unless everything is right."""

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from segmentor import dataset, sources
from segmentor.sources import Item, SourceError
from segmentor.sources.base import read_file
from segmentor.split import CROP, SPLITS, source_of, split

_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, check, split, write, log to MLflow."""
    options = parse(arguments)
    kind = sources.detect(options.source) if options.format == "auto" else options.format
    names = [name.strip() for name in options.classes.split(",") if name.strip()]
    counts = prepare(options.source, options.output, kind, names, options.fractions, options.seed, options.group)
    for part in SPLITS:
        print(f"{part:6} {counts[part]:5} images {counts[f'{part} objects']:7} objects")
    mlflow.log_metrics({key.replace(" ", "_"): float(value) for key, value in counts.items()})
    mlflow.log_artifacts(str(options.output), "data")


def prepare(
    source: Path,
    target: Path,
    kind: str,
    names: Sequence[str] = (),
    fractions: Sequence[float] = (0.7, 0.2, 0.1),
    seed: int = 0,
    group: str = CROP,
) -> Counter[str]:
    """Write the data set `target`, a folder that is not there yet; returns how many images and objects each part has.

    Raises:
        SourceError: everything that is wrong with the images and their annotations, one line each.
        ValueError: the images cannot be split.
    """
    if target.exists():
        raise SourceError(target, "is there already; choose another output")
    found = sources.KINDS[kind](source, names)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".prepare-") as scratch:
        read = Path(scratch) / "read"
        entries, problems = _read_all(found.items, read, found.problems)
        if problems:
            raise SourceError(source, f"{len(problems)} problem(s)\n" + "\n".join(map(str, problems[:_SHOWN])))
        parts = split(_sources(entries, group), fractions, seed)
        done = Path(scratch) / "done"
        for name, part in parts.items():
            entries[name]["split"] = part
            for suffix in ("", "annot"):
                (done / f"{part}{suffix}").mkdir(parents=True, exist_ok=True)
                (read / f"read{suffix}" / f"{name}.png").rename(done / f"{part}{suffix}" / f"{name}.png")
        document = {"classes": found.classes, "kind": kind, "seed": seed, "fractions": list(fractions)}
        dataset.write_document(done, document | {"images": dict(sorted(entries.items()))})
        shutil.move(done, target)
    counts: Counter[str] = Counter(parts.values())
    for name, part in parts.items():
        counts[f"{part} objects"] += len(entries[name]["classes"])
    return counts


def _read_all(
    items: Sequence[Item], folder: Path, problems: Sequence[SourceError]
) -> tuple[dict[str, dict[str, Any]], list[SourceError]]:
    """Copy every image and its objects into `folder`; the entries of dataset.json, and all that is wrong."""
    entries: dict[str, dict[str, Any]] = {}
    found = list(problems)
    for item in items:
        try:
            image = read_file(item.image)
            annotation = item.annotation(image.shape[:2])
        except SourceError as problem:
            found.append(problem)
            continue
        if len(annotation.classes) > dataset.MOST_OBJECTS:
            found.append(SourceError(item.image, f"has more than {dataset.MOST_OBJECTS} objects"))
            continue
        dataset.write_sample(folder, "read", item.name, image, annotation)
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
        entries[item.name] = {"classes": annotation.classes.tolist(), "sha256": digest}
    return entries, found


def _sources(entries: dict[str, dict[str, Any]], pattern: str) -> dict[str, str]:
    """Image → source by its name; images with the same pixels have the same source, whatever they are called."""
    first: dict[str, str] = {}
    for name in sorted(entries):
        own = source_of(name, pattern)
        same = first.setdefault(entries[name]["sha256"], own)
        entries[name]["source"] = own
        if same != own:
            for entry in entries.values():
                if entry.get("source") == own:
                    entry["source"] = same
            first = {digest: same if source == own else source for digest, source in first.items()}
    return {name: entry["source"] for name, entry in entries.items()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__)
    parser.add_argument("source", type=Path, help="folder with images and annotations")
    parser.add_argument("--format", default="auto", choices=["auto", *sources.KINDS])
    parser.add_argument("--classes", default="", help="names of classes 1, 2, …, with commas; default: as they are")
    parser.add_argument("--fractions", type=_fractions, default=(0.7, 0.2, 0.1), help="of train, val, test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group", default="", help="regular expression: name of an image → its source")
    parser.add_argument("--output", type=Path, default=Path("data"))
    options = parser.parse_args(arguments)
    options.group = options.group or CROP
    return options


def _fractions(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    try:
        main()
    except ValueError as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
