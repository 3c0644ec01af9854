"""Every rule of the format, one line each, and the collector that counts what breaks them.

Two severities per rule: what `validate` says, and what a run says. A run forgives what one object can get wrong without
harm to the others (public executors leave one-point contours); it never forgives what makes the document ambiguous.
The policy is explained in `docs/format.md`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from segserve.findings import Finding, Place, Severity

LIMIT = 100  # findings kept per rule; the rest is counted

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE


@dataclass(frozen=True, slots=True)
class Rule:
    """`severity` is what the specification says, `at_run` what a run makes of it, `fix` the usual remedy."""

    name: str
    severity: Severity
    at_run: Severity
    summary: str
    fix: str


_TABLE = (
    # The text
    Rule("syntax", _E, _E, "The file is not JSON.", "Write it with json.dump in one go."),
    Rule("truncated", _E, _E, "The file ends before the JSON does.", "Close the file before logging it."),
    Rule("encoding", _E, _E, "The text is not UTF-8.", "Open the file with encoding='utf-8'."),
    Rule("too-large", _E, _E, "A value beyond every sensible size.", "Write one object per contour."),
    Rule("too-deep", _E, _E, "Arrays or objects are nested too deeply.", "Remove the nested values."),
    Rule("duplicate-key", _E, _E, "An object has the same key twice.", "Write each key once."),
    # The structure
    Rule("wrong-type", _E, _E, "A value has the wrong JSON type.", "Write the type that docs/format.md names."),
    Rule("missing-key", _E, _E, "A required key is missing.", "Add the key."),
    Rule(
        "unknown-key", _N, _N, "A key that the format does not know; it is ignored.", "Remove it, or ignore this note."
    ),
    Rule("wrong-version", _E, _E, "`format_version` is not one that exists.", 'Write "format_version": "0.2".'),
    Rule("not-a-polygon", _E, _E, '`type` is not "Polygon".', 'Write "type": "Polygon".'),
    # The numbers
    Rule("bad-number", _E, _E, "Not a finite JSON number in range.", "Drop the object or compute it again."),
    Rule("bad-point", _E, _E, "A point is not a pair [x, y].", "Write contour[:, 0].tolist() for a cv2 contour."),
    Rule("flat-point", _E, _W, "One point written as [x, y] instead of [[x, y]].", "np.squeeze(contour, axis=1)."),
    # The rings
    Rule("too-few-points", _E, _W, "Fewer than three distinct points.", "Write the pixel's corner outline (--repair)."),
    Rule("zero-area", _E, _W, "The ring encloses nothing.", "Write the corner outline of its pixels (--repair)."),
    Rule("self-intersection", _E, _W, "The ring crosses itself.", "Trace the object's outline again."),
    Rule("keyhole", _N, _N, "The ring encloses a hole by running in and out along one line.", ""),
    Rule("touches-itself", _N, _N, "The ring touches or retraces itself without crossing.", ""),
    # The objects in their image
    Rule("outside-image", _E, _W, "Points lie outside the image.", "Check scale and offset of the coordinates."),
    Rule("swapped-axes", _E, _E, "x and y are swapped.", "Write [x, y] = [column, row]."),
    Rule("duplicate-object", _E, _W, "The same object occurs twice.", "Write each object once."),
    Rule("overlapping-objects", _W, _N, "Two objects of an image share ground.", "Give each pixel to one object."),
    Rule("hole-as-object", _W, _W, "A hole is given as an object.", "Use cv2.RETR_EXTERNAL, or write a keyhole ring."),
    # The document against the images
    Rule("image-count-mismatch", _E, _E, "Not one result per image.", "Write one list per image, in sorted order."),
    Rule("suspicious-emptiness", _W, _W, "No image has any object.", "Look for an error that the executor swallowed."),
    Rule("repaired", _N, _N, "`--repair` has changed this in the document that it has written.", ""),
)
RULES: dict[str, Rule] = {rule.name: rule for rule in _TABLE}


class Collector:
    """Findings in the order in which they were found; at most `limit` per rule are kept, all are counted."""

    def __init__(self, *, strict: bool = True, limit: int = LIMIT) -> None:
        self._strict = strict
        self._limit = limit
        self._found: list[Finding] = []
        self.counts: Counter[str] = Counter()
        self.mistakes = 0  # findings that are errors by the specification

    def empty(self) -> Collector:
        """Another one of the same kind that has found nothing."""
        return Collector(strict=self._strict, limit=self._limit)

    def severity(self, rule: str) -> Severity:
        """What a finding of this rule weighs here."""
        return RULES[rule].severity if self._strict else RULES[rule].at_run

    def add(self, rule: str, message: str, json_path: str = "", *, image: str = "", fix: str = "") -> None:
        """Count a finding, keep it while there is room."""
        self.counts[rule] += 1
        self.mistakes += RULES[rule].severity is Severity.ERROR
        if self.counts[rule] <= self._limit:
            place = Place(json_path=json_path, image=image)
            self._found.append(Finding(rule, self.severity(rule), message, place, fix or RULES[rule].fix))

    def add_all(self, rule: str, objects: Iterable[int], describe: Callable[[int], tuple[str, str, str]]) -> None:
        """One finding per object; `describe` gives (message, JSON path, image) and is only called for what is kept."""
        numbers = list(objects)
        room = max(self._limit - self.counts[rule], 0)
        for number in numbers[:room]:
            message, json_path, image = describe(number)
            self.add(rule, message, json_path, image=image)
        self.counts[rule] += max(len(numbers) - room, 0)

    def merge(self, other: Collector) -> None:
        """Take over what another one, of the same kind, has found."""
        for finding in other._found:
            if self.counts[finding.rule] < self._limit:
                self._found.append(finding)
            self.counts[finding.rule] += 1
            other.counts[finding.rule] -= 1
        self.counts.update(other.counts)

    @property
    def has_errors(self) -> bool:
        """Something was found that this severity does not forgive."""
        return any(self.severity(rule) is Severity.ERROR for rule, count in self.counts.items() if count)

    @property
    def unforgiven(self) -> bool:
        """Something was found that not even a run forgives."""
        return any(RULES[rule].at_run is Severity.ERROR for rule, count in self.counts.items() if count)

    def findings(self) -> list[Finding]:
        """What was kept, and one line per rule for what was only counted."""
        more = [
            Finding(rule, self.severity(rule), f"… and {count - self._limit} more of this rule ({count} in all).")
            for rule, count in self.counts.items()
            if count > self._limit
        ]
        return [*self._found, *more]
