"""What the service says of itself."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segserve.server.logs import JsonFormatter
from tests.services import Service


def lines_of(service: Service, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The lines for which `wanted` holds, as soon as there is one."""
    deadline = time.monotonic() + 30
    while True:
        found = [one for one in map(json.loads, [line for line in service.said if line.startswith("{")]) if wanted(one)]
        if found:
            return found
        assert time.monotonic() < deadline, service.said
        time.sleep(0.05)


def test_a_request_is_one_line_of_json(tmp_path: Path) -> None:
    with Service(tmp_path / "home", tmp_path / "at-work", server='log = "json"') as service:
        answer = service.http.get("/jobs?token=hunter2", headers={"X-Request-ID": "from-nginx.1"})
        assert answer.headers["X-Request-ID"] == "from-nginx.1"
        (line,) = lines_of(service, lambda one: one.get("request") == "from-nginx.1")
        assert (line["method"], line["path"], line["status"], line["logger"]) == (
            "GET",
            "/jobs",
            200,
            "segserve.access",
        )
        assert line["user"]
        assert line["ms"] >= 0
        missing = service.http.get("/jobs/260101-000000-aaaaa", headers={"X-Request-ID": "two words\x7f"})
        (line,) = lines_of(service, lambda one: one.get("job") == "260101-000000-aaaaa")
        assert line["status"] == 404
        assert line["request"] == missing.headers["X-Request-ID"] != "two words\x7f"
        assert service.http.get("/livez").status_code == 200
        assert not [one for one in service.said if "/livez" in one]
        assert not [one for one in service.said if "hunter2" in one]


def test_a_defect_is_one_line_without_secrets() -> None:
    error = RuntimeError("https://me:hunter22@host/x\nwith a second line")
    info = (RuntimeError, error, None)
    entry = logging.LogRecord("segserve", logging.ERROR, "f", 1, "failed: %s", ("token=correcthorse",), info)
    text = JsonFormatter().format(entry)
    assert "\n" not in text
    line = json.loads(text)
    assert line["level"] == "error"
    assert "second line" in line["traceback"]
    assert "hunter22" not in text
    assert "correcthorse" not in text
