"""The report for people: one HTML page without scripts that stands alone, and a short Markdown summary.

File names, labels, parameters and log texts are hostile: HTML by jinja2's autoescape, Markdown by `markdown_text`.
"""

from __future__ import annotations

import base64
import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from segserve.findings import Finding, Severity
from segserve.format import RULES, Document
from segserve.format.document import Floats
from segserve.model import StagedImage
from segserve.report.measures import Measures
from segserve.report.overlays import Overlay
from segserve.report.tables import CONVENTIONS

ROWS = 500  # images in the page's table; objects.csv has all
EXAMPLES = 5  # findings shown per rule
BINS = 36
TAILS = (0.005, 0.995)  # quantiles of the areas between which the histogram's axis runs
WIDE = 50.0  # areas that span more than this factor are shown on a logarithmic axis
_LABELS = {"executor": "Executor", "repository": "Repository", "commit": "Commit", "subdir": "Subdirectory"}
_ABOUT = {"title": "Title", "licence": "Licence"}


@dataclass(frozen=True)
class Row:
    """One image in the table."""

    number: int
    file: str
    axes: str
    objects: int
    median: float | None
    share: float  # of the fullest image, in per cent
    overlay: str  # relative link, or ""


@dataclass(frozen=True)
class Group:
    """The findings of one rule."""

    rule: str
    severity: str
    summary: str
    count: int
    examples: Sequence[Finding]


@dataclass(frozen=True)
class Histogram:
    """An SVG histogram: bars as (x, y, width, height, title), ticks as (x, text), in the units of its view box."""

    bars: Sequence[tuple[float, float, float, float, str]]
    ticks: Sequence[tuple[float, str]]
    middle: float  # x of the median
    logarithmic: bool
    top: int

    WIDTH = 720
    HEIGHT = 150


@dataclass(frozen=True)
class View:
    """All that the templates show."""

    document: Document
    images: Sequence[StagedImage]
    measures: Measures
    overlays: Sequence[Overlay | None]
    findings: Sequence[Finding]
    facts: Mapping[str, Any]

    def fact(self, name: str) -> str:
        """A text of the facts, or ""."""
        return str(self.facts.get(name) or "")

    def pairs(self, name: str) -> list[tuple[str, str]]:
        """A mapping of the facts, as texts; a plain text becomes one nameless pair."""
        value = self.facts.get(name) or {}
        if not isinstance(value, Mapping):
            return [("", str(value))]
        return [(str(key), str(part)) for key, part in value.items() if part not in (None, "")]

    @property
    def title(self) -> str:
        """The executor's name and entry point."""
        return self.fact("executor") or "Segmentation"

    @property
    def repository_link(self) -> str:
        """The repository's URL if a browser may follow it."""
        url = self.fact("repository")
        return url if url.startswith("https://") else ""

    @property
    def mlflow_link(self) -> str:
        """The URL of the MLflow run if a browser may follow it."""
        url = self.fact("mlflow_url")
        return url if url.startswith(("https://", "http://")) else ""

    @property
    def warnings(self) -> list[str]:
        """Warnings of the run."""
        return [str(warning) for warning in self.facts.get("warnings") or ()]

    @cached_property
    def counts(self) -> list[int]:
        """Objects per image."""
        return [int(count) for count in self.document.counts()]

    @property
    def objects(self) -> int:
        """Objects in all."""
        return len(self.document)

    @property
    def seconds(self) -> list[tuple[str, float]]:
        """Steps and what they took."""
        return [(str(step), float(value)) for step, value in (self.facts.get("seconds") or {}).items()]

    @cached_property
    def median_area(self) -> float | None:
        """Median area in pixels of all objects."""
        return float(np.median(self.measures.areas)) if self.objects else None

    @property
    def median_area_um2(self) -> float | None:
        """The same in µm², when all images have one pixel size."""
        sizes = {image.pixel_size_um for image in self.images}
        size = next(iter(sizes)) if len(sizes) == 1 else None
        return None if size is None or self.median_area is None else self.median_area * size[0] * size[1]

    @cached_property
    def labels(self) -> list[tuple[str, int]]:
        """Labels by frequency."""
        return Counter(self.document.labels).most_common(12)

    @cached_property
    def rows(self) -> list[Row]:
        """The table's rows, at most `ROWS`."""
        starts, most = self.document.starts(), max(self.counts, default=0) or 1
        rows = []
        for index, image in enumerate(self.images[:ROWS]):
            areas = self.measures.areas[starts[index] : starts[index + 1]]
            median = float(np.median(areas)) if areas.size else None
            share = 100 * self.counts[index] / most
            rows.append(Row(index + 1, image.source, axes(image), self.counts[index], median, share, self._link(index)))
        return rows

    def _link(self, index: int) -> str:
        overlay = self.overlays[index] if index < len(self.overlays) else None
        return f"../overlays/{overlay.path.name}" if overlay else ""

    @cached_property
    def gallery(self) -> list[dict[str, Any]]:
        """The overlays with a thumbnail."""
        return [
            {
                "href": self._link(index),
                "source": "data:image/jpeg;base64," + base64.b64encode(overlay.thumbnail).decode(),
                "file": self.images[index].source,
                "axes": axes(self.images[index]),
                "objects": self.counts[index],
            }
            for index, overlay in enumerate(self.overlays)
            if overlay is not None and overlay.thumbnail
        ]

    @cached_property
    def groups(self) -> list[Group]:
        """Findings by rule, worst first."""
        by_rule: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_rule.setdefault(finding.rule, []).append(finding)
        order = list(Severity)
        groups = [
            Group(
                rule,
                found[0].severity.value,
                RULES[rule].summary if rule in RULES else "",
                total(found),
                found[:EXAMPLES],
            )
            for rule, found in by_rule.items()
        ]
        return sorted(groups, key=lambda group: order.index(Severity(group.severity)))

    @cached_property
    def histogram(self) -> Histogram | None:
        """Areas of all objects."""
        areas = self.measures.areas[self.measures.areas > 0]
        return histogram(areas) if areas.size > 1 else None

    @property
    def conventions(self) -> Mapping[str, str]:
        """What the numbers mean."""
        return CONVENTIONS


def total(found: Sequence[Finding]) -> int:
    """How many findings of one rule there were, the merely counted ones included."""
    counted = re.search(r"\((\d+) in all\)\.$", found[-1].message)
    return int(counted.group(1)) if counted else len(found)


def axes(image: StagedImage) -> str:
    """`T 3 · Z 7`: what one file's images differ in, or ""."""
    named = (("series", image.series), ("T", image.t), ("Z", image.z))
    return " · ".join(f"{name} {value}" for name, value in named if value is not None)


def histogram(areas: Floats) -> Histogram:
    """Bars of `areas` (positive) with the tails in the outer bars, logarithmic when they span more than `WIDE`."""
    low, high = (float(value) for value in np.quantile(areas, TAILS))
    areas = np.clip(areas, low, high)  # a few specks or one huge object must not squeeze all others into one bar
    logarithmic = high / low > WIDE
    values = np.log10(areas) if logarithmic else areas
    begin, end = float(values.min()), float(values.max())
    if end - begin < 1e-6 * max(abs(end), 1.0):  # objects of one size, but for the rounding of their areas
        begin, end = begin - 0.5, end + 0.5
    counts, edges = np.histogram(values, bins=BINS, range=(begin, end))
    top = int(counts.max()) or 1
    step = Histogram.WIDTH / BINS
    ends = 10**edges if logarithmic else edges
    bars = []
    for index, count in enumerate(counts.tolist()):
        height = Histogram.HEIGHT * count / top
        title = f"{count} objects, {short(ends[index])} to {short(ends[index + 1])} px"
        bars.append((index * step + 1, Histogram.HEIGHT - height, step - 2, height, title))

    def place(value: float) -> float:
        return Histogram.WIDTH * ((np.log10(value) if logarithmic else value) - begin) / (end - begin)

    ticks = [(place(value), short(value)) for value in _ticks(low, high, logarithmic=logarithmic)]
    return Histogram(bars, ticks, place(float(np.median(areas))), logarithmic, top)


def _ticks(low: float, high: float, *, logarithmic: bool) -> list[float]:
    if logarithmic:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        factors = (1, 3) if len(decades) <= 4 else (1,)
        return [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
    raw = max(high - low, 1e-9) / 6
    size = 10.0 ** np.floor(np.log10(raw))
    step = next(size * f for f in (1, 2, 5, 10) if size * f >= raw)
    return [
        float(value) for value in np.arange(np.ceil(low / step) * step, high + step / 2, step) if low <= value <= high
    ]


def short(value: float | None) -> str:
    """A number for people: `12,345`, `87.5`, `0.12`, `–` for nothing."""
    if value is None:
        return "–"
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def markdown_text(value: object) -> str:
    """A text on one line that Markdown (and HTML within it) takes literally, and that still reads well as it is."""
    line = re.sub(r"[\x00-\x1f\x7f\u2028\u2029]+", " ", str(value))
    line = re.sub(r"([\\`*_\[\]#|~])", r"\\\1", html.escape(line, quote=False))
    line = re.sub(r"^(\s*)([-+>])", r"\1\\\2", line)
    return re.sub(r"^(\s*\d+)([.)]\s)", r"\1\\\2", line)  # "1. …" would begin a list; a digit itself cannot be escaped


def templates() -> Any:
    """The jinja2 environment of all pages: everything is escaped, nothing may be undefined."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).resolve().parent.parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(short=short, duration=duration)
    return environment


def write(folder: Path, view: View) -> None:
    """Write index.html and summary.md into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    page = templates().get_template("report.html.j2").render(view=view, labels=_LABELS | _ABOUT, rows_limit=ROWS)
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / "summary.md").write_text(summary(view), encoding="utf-8")


def summary(view: View) -> str:
    """The Markdown summary: what ran, what came out, what to look at."""
    text = markdown_text
    lines = [f"# {text(view.title)}", "", f"**{view.objects:,} objects in {len(view.counts):,} images**", ""]
    facts = [
        *((label, view.fact(key)) for key, label in (_LABELS | _ABOUT).items() if key != "executor"),
        ("Entry point", view.fact("entry")),
        *((f"Parameter {name}", value) for name, value in view.pairs("parameters")),
        *((f"Environment {name}".rstrip(), value) for name, value in view.pairs("environment")),
        ("Median area", f"{short(view.median_area)} px"),
        *((f"Time for {step}", duration(value)) for step, value in view.seconds),
    ]
    lines += ["| | |", "|---|---|", *(f"| {text(label)} | {text(value)} |" for label, value in facts if value), ""]
    if view.warnings or view.groups:
        lines += ["## Worth a look", ""]
        lines += [f"- {text(warning)}" for warning in view.warnings]
        lines += [
            f"- {text(f'{group.count} × {group.rule} ({group.severity}): {group.summary}')}" for group in view.groups
        ]
        lines += [""]
    if view.rows:
        lines += ["## Images", "", "| File | | Objects | Median area (px) |", "|---|---|---:|---:|"]
        lines += [
            f"| {text(row.file)} | {text(row.axes)} | {row.objects} | {text(short(row.median))} |" for row in view.rows
        ]
        if len(view.images) > len(view.rows):
            lines += ["", f"The first {ROWS} of {len(view.images)} images; objects.csv has all."]
        lines += [""]
    if view.fact("command"):
        lines += ["## Again", "", *(f"    {line}" for line in view.fact("command").splitlines()), ""]
    if view.fact("citation"):
        lines += ["## Cite", "", text(view.fact("citation")), ""]
    return "\n".join(lines)
