"""The polygon format of `output.json`: text ⇄ flat arrays, geometry, rules. No I/O of its own.

decode(text)  → Document (format 0.2, or 0.1 upgraded) or Info; OutputInvalid with every mistake and its JSON path
encode(doc)   → bytes (format 0.2)
check(doc, shapes) → findings about rings, images, coordinates
read(text, make_sink, collector) → the same in batches, with a sink of your own

A text is `bytes`, or a seekable binary stream that is read in windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, TypeVar

from segserve.errors import OutputInvalid
from segserve.findings import Finding, errors_in
from segserve.format import v0_1, v0_2
from segserve.format.catalogue import RULES, Collector, Rule
from segserve.format.document import Builder, Document, Info, Sink, Summary
from segserve.format.feed import WINDOW, Feed
from segserve.format.reader import Header, Reader, Stop
from segserve.format.rules import Checker, check
from segserve.format.v0_2 import encode_chunks

__all__ = [
    "RULES",
    "Checker",
    "Collector",
    "Document",
    "Info",
    "Rule",
    "Summary",
    "check",
    "decode",
    "encode",
    "encode_chunks",
    "examine",
    "invalid",
    "read",
]

Text = bytes | BinaryIO
_Sink = TypeVar("_Sink", bound=Sink)
INFO_TYPE = "info"


def decode(text: Text, *, strict: bool = False) -> Document | Info:
    """Read a document of any version, or what an `info` entry point wrote.

    `strict` also refuses what a run forgives and repairs (`flat-point`). Mild findings are in `Document.notes`. Of a
    stream only a window is in memory, beside the arrays: together less than 2.5 times the size of the text.

    Raises:
        OutputInvalid: with a finding for every mistake (at most 100 per rule, then a count).
    """
    collector = Collector(strict=strict)
    found, builder = read(text, Builder, collector)
    return _document(found, builder, collector)


def encode(document: Document) -> bytes:
    """The document as format 0.2."""
    return b"".join(encode_chunks(document))


def examine(text: Text, *, strict: bool = True) -> tuple[Document | Info | None, list[Finding]]:
    """Read slowly and say everything that is wrong. The document is None when an error was found."""
    collector, builder = Collector(strict=strict), Builder()
    found = _read_slowly(Feed(text), builder, collector)
    if found is None or collector.has_errors:
        return None, collector.findings()
    return _document(found, builder, collector), collector.findings()


def read(
    text: Text, make_sink: Callable[[], _Sink], collector: Collector, *, window: int = WINDOW
) -> tuple[Summary | Info | None, _Sink]:
    """Read a text in batches into a sink; what is wrong with it goes to the collector.

    The first sink is thrown away when a mistake is found, since the text is then read again by the reader that reports.
    Without a summary (None) the reading ended early.
    """
    feed, sink = Feed(text, window=window), make_sink()
    summary = v0_2.read_faultless(feed, sink)
    if summary is not None:
        return summary, sink
    feed.rewind()
    sink = make_sink()
    return _read_slowly(feed, sink, collector), sink


def _document(found: Summary | Info | None, builder: Builder, collector: Collector) -> Document | Info:
    if found is None or collector.has_errors:
        raise invalid(collector.findings())
    if isinstance(found, Info):
        return found
    notes = collector.findings()
    return builder.build(found.model, found.version, notes=notes, exact=found.exact, form=found.form)


def _read_slowly(feed: Feed, sink: Sink, collector: Collector) -> Summary | Info | None:
    reader = Reader(feed, collector, sink)
    if not reader.readable():
        return None
    found = None
    try:
        found = _read(reader)
        reader.scanner.end()
    except Stop:
        found = None
    reader.flush()
    return found


def invalid(findings: list[Finding]) -> OutputInvalid:
    """The error for a document with these findings; the first errors stand in its message."""
    errors = errors_in(findings)
    shown = "\n".join(f"  {error.place.json_path or '$'}: {error.message}" for error in errors[:3])
    more = f"\n  … {len(errors) - 3} more" if len(errors) > 3 else ""
    what = "1 mistake" if len(errors) == 1 else f"{len(errors)} mistakes"
    fix = next((error.fix for error in errors if error.fix), "")
    return OutputInvalid(
        f"output.json is not what the format allows ({what}):\n{shown}{more}",
        hint=f"The executor's code has to change. {fix}".strip(),
        findings=findings,
    )


def _read(reader: Reader) -> Summary | Info | None:
    kind = reader.scanner.kind("$")
    if kind == "an object":
        return _single(reader)
    if kind == "an array":
        return _list(reader)
    reader.scanner.wrong("$", "an object with model, format_version and segmentation_data")
    return None


def _single(reader: Reader) -> Summary | Info | None:
    header = reader.header("$")
    lists = header.keys & {"segmentation_data", "segmentation"}
    if not lists and header.texts.get("type") == INFO_TYPE:
        return _info(header, reader.collector)
    if "segmentation" in lists or (not lists and header.texts.get("format_version") == v0_1.VERSION):
        v0_1.check(header, reader.collector, "$")
        return v0_1.summary([header], reader.images, listed=False)
    return v0_2.finish(header, reader.images, reader.collector)


def _list(reader: Reader) -> Summary:
    headers: list[Header] = []
    for index in reader.scanner.elements("$"):
        path = f"$[{index}]"
        if reader.scanner.peek(path) != b"{":
            reader.scanner.wrong(path, "an object with model_version, format_version and segmentation (format 0.1)")
            continue
        header = reader.header(path)
        v0_1.check(header, reader.collector, path)
        if not headers:
            headers.append(header)
    if not headers:
        reader.collector.add("wrong-type", "An empty array is no document.", "$")
    return v0_1.summary(headers, reader.images, listed=True)


def _info(header: Header, collector: Collector) -> Info | None:
    missing = [key for key in ("name", "git_url", "git_hash") if key not in header.texts]
    for key in missing:
        collector.add("missing-key", f"The info document has no '{key}'.", "$")
    if missing:
        return None
    texts = header.texts
    extra = {**{key: texts[key] for key in sorted(header.keys & texts.keys() & {"model", "format_version"})}}
    return Info(texts["name"], texts["git_url"], texts["git_hash"], extra | header.extra())
