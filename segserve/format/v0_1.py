"""Format 0.1, read and upgraded: one image per document, `model_version` for `model`, `segmentation` for its objects.

    {"model_version": str, "format_version": "0.1", "segmentation": [object, …]}       one image
    [{…}, {…}]                                                                         several images, in order

Both forms were written by public executors; the objects are those of 0.2. Early ones say `model`.
"""

from __future__ import annotations

from collections.abc import Sequence

from segserve.format.catalogue import Collector
from segserve.format.document import Summary
from segserve.format.reader import LISTED_0_1, ONE_0_1, Header

VERSION = "0.1"
_KNOWN = {"model", "model_version", "format_version", "segmentation"}


def check(header: Header, collector: Collector, path: str) -> None:
    """Report what the header of one 0.1 document lacks or has too much."""
    for key in ("format_version", "segmentation"):
        if key not in header.keys:
            collector.add("missing-key", f"The document has no '{key}'.", path)
    if not header.keys & {"model", "model_version"}:
        collector.add("missing-key", "The document has neither 'model_version' nor 'model'.", path)
    if header.texts.get("format_version", VERSION) != VERSION:
        version = header.texts["format_version"][:40]
        collector.add("wrong-version", f"A document with 'segmentation' is 0.1, not '{version}'.", path)
    if "segmentation_data" in header.keys:
        collector.add("wrong-version", "'segmentation_data' is 0.2, the document around it is 0.1.", path)
    for key in sorted(header.keys - _KNOWN):
        collector.add("unknown-key", f"Format 0.1 has no '{key[:40]}'; it is ignored.", path)


def summary(headers: Sequence[Header], images: int, *, listed: bool) -> Summary:
    """What one 0.1 text (`listed`: a list of them) says around its objects."""
    first = headers[0].texts if headers else {}
    model = first.get("model_version") or first.get("model", "")
    return Summary(model, VERSION, images, exact=False, form=LISTED_0_1 if listed else ONE_0_1)
