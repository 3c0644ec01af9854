"""What came out of each candidate, and who is first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# What can be ranked by: name → (attribute of a row, what it is called in tables).
RANKINGS = {
    "ap": ("ap", "AP"),
    "mean-ap": ("mean_ap", "mean AP"),
    "pq": ("pq", "PQ"),
    "f1": ("f1", "F1"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate. Scores lie in 0 … 1, pooled over all images at the benchmark's IoU, and are NaN where it failed.

    `mean_ap` is the mean of AP over IoU 0.5 … 0.95. `seconds` is what the executor ran (its environment and the
    staging of images not counted), `memory_mb` its greatest resident set. `error` is empty when it succeeded.
    """

    number: int  # in the order in which they were given, from 1
    name: str
    executor: str
    parameters: Mapping[str, str]
    commit: str = ""
    ap: float = math.nan
    mean_ap: float = math.nan
    pq: float = math.nan
    f1: float = math.nan
    precision: float = math.nan
    recall: float = math.nan
    objects: int = 0
    seconds: float = math.nan
    memory_mb: float = math.nan
    inputs_digest: str = ""
    run_id: str = ""
    run_url: str = ""
    result: str = ""
    error: str = ""
    hint: str = ""
    thumbnails: tuple[bytes, ...] = field(default=(), repr=False)  # JPEG

    @property
    def metrics(self) -> dict[str, float]:
        """The scores, for MLflow; those that are not defined are left out."""
        names = ("ap", "mean_ap", "pq", "f1", "precision", "recall")
        return {name: getattr(self, name) for name in names if not math.isnan(getattr(self, name))}

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not defined are None."""
        document = asdict(self)
        del document["thumbnails"]
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in document.items()
        }


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All candidates, the best first. `data` is a SHA-256 over what the executors were given and the truth."""

    rows: tuple[Row, ...]
    images: str
    truth: str
    count: int
    true_objects: int
    data: str
    iou: float
    rank: str
    folder: Path
    run_id: str
    run_url: str
    notes: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """At least one candidate gave a result."""
        return any(not row.error for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints and `bench.json` holds."""
        return {
            "format": "segserve-bench",
            "version": 1,
            "images": self.images,
            "truth": self.truth,
            "image_count": self.count,
            "true_objects": self.true_objects,
            "data": self.data,
            "iou": self.iou,
            "ranked_by": self.rank,
            "result": str(self.folder),
            "mlflow": self.run_url,
            "notes": list(self.notes),
            "candidates": [{"rank": rank, **row.as_dict()} for rank, row in enumerate(self.rows, 1)],
        }


def ranked(rows: Sequence[Row], by: str) -> tuple[Row, ...]:
    """The best first; equal ones by mean AP, then by time; those that failed last, in the order that was given."""
    attribute = RANKINGS[by][0]

    def key(row: Row) -> tuple[bool, float, float, float, int]:
        def down(value: float) -> float:
            return math.inf if math.isnan(value) else -value

        if row.error:
            return True, 0.0, 0.0, 0.0, row.number
        return False, down(getattr(row, attribute)), down(row.mean_ap), row.seconds, row.number

    return tuple(sorted(rows, key=key))
