"""Findings and how they are rendered."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

from segserve.findings import Finding, Place, Severity, as_json, as_junit, as_text, errors_in

BAD = Finding("zero-area", Severity.ERROR, "no area", Place("out.json", None, None, "$.a[3]", "<x>.png"), "Remove it.")
ODD = Finding("keyhole", Severity.NOTE, "a hole", Place("MLProject", 3, 7))


def test_text_says_place_rule_message_and_fix() -> None:
    assert as_text([BAD]) == "out.json $.a[3] (<x>.png): error[zero-area] no area → Remove it."
    assert str(ODD).startswith("MLProject:3:7: note[keyhole]")


def test_json_round_trip() -> None:
    read = json.loads(as_json([BAD, ODD]))
    assert read[0]["place"]["json_path"] == "$.a[3]"
    assert read[1]["severity"] == "note"


def test_junit_counts_only_errors_as_failures_and_escapes() -> None:
    suite = ET.fromstring(as_junit([BAD, ODD], "validate"))
    assert suite.attrib["failures"] == "1"
    assert len(suite.findall("testcase/failure")) == 1
    assert "<x>.png" in suite.findall("testcase")[0].attrib["name"]
    assert ET.fromstring(as_junit([], "validate")).attrib == {"name": "validate", "tests": "1", "failures": "0"}


def test_errors_in() -> None:
    assert errors_in([BAD, ODD]) == [BAD]
