"""Format 0.2, the only thing that an executor hands back."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from segserve_sdk import contours

VERSION = "0.2"


def objects(
    labels: np.ndarray, scores: Optional[Sequence[float]] = None, label: Union[str, Sequence[str]] = "Cell"
) -> List[Dict[str, Any]]:
    """The objects of one image, ready for `write_output`.

    labels: (rows, columns) integers, 0 = background; see `contours` for what the polygons mean.
    scores: one number per label value, for label 1, 2, … ; `label`: one text for all, or one per label value.

    Raises:
        ValueError: labels is no mask, or there are fewer scores or labels than label values.
    """
    found = []
    largest = int(labels.max()) if labels.size else 0
    for what, values in (("scores", scores), ("labels", None if isinstance(label, str) else label)):
        if values is not None and len(values) < largest:
            raise ValueError(f"there are {len(values)} {what}, but the mask has label values up to {largest}")
    for value, ring in contours.polygons(labels):
        name = label if isinstance(label, str) else label[value - 1]
        item: Dict[str, Any] = {"label": name, "contour_coordinates": _numbers(ring), "type": "Polygon"}
        if scores is not None:
            item["score"] = float(scores[value - 1])
        found.append(item)
    return found


def mean_scores(labels: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(n,) for label 1, 2, … n: the mean of `probability` (rows, columns) over the label's pixels; 0 where it has none.

    Rounded to 1e-4, which is more than any method means.
    """
    count = int(labels.max()) + 1 if labels.size else 1
    total = np.bincount(labels.ravel(), probability.ravel().astype(np.float64), count)
    return (total / np.maximum(np.bincount(labels.ravel(), minlength=count), 1))[1:].round(4)


def polygon(points: Any, score: Optional[float] = None, label: str = "Cell") -> Dict[str, Any]:
    """One object whose outline is known already: `points` is anything like (n, 2), (x, y) through pixel centres.

    Raises:
        ValueError: fewer than three points, or not (n, 2).
    """
    ring = np.asarray(points, np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3:
        raise ValueError(f"an outline is (n, 2) with n of at least 3, not {ring.shape}")
    item: Dict[str, Any] = {"label": label, "contour_coordinates": _numbers(ring), "type": "Polygon"}
    return item if score is None else dict(item, score=float(score))


def classes(shape: Sequence[int], names: Sequence[str], scores: Sequence[float]) -> List[Dict[str, Any]]:
    """What a whole image shows: one object per class, along the image's edge, the best score first.

    shape: of the image, (rows, columns) or more. scores: one per name.

    Raises:
        ValueError: there are not as many scores as names.
    """
    if len(scores) != len(names):
        raise ValueError(f"there are {len(scores)} scores for {len(names)} classes")
    right, bottom = max(1, int(shape[1]) - 1), max(1, int(shape[0]) - 1)
    ring = [[0, 0], [0, bottom], [right, bottom], [right, 0]]
    best = sorted(zip(names, scores), key=lambda one: -float(one[1]))
    return [
        {"label": name, "contour_coordinates": ring, "type": "Polygon", "score": float(score)} for name, score in best
    ]


def write_output(path: Union[str, Path], model: str, per_image: Sequence[Sequence[Dict[str, Any]]]) -> None:
    """Write output.json: `per_image` has one list of objects per image, in the order of `images.paths`.

    The file appears at once. NaN and infinity are refused (ValueError): JSON has no such numbers.
    """
    document = {"model": model, "format_version": VERSION, "segmentation_data": [list(image) for image in per_image]}
    part = Path(f"{path}.part")
    with part.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, allow_nan=False)
    part.replace(path)


def write_info(path: Union[str, Path], name: str) -> None:
    """Write the document of an `info` entry point: name, repository and commit."""
    url, _, commit = provenance().partition("#")
    document = {"name": name, "git_url": url, "git_hash": commit, "type": "info"}
    Path(path).write_text(json.dumps(document), encoding="utf-8")


def provenance() -> str:
    """`<repository>#<short commit>` of the checkout in the working directory; the URL without user and password."""
    url = re.sub(r"^(\w+://)[^/@]*@", r"\1", _git("config", "--get", "remote.origin.url"))
    return f"{url}#{_git('rev-parse', '--short', 'HEAD')}"


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.decode("utf-8", "replace").strip()


def _numbers(ring: np.ndarray) -> List[List[Union[int, float]]]:
    """Whole coordinates as integers: shorter, and what other executors write."""
    whole = ring.astype(np.int64)
    return whole.tolist() if (whole == ring).all() else ring.tolist()
