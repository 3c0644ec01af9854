"""Hostile and mutated documents: never a crash or a hang, and never a verdict that a plain judge does not share.

The text is read in windows of a few bytes here, so that every token of it is cut somewhere; `test_format.py` reads the
same kind of documents in one window.
"""

from __future__ import annotations

import io
import json
import random
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve.findings import Finding
from segserve.format import Collector, Document, Info, examine, read, reader, rings, scanner
from segserve.format.document import Builder
from segserve.format.geometry import Booleans
from segserve.format.groups import Groups
from segserve.format.rules import Checker
from tests.test_format import allowed, doc, mutate, obj, same, text


@pytest.fixture
def short_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow reader, too, sees only what it must."""
    monkeypatch.setattr(scanner, "AHEAD", 16)
    monkeypatch.setattr(reader, "OBJECT_AHEAD", 200)
    monkeypatch.setattr(reader, "_BATCH", 3)


def windowed(data: bytes, window: int) -> tuple[Document | Info | None, Collector]:
    collector = Collector()
    found, builder = read(io.BytesIO(data), Builder, collector, window=window)
    if found is None or collector.has_errors:
        return None, collector
    if isinstance(found, Info):
        return found, collector
    return builder.build(found.model, found.version, exact=found.exact, form=found.form), collector


def brief(findings: list[Finding]) -> list[tuple[str, str, str]]:
    """Without the encoding of the whole text, which is found when it is read, not when it is understood."""
    found = [(finding.rule, finding.place.json_path, finding.message) for finding in findings]
    return [one for one in found if one[:2] != ("encoding", "$")]


SEEDS = [
    text(doc([obj(score=0.5), obj([[0.5, 1], [2, 3], [4, 5e-1]])], [], [obj(label="é\n"), obj([])])),
    json.dumps(doc([obj([[1, 1]])] * 3, [obj(label="}")], [], []), separators=(",", ":")).encode(),
    json.dumps(doc([obj(label='a"}],[{\\'), obj(extra={"a": ["}", 1e5]})], [obj()]), indent=1).encode(),
    text({"segmentation_data": [[obj()], [obj(), obj()]], "format_version": "0.2", "model": "é" * 20}),
    text([{"model_version": "m", "format_version": "0.1", "segmentation": [obj()]}] * 2),
    text({"name": "n", "git_url": "u", "git_hash": "h", "type": "info", "gpu": [True, {"x": None}]}),
]


@pytest.mark.usefixtures("short_sight")
@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_where_a_window_ends_changes_nothing(seed: int) -> None:
    data = SEEDS[seed]
    whole, findings = examine(data)
    for window in range(1, 90):
        part, collector = windowed(data, window)
        assert brief(collector.findings()) == brief(findings)
        assert type(part) is type(whole)
        if isinstance(part, Document) and isinstance(whole, Document):
            assert same(part, whole)
            assert [part.json_path(n) for n in range(len(part))] == [whole.json_path(n) for n in range(len(whole))]


@pytest.mark.usefixtures("short_sight")
def test_12_000_mutated_documents_in_small_windows() -> None:
    """Verdicts equal those of a judge made of `json` and plain Python; findings equal those on the whole text."""
    chance = random.Random(5)
    accepted = refused = 0
    for number in range(12_000):
        data = mutate(chance.choice(SEEDS), chance)
        document, collector = windowed(data, chance.choice((7, 31, 64, 150, 1000)))
        if document is None:
            assert collector.has_errors
            assert not allowed(data), data
            refused += 1
        elif isinstance(document, Document) and document.version == "0.2":
            assert allowed(data), data
            accepted += 1
        if number % 8 == 0:
            whole, findings = examine(data)
            assert type(whole) is type(document)
            if document is None:
                assert brief(collector.findings()) == brief(findings)
    assert accepted > 500
    assert refused > 4000


class Gathered:
    """Whole images, as `validate` takes them, and what the rules say about them."""

    def __init__(self) -> None:
        self.collector = Collector()
        self.checker = Checker(self.collector, [(20, 30)] * 4, pairs=True)
        self.parts: list[Document] = []
        self.groups = Groups(self.take)
        self.add = self.groups.add

    def take(self, part: Document, sound: Booleans) -> None:
        self.parts.append(part)
        self.checker.add(part, sound)


@pytest.mark.usefixtures("short_sight")
def test_mutated_documents_never_break_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve.format.groups.ENOUGH", 4)
    chance = random.Random(6)
    parts = 0
    for _ in range(1500):
        sink, _ = run_rules(mutate(chance.choice(SEEDS), chance), 64)
        parts += len(sink.parts)
    assert parts > 1500


def run_rules(data: bytes, window: int) -> tuple[Gathered, Collector]:
    collector = Collector()
    _, sink = read(io.BytesIO(data), Gathered, collector, window=window)
    sink.groups.finish()
    return sink, collector


points = st.lists(st.tuples(st.integers(-3, 33), st.integers(-3, 23)), max_size=7)


@given(st.lists(st.lists(points, max_size=6), max_size=5))
@settings(max_examples=80, deadline=None)
def test_rules_say_the_same_about_parts_and_about_the_whole(images: list[list[Any]]) -> None:
    data = text(doc(*[[obj(ring) for ring in image] for image in images]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segserve.format.groups.ENOUGH", 4)
        in_parts, _ = run_rules(data, 80)
    at_once, _ = run_rules(data, 1 << 20)
    for sink in (in_parts, at_once):
        sink.checker.finish(len(images))
    assert sorted(brief(in_parts.collector.findings())) == sorted(brief(at_once.collector.findings()))
    assert sum(part.n_images for part in in_parts.parts) == len(images)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("brackets", b"[" * 3_000_000),
        ("data of brackets", b'{"segmentation_data":' + b"[" * 3_000_000),
        ("empty images", b'{"model":"m","format_version":"0.2","segmentation_data":[' + b"[]," * 1_000_000 + b"[]]}"),
        ("commas", b'{"segmentation_data":[' + b"," * 3_000_000),
        ("blanks", b" " * 8_000_000),
        ("keys", b"{" + b",".join(b'"%d":1' % n for n in range(400_000)) + b"}"),
        ("one string", b'{"model":"' + b"x" * 8_000_000),
        ("escapes", b'{"model":"' + b"\\u0041" * 1_000_000),
        ("backslashes", b'{"model":"' + b"\\" * 3_000_001),
        ("quotes", b'"' * 3_000_000),
        ("braces in a label", text(doc([obj(label="}" * 3_000_000)], [obj()]))),
        ("digits", text(doc([obj([["?", 1]])])).replace(b'"?"', b"9" * 3_000_000)),
        ("flat ring", text(doc([obj("?")])).replace(b'"?"', b"[" + b"1," * 200_000 + b"1]")),
        ("points", text(doc([obj("?")])).replace(b'"?"', b"[" + b"[1,2]," * 1_100_000 + b"[1,2]]")),
        ("bad points", text(doc([obj("?")])).replace(b'"?"', b"[" + b"[1]," * 100_000 + b"[1,2]]")),
        ("minus", b"-" * 3_000_000),
        ("not UTF-8", text(doc([obj()])) + b"\xff" * 3_000_000),
    ],
)
def test_hostile_texts_end_soon(name: str, data: bytes) -> None:
    started = time.process_time()
    document, collector = windowed(data, 1 << 18)
    assert time.process_time() - started < 12
    if name in ("empty images", "braces in a label"):
        assert isinstance(document, Document)
        assert collector.findings() == []
    else:
        assert document is None
        assert len(collector.findings()) < 1000


def comb(teeth: int) -> Any:
    """A valid ring of slanted teeth: each one's box meets all others', which is what sweeps over boxes suffer from."""
    left = np.arange(teeth) * 4.0
    zero, high = np.zeros(teeth), np.full(teeth, 1e5)
    tooth = np.stack([[left, zero], [left + 1e5, high], [left + 1e5 + 1, high], [left + 1, zero]])
    return np.concatenate([tooth.transpose(2, 0, 1).reshape(-1, 2), [[4.0 * teeth, -1.0], [0.0, -1.0]]])


def test_hostile_rings_end_soon() -> None:
    random_points = np.random.default_rng(1)
    there = random_points.integers(0, 9999, (2000, 2)).astype(float)
    monsters = [
        (comb(900), rings.SIMPLE),  # few enough points for a real look
        (comb(50_000), rings.CROSSED),
        (random_points.integers(0, 9999, (200_000, 2)).astype(float), rings.CROSSED),
        (np.cumsum(random_points.integers(-3, 4, (50_000, 2)), axis=0).astype(float), rings.CROSSED),
        (np.concatenate([there, there[::-1]]), rings.CROSSED),
        (np.zeros((1 << 20, 2)), rings.FEW),
    ]
    for ring, kind in monsters:
        started = time.process_time()
        assert rings.classify(ring, np.array([0, len(ring)])).tolist() == [kind]
        assert time.process_time() - started < 8


def test_many_objects_in_one_place_end_soon() -> None:
    square = [[0, 0], [9, 0], [9, 9], [0, 9]]
    crowd = [obj([[x, y + n % 7 / 10] for x, y in square] + [[-1 - n / 4000, 5]]) for n in range(4000)]
    started = time.process_time()
    sink, _ = run_rules(text(doc(crowd, [obj()])), 1 << 18)
    assert time.process_time() - started < 20
    messages = [finding.message for finding in sink.collector.findings() if finding.rule == "overlapping-objects"]
    assert any("not all of them were compared" in message for message in messages)
    copies = run_rules(text(doc([obj([[1, 1]] * 50_000)] * 6 + [obj([[1, 1], [2, 2]] * 20_000)] * 3)), 1 << 18)[0]
    assert copies.collector.counts["duplicate-object"] == 7
    assert time.process_time() - started < 30
