"""The ranked table: cells for the terminal, Markdown for a README, one HTML page without scripts."""

from __future__ import annotations

import base64
import math
from typing import Any

from segserve.bench.rows import RANKINGS, Benchmark, Row
from segserve.report.page import markdown_text, templates

RIGHT = range(2, 9)  # columns that are numbers


def header(benchmark: Benchmark) -> list[str]:
    """Names of the columns; what they are ranked by is marked."""
    names = {"ap": f"AP@{benchmark.iou:g}", "mean-ap": "mean AP", "pq": "PQ", "f1": "F1"}
    names[benchmark.rank] += " ▼"
    return ["#", "candidate", *names.values(), "objects", "seconds", "MB", "error"]


def cells(benchmark: Benchmark) -> tuple[list[str], list[list[str]]]:
    """Header and rows of texts. Without errors there is no column for them."""
    names, rows = header(benchmark), [_cells(rank, row) for rank, row in enumerate(benchmark.rows, 1)]
    if not any(row.error for row in benchmark.rows):
        names, rows = names[:-1], [row[:-1] for row in rows]
    return names, rows


def _cells(rank: int, row: Row) -> list[str]:
    scores = [_number(getattr(row, attribute), 3) for attribute, _ in RANKINGS.values()]
    objects = "" if row.error else str(row.objects)
    place = "–" if row.error else str(rank)
    return [place, row.name, *scores, objects, _number(row.seconds, 1), _number(row.memory_mb, 0), row.error]


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def markdown(benchmark: Benchmark) -> str:
    """The table and what it was made of. Names and errors are hostile: they are escaped."""
    names, rows = cells(benchmark)
    lines = [
        "# Benchmark",
        "",
        f"{benchmark.count} image(s), {benchmark.true_objects} true objects, data `{benchmark.data[:16]}`.",
        "",
        "| " + " | ".join(names) + " |",
        "|" + "|".join("---:" if column in RIGHT else "---" for column in range(len(names))) + "|",
        *("| " + " | ".join(markdown_text(cell) for cell in row) + " |" for row in rows),
        "",
        "Seconds are the executor's own, without its environment and the staging of images; MB its peak memory.",
        "",
        "## Candidates",
        "",
    ]
    for rank, row in enumerate(benchmark.rows, 1):
        values = ", ".join(f"{name}={value}" for name, value in row.parameters.items()) or "defaults"
        commit = f" at {row.commit}" if row.commit else ""
        lines.append(f"{rank}. {markdown_text(row.executor)}{commit}: {markdown_text(values)}")
    return "\n".join(lines) + "\n"


def html(benchmark: Benchmark) -> str:
    """One page that stands alone; jinja2 escapes every text."""
    names, rows = cells(benchmark)
    view: dict[str, Any] = {
        "benchmark": benchmark,
        "names": names,
        "rows": [
            {
                "cells": row,
                "entry": entry,
                "share": 0.0 if entry.error else 100 * max(0.0, getattr(entry, RANKINGS[benchmark.rank][0]) or 0.0),
                "pictures": ["data:image/jpeg;base64," + base64.b64encode(data).decode() for data in entry.thumbnails],
            }
            for row, entry in zip(rows, benchmark.rows, strict=True)
        ],
        "right": list(RIGHT),
    }
    return str(templates().get_template("bench.html.j2").render(view))
