"""Format 0.2 (and 0.1, info): strict reading with JSON paths, writing, fuzz."""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve import format as polygons
from segserve.errors import OutputInvalid
from segserve.findings import Severity
from segserve.format import RULES, Document, Info, decode, encode, examine, v0_2
from segserve.format.document import Builder
from segserve.format.feed import Feed

SQUARE = [[1, 2], [5, 2], [5, 8], [1, 8]]


def obj(ring: Any = None, **changes: Any) -> dict[str, Any]:
    return {"label": "Cell", "contour_coordinates": SQUARE if ring is None else ring, "type": "Polygon", **changes}


def doc(*images: list[Any], **changes: Any) -> dict[str, Any]:
    return {"model": "m", "format_version": "0.2", "segmentation_data": list(images), **changes}


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


def without(value: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: part for name, part in value.items() if name != key}


def same(a: Document, b: Document) -> bool:
    return (
        (a.model, a.labels, a.n_images) == (b.model, b.labels, b.n_images)
        and np.array_equal(a.coordinates, b.coordinates)
        and np.array_equal(a.offsets, b.offsets)
        and np.array_equal(a.scores, b.scores, equal_nan=True)
        and np.array_equal(a.image_index, b.image_index)
    )


def test_a_good_document_becomes_flat_arrays() -> None:
    data = text(doc([obj(), obj([[0.5, 1], [2, 3], [4, 5.25]], score=0.75, label="Zelle ü")], [], [obj(score=1)]))
    document = decode(data)
    assert isinstance(document, Document)
    assert v0_2.read_faultless(Feed(data), Builder()) is not None
    assert document.exact
    assert (document.model, document.version, document.n_images, len(document)) == ("m", "0.2", 3, 3)
    assert document.labels == ("Cell", "Zelle ü", "Cell")
    assert document.offsets.tolist() == [0, 4, 7, 11]
    assert document.coordinates[4:7].tolist() == [[0.5, 1], [2, 3], [4, 5.25]]
    assert document.coordinates.dtype == np.float64
    assert document.counts().tolist() == [2, 0, 1]
    assert document.image_index.tolist() == [0, 0, 2]
    assert math.isnan(document.scores[0])
    assert document.scores[1:].tolist() == [0.75, 1.0]
    assert document.json_path(2) == "$.segmentation_data[2][0]"
    assert document.image(0).labels == document.labels[:2]
    assert document.image(2).ring(0).tolist() == SQUARE


def test_both_readers_agree_on_every_good_document() -> None:
    for good in (
        doc(),
        doc([]),
        doc([obj()], [obj(score=0.5)]),
        doc([obj([])]),
        doc([obj(label='a "quoted" \\ \n label')]),
    ):
        slow, findings = examine(text(good))
        fast = decode(text(good))
        assert isinstance(slow, Document)
        assert isinstance(fast, Document)
        assert findings == []
        assert same(slow, fast)


PATH = "$.segmentation_data[0][0]"
# (name, text, rule, JSON path)
BROKEN: list[tuple[str, bytes, str, str]] = [
    ("empty", b"", "truncated", "$"),
    ("blank", b" \n", "truncated", "$"),
    ("cut in a number", text(doc([obj()])).split(b" 8]")[0], "truncated", f"{PATH}.contour_coordinates[2]"),
    ("cut in a key", text(doc([obj()]))[:64], "truncated", PATH),
    ("cut before the last brace", text(doc([obj()]))[:-1], "truncated", "$"),
    ("text behind", text(doc()) + b"{}", "syntax", "$"),
    ("utf-16", json.dumps(doc()).encode("utf-16"), "encoding", "$"),
    ("byte order mark", b"\xef\xbb\xbf" + text(doc()), "encoding", "$"),
    ("latin-1", json.dumps(doc([obj(label="é")]), ensure_ascii=False).encode("latin-1"), "encoding", "$"),
    ("half a surrogate", text(doc([obj(label="\ud800")])), "encoding", f"{PATH}.label"),
    ("raw control character", text(doc([obj(label="a?b")])).replace(b"?", b"\x01"), "syntax", f"{PATH}.label"),
    ("single quotes", b"{'model': 'm'}", "syntax", "$"),
    ("python True", text(doc([obj(label="?")])).replace(b'"?"', b"True"), "syntax", f"{PATH}.label"),
    ("trailing comma", text(doc([obj()])).replace(b"}]]}", b"},]]}"), "syntax", "$.segmentation_data[0]"),
    ("two values", b'{"model" "m"}', "syntax", "$.model"),
    ("deep array", b"[" * 200_000, "too-deep", "$[0]"),
    ("deep object", b'{"a":' * 200_000, "too-deep", "$.a"),
    ("deep point", text(doc([obj("?")])).replace(b'"?"', b"[" * 100_000), "too-deep", f"{PATH}.contour_coordinates[0]"),
    ("duplicate top key", b'{"model":"a",' + text(doc())[1:], "duplicate-key", "$.model"),
    ("duplicate data", text(doc())[:-1] + b',"segmentation_data":[]}', "duplicate-key", "$.segmentation_data"),
    (
        "duplicate label",
        text(doc([obj()])).replace(b'{"label"', b'{"label":"x","label"'),
        "duplicate-key",
        f"{PATH}.label",
    ),
    (
        "escaped duplicate",
        text(doc([obj()])).replace(b'{"l', b'{"\\u006cabel":"x","l'),
        "duplicate-key",
        f"{PATH}.label",
    ),
    (
        "duplicate score, another without",
        text(doc([obj(score=1), obj()])).replace(b'"score": 1', b'"score": 1, "score": 1'),
        "duplicate-key",
        f"{PATH}.score",
    ),
    ("a string", b'"output"', "wrong-type", "$"),
    ("an empty list", b"[]", "wrong-type", "$"),
    ("no model", text(without(doc(), "model")), "missing-key", "$"),
    ("no version", text(without(doc(), "format_version")), "missing-key", "$"),
    ("no data", text(without(doc(), "segmentation_data")), "missing-key", "$"),
    ("model null", text(doc(model=None)), "wrong-type", "$.model"),
    ("version number", text(doc(format_version=0.2)), "wrong-type", "$.format_version"),
    ("version 0.3", text(doc(format_version="0.3")), "wrong-version", "$.format_version"),
    ("version empty", text(doc(format_version="")), "wrong-version", "$.format_version"),
    ("0.1 and 0.2", text(doc(segmentation=[])), "wrong-version", "$"),
    ("data an object", text(doc() | {"segmentation_data": {}}), "wrong-type", "$.segmentation_data"),
    ("image an object", text(doc(obj())), "wrong-type", "$.segmentation_data[0]"),
    ("image null", text(doc([], None)), "wrong-type", "$.segmentation_data[1]"),
    ("object a list", text(doc([SQUARE])), "wrong-type", PATH),
    ("no label", text(doc([without(obj(), "label")])), "missing-key", PATH),
    ("no contour", text(doc([without(obj(), "contour_coordinates")])), "missing-key", PATH),
    ("no type", text(doc([without(obj(), "type")])), "missing-key", PATH),
    ("label a number", text(doc([obj(label=3)])), "wrong-type", f"{PATH}.label"),
    ("type Box", text(doc([obj(type="Box")])), "not-a-polygon", f"{PATH}.type"),
    ("type null", text(doc([obj(type=None)])), "wrong-type", f"{PATH}.type"),
    ("contour null", text(doc([obj()])).replace(text(SQUARE), b"null"), "wrong-type", f"{PATH}.contour_coordinates"),
    ("score a string", text(doc([obj(score="0.5")])), "bad-number", f"{PATH}.score"),
    ("score null", text(doc([obj(score=None)])), "bad-number", f"{PATH}.score"),
    ("score NaN", text(doc([obj(score=math.nan)])), "bad-number", f"{PATH}.score"),
    ("score 1e400", text(doc([obj(score=7)])).replace(b": 7", b": 1e400"), "bad-number", f"{PATH}.score"),
]
for name, token in {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "1e400": b"1e400",
    "-1e400": b"-1e400",
    "huge int": b"9" * 5000,
    "beyond pixels": b"3000000000",
    "string": b'"1"',
    "true": b"true",
    "null": b"null",
    "object": b"{}",
    "01": b"01",
    "1.": b"1.",
    ".5": b".5",
    "+1": b"+1",
    "hex": b"0x10",
    "1e": b"1e",
    "minus": b"-",
    "underscore": b"1_0",
}.items():
    BROKEN.append(
        (
            f"coordinate {name}",
            text(doc([obj(), obj([[1, 2], [3, 77777], [4, 4]])])).replace(b"77777", token),
            "bad-number",
            "$.segmentation_data[0][1].contour_coordinates[1][1]",
        )
    )
for name, ring, rule, place in (
    ("three numbers", [[1, 2], [1, 2, 3]], "bad-point", ".contour_coordinates[1]"),
    ("one number", [[1], [1, 2]], "bad-point", ".contour_coordinates[0]"),
    ("no number", [[], [1, 2]], "bad-point", ".contour_coordinates[0]"),
    ("unsqueezed cv2", [[[1, 2]], [[3, 4]], [[5, 6]]], "bad-point", ".contour_coordinates[0][0]"),
    ("flat list", [1, 2, 3, 4, 5, 6], "bad-point", ".contour_coordinates"),
    ("mixed", [[1, 2], 3, 4], "bad-point", ".contour_coordinates"),
    ("point a string", ["1,2"], "wrong-type", ".contour_coordinates[0]"),
    ("point an object", [{"x": 1, "y": 2}], "wrong-type", ".contour_coordinates[0]"),
):
    BROKEN.append((f"ring {name}", text(doc([obj(ring)])), rule, PATH + place))


@pytest.mark.parametrize(("data", "rule", "path"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_documents_are_refused_with_rule_and_path(data: bytes, rule: str, path: str) -> None:
    started = time.process_time()
    with pytest.raises(OutputInvalid) as caught:
        decode(data)
    assert time.process_time() - started < 2
    found = [(finding.rule, finding.place.json_path) for finding in caught.value.findings]
    if rule == "too-deep":
        assert any(name == rule and where.startswith(path) for name, where in found)
    else:
        assert (rule, path) in found
    assert all(finding.severity is Severity.ERROR for finding in caught.value.findings if finding.rule == rule)
    assert all(finding.fix and finding.message for finding in caught.value.findings if "in all" not in finding.message)
    assert caught.value.exit_code == 5


def test_every_mistake_is_found_not_only_the_first() -> None:
    bad = doc([obj(label=1), obj([[1, 2, 3], [math.nan, 1]], type="Box")], "no list", [obj(score=True)], model=3)
    with pytest.raises(OutputInvalid) as caught:
        decode(text(bad))
    assert [(finding.rule, finding.place.json_path) for finding in caught.value.findings] == [
        ("wrong-type", "$.model"),
        ("wrong-type", "$.segmentation_data[0][0].label"),
        ("bad-point", "$.segmentation_data[0][1].contour_coordinates[0]"),
        ("bad-number", "$.segmentation_data[0][1].contour_coordinates[1][0]"),
        ("not-a-polygon", "$.segmentation_data[0][1].type"),
        ("wrong-type", "$.segmentation_data[1]"),
        ("bad-number", "$.segmentation_data[2][0].score"),
    ]
    assert "7 mistakes" in caught.value.message
    assert "$.model" in caught.value.message


def test_findings_are_capped_and_counted() -> None:
    _, findings = examine(text(doc([obj(type="Box")] * 250)))
    assert len(findings) == 101
    assert "150 more" in findings[-1].message
    assert "250 in all" in findings[-1].message


def test_unknown_keys_are_noted_and_ignored() -> None:
    document = decode(text(doc([obj(bbox=[1, {"a": [2]}])], creator="x")))
    assert isinstance(document, Document)
    assert document.exact
    assert [(note.rule, note.severity, note.place.json_path) for note in document.notes] == [
        ("unknown-key", Severity.NOTE, f"{PATH}.bbox"),
        ("unknown-key", Severity.NOTE, "$"),
    ]


def test_mistakes_inside_unknown_keys_still_count() -> None:
    with pytest.raises(OutputInvalid, match="NaN"):
        decode(text(doc([obj(bbox=[math.nan])])))


def test_a_squeezed_one_point_contour_is_read_and_repaired() -> None:
    """Early commits of the public Cellpose executor write np.squeeze(contour).tolist()."""
    data = text(doc([obj([7, 9]), obj()]))
    document = decode(data)
    assert isinstance(document, Document)
    assert document.ring(0).tolist() == [[7, 9]]
    assert [(note.rule, note.severity) for note in document.notes] == [("flat-point", Severity.WARNING)]
    assert not document.exact
    assert json.loads(encode(document))["segmentation_data"][0][0]["contour_coordinates"] == [[7, 9]]
    with pytest.raises(OutputInvalid) as caught:
        decode(data, strict=True)
    assert caught.value.findings[0].place.json_path == f"{PATH}.contour_coordinates"


@pytest.mark.parametrize("key", ["model_version", "model"])
def test_format_0_1_is_upgraded(key: str) -> None:
    document = decode(text({key: "url#abc", "format_version": "0.1", "segmentation": [obj(), obj(score=0.5)]}))
    assert isinstance(document, Document)
    assert (document.model, document.version, document.n_images, document.exact) == ("url#abc", "0.1", 1, False)
    assert document.json_path(1) == "$.segmentation[1]"
    again = decode(encode(document))
    assert isinstance(again, Document)
    assert again.version == "0.2"
    assert same(document, again)


def test_a_list_of_0_1_documents_is_one_per_image() -> None:
    one = {"model_version": "m", "format_version": "0.1", "segmentation": [obj()]}
    document = decode(text([one, {**one, "segmentation": []}, one]))
    assert isinstance(document, Document)
    assert document.counts().tolist() == [1, 0, 1]
    assert document.json_path(1) == "$[2].segmentation[0]"
    for broken, rule in (
        ({**one, "format_version": "0.2"}, "wrong-version"),
        (without(one, "segmentation"), "missing-key"),
    ):
        with pytest.raises(OutputInvalid) as caught:
            decode(text([one, broken]))
        assert [finding.rule for finding in caught.value.findings] == [rule]
        assert caught.value.findings[0].place.json_path == "$[1]"


def test_info_documents_pass() -> None:
    info = decode(text({"name": "cellpose", "git_url": "u", "git_hash": "abc", "gpu": False, "type": "info"}))
    assert info == Info("cellpose", "u", "abc", {"gpu": False})
    with pytest.raises(OutputInvalid) as caught:
        decode(text({"name": "cellpose", "type": "info"}))
    assert [finding.rule for finding in caught.value.findings] == ["missing-key", "missing-key"]


finite = (
    st.floats(-1e6, 1e6, allow_nan=False) | st.integers(-(2**31), 2**31) | st.integers(-50, 50).map(lambda n: n / 2)
)
objects = st.builds(
    lambda label, ring, score: obj(ring, label=label, **({} if score is None else {"score": score})),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.lists(st.lists(finite, min_size=2, max_size=2), max_size=6),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.lists(st.lists(objects, max_size=4), max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_round_trip(images: list[list[dict[str, Any]]], escape: bool) -> None:
    data = json.dumps(doc(*images), ensure_ascii=escape).encode()
    document = decode(data)
    assert isinstance(document, Document)
    assert document.counts().tolist() == [len(image) for image in images]
    flat = [found for image in images for found in image]
    assert [document.ring(number).tolist() for number in range(len(document))] == [
        found["contour_coordinates"] for found in flat
    ]
    assert document.labels == tuple(found["label"] for found in flat)
    written = encode(document)
    again = decode(written, strict=True)
    assert isinstance(again, Document)
    assert same(document, again)
    assert encode(again) == written
    slow, findings = examine(data)
    assert isinstance(slow, Document)
    assert findings == []
    assert same(slow, document)


def test_written_text_is_compact_and_integers_stay_integers() -> None:
    document = decode(text(doc([obj([[1.0, 2.0], [3, 4], [5, 7]]), obj([[0.5, 1.0], [3, 4], [5, 7]], score=0.25)], [])))
    assert isinstance(document, Document)
    assert encode(document) == (
        b'{"model":"m","format_version":"0.2","segmentation_data":[['
        b'{"label":"Cell","contour_coordinates":[[1,2],[3,4],[5,7]],"type":"Polygon"},'
        b'{"label":"Cell","contour_coordinates":[[0.5,1.0],[3.0,4.0],[5.0,7.0]],"type":"Polygon","score":0.25}],[]]}'
    )


# --- an independent judge, as simple as it can be, for the fuzz test ---


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("duplicate")
    return dict(pairs)


def _refuse(token: str) -> Any:
    raise ValueError(token)


def _number(value: Any, limit: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= limit


def _good_object(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("label"), str)
        and value.get("type") == "Polygon"
        and isinstance(value.get("contour_coordinates"), list)
        and all(
            isinstance(point, list) and len(point) == 2 and all(_number(number, 2**31) for number in point)
            for point in value["contour_coordinates"]
        )
        and ("score" not in value or _number(value["score"], 1.7976931348623157e308))
    )


def allowed(data: bytes) -> bool:
    """Whether the specification allows these bytes as format 0.2, judged by json and plain Python."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(value, dict)
        and isinstance(value.get("model"), str)
        and value.get("format_version") == "0.2"
        and isinstance(value.get("segmentation_data"), list)
        and "segmentation" not in value
        and all(isinstance(image, list) and all(map(_good_object, image)) for image in value["segmentation_data"])
    )


TOKENS = [
    *(
        b"NaN",
        b"-Infinity",
        b"1e400",
        b"true",
        b"null",
        b'"x"',
        b"[]",
        b"{}",
        b"[[",
        b"]]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\xff",
    ),
    *(
        b"\\u00e9",
        b"\\ud800",
        b'"label":"y",',
        b'"score":1,',
        b'"score":1e-400,',
        b"-0",
        b"01",
        b"[1,2]",
        b"[1,2],",
        b" \n",
    ),
    *(
        b"9" * 400,
        b'"segmentation":[],',
        b'"type":"info",',
        b'"extra":[1,{"a":2}],',
        b"\x00",
        b"\xc3\xa9",
        b"0.5",
        b"1E2",
    ),
    *(b"7", b"3", b" ", b"\n\t", b"a", b"Z", b".25", b"4e1"),
]


def mutate(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(data) + 1)
        until = min(at + chance.choice((1, 1, 2, 5, 12)), len(data))
        action = chance.randrange(6)
        if action == 0:
            del data[at:until]
        elif action == 1:
            data[at:at] = chance.choice(TOKENS)
        elif action == 2:
            data[at:until] = chance.choice(TOKENS)
        elif action == 3 and at < len(data):
            data[at] = chance.randrange(256)
        elif action == 4 and data[at : at + 1].isdigit():
            data[at] = chance.choice(b"123456789")
        else:
            data[at:at] = data[at:until]
    return bytes(data)


def test_mutated_documents_never_crash_and_verdicts_equal_a_plain_judge() -> None:
    chance = random.Random(20)
    seeds = [
        text(doc([obj(score=0.5), obj([[0.5, 1], [2, 3], [4, 5e-1]])], [], [obj(label="é\n")])),
        encode(decode(text(doc([obj([[1, 1]])], [obj()])))),
    ]
    accepted = refused = 0
    for _ in range(10_000):
        data = mutate(chance.choice(seeds), chance)
        try:
            document = decode(data, strict=True)
        except OutputInvalid as error:
            findings = error.findings
            assert findings
            assert not allowed(data), data
            refused += 1
            continue
        if isinstance(document, Document) and document.version == "0.2":
            assert allowed(data), data
            slow, _ = examine(data)
            assert isinstance(slow, Document)
            assert same(slow, document)
            accepted += 1
    assert accepted > 300
    assert refused > 5000


def test_a_large_broken_document_is_diagnosed_in_linear_time() -> None:
    data = text(doc(*[[obj([[n, n], [n + 3, n], [n, n + 2.5]]) for n in range(500)]] * 20))
    started = time.process_time()
    with pytest.raises(OutputInvalid) as caught:
        decode(data.replace(b"[499, 499]", b"[499, NaN]"))
    assert time.process_time() - started < 5
    assert len(caught.value.findings) == 20
    assert caught.value.findings[19].place.json_path == "$.segmentation_data[19][499].contour_coordinates[0][1]"


def _strictly(data: bytes) -> Any:
    """What a parser of plain JSON makes of a text; ValueError for mistakes of JSON itself, which no schema sees."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key twice")
        return dict(pairs)

    def no(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(data.decode(), parse_constant=no, object_pairs_hook=unique)


def test_the_schema_says_what_the_reader_says() -> None:
    """Held against every broken document above by a validator that is not ours."""
    path = Path(polygons.__file__).with_name("schema-0.2.json")
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for good in (doc(), doc([]), doc([obj()], [obj(score=0.5)]), doc([obj([])]), doc([obj(more=1)], extra=[])):
        assert list(validator.iter_errors(good)) == []
    missed, seen = set(), 0
    for name, data, rule, _ in BROKEN:
        try:
            parsed = _strictly(data)
        except (ValueError, RecursionError):
            continue
        seen += 1
        if not list(validator.iter_errors(parsed)):
            missed.add((name, rule))
    assert seen > 30
    assert missed == {
        ("half a surrogate", "encoding")
    }  # escaped, so it is JSON, and of text a schema knows only the type


def test_the_rules_are_documented() -> None:
    manual = Path(__file__).resolve().parent.parent / "docs" / "format.md"
    written = manual.read_text(encoding="utf-8")
    assert [rule for rule in RULES if f"`{rule}`" not in written] == []
