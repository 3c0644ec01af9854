"""The polygon format of `output.json`: text ⇄ flat arrays, geometry, rules. Bytes in, values out; no I/O.

decode(data)  → Document (format 0.2, or 0.1 upgraded) or Info; OutputInvalid with every mistake and its JSON path
encode(doc)   → bytes (format 0.2)
check(doc, shapes) → findings about rings, images, coordinates
"""

from __future__ import annotations

from segserve.errors import OutputInvalid
from segserve.findings import Finding, errors_in
from segserve.format import v0_1, v0_2
from segserve.format.catalogue import RULES, Collector, Rule
from segserve.format.document import Document, Info
from segserve.format.reader import Header, Reader, Stop, readable
from segserve.format.rules import check
from segserve.format.v0_2 import encode_chunks

__all__ = [
    "RULES",
    "Collector",
    "Document",
    "Info",
    "Rule",
    "check",
    "decode",
    "encode",
    "encode_chunks",
    "examine",
    "invalid",
]

INFO_TYPE = "info"


def decode(data: bytes, *, strict: bool = False) -> Document | Info:
    """Read a document of any version, or what an `info` entry point wrote.

    `strict` also refuses what a run forgives and repairs (`flat-point`). Mild findings are in `Document.notes`.

    Raises:
        OutputInvalid: with a finding for every mistake (at most 100 per rule, then a count).
    """
    document = v0_2.decode_faultless(data)
    if document is not None:
        return document
    read, findings = examine(data, strict=strict)
    if read is None:
        raise invalid(findings)
    return read


def encode(document: Document) -> bytes:
    """The document as format 0.2."""
    return b"".join(encode_chunks(document))


def examine(data: bytes, *, strict: bool = True) -> tuple[Document | Info | None, list[Finding]]:
    """Read slowly and say everything that is wrong. The document is None when an error was found."""
    collector = Collector(strict=strict)
    read = None
    if readable(data, collector):
        reader = Reader(data, collector)
        try:
            read = _read(reader)
            reader.scanner.end()
        except Stop:
            read = None
    return (None if collector.has_errors else read), collector.findings()


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


def _read(reader: Reader) -> Document | Info | None:
    kind = reader.scanner.kind("$")
    if kind == "an object":
        return _document(reader)
    if kind == "an array":
        return _list(reader)
    reader.scanner.wrong("$", "an object with model, format_version and segmentation_data")
    return None


def _document(reader: Reader) -> Document | Info | None:
    header = reader.header("$")
    lists = header.keys & {"segmentation_data", "segmentation"}
    if not lists and header.texts.get("type") == INFO_TYPE:
        return _info(header, reader.collector)
    if "segmentation" in lists or (not lists and header.texts.get("format_version") == v0_1.VERSION):
        v0_1.check(header, reader.collector, "$")
        return v0_1.upgrade([header], reader.builder, reader.collector, listed=False)
    return v0_2.finish(header, reader.builder, reader.collector)


def _list(reader: Reader) -> Document:
    headers: list[Header] = []
    for index in reader.scanner.elements("$"):
        path = f"$[{index}]"
        if reader.scanner.peek(path) != b"{":
            reader.scanner.wrong(path, "an object with model_version, format_version and segmentation (format 0.1)")
            continue
        header = reader.header(path)
        v0_1.check(header, reader.collector, path)
        headers.append(header)
    if not headers:
        reader.collector.add("wrong-type", "An empty array is no document.", "$")
    return v0_1.upgrade(headers, reader.builder, reader.collector, listed=True)


def _info(header: Header, collector: Collector) -> Info | None:
    for key in ("name", "git_url", "git_hash"):
        if key not in header.texts:
            collector.add("missing-key", f"The info document has no '{key}'.", "$")
    if collector.has_errors:
        return None
    texts = header.texts
    extra = {**{key: texts[key] for key in sorted(header.keys & {"model", "format_version"})}, **header.extra()}
    return Info(texts["name"], texts["git_url"], texts["git_hash"], extra)
