"""`segserve.lock`: what exactly ran, as TOML. Every MLflow run carries one."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segserve import redact
from segserve.model import Environment, Job

VERSION = 1


def render(job: Job, environment: Environment, project_file: Path, segserve_version: str) -> str:
    """The lock of one job: pin, hashes of MLProject and environment, exact packages on this platform."""
    sections: dict[str, Mapping[str, Any]] = {
        "": {"version": VERSION, "segserve": segserve_version},
        "executor": {
            "repository": job.pin.repo,
            "commit": job.pin.sha,
            "subdir": job.pin.subdir,
            "mlproject_sha256": hashlib.sha256(project_file.read_bytes()).hexdigest(),
        },
        "environment": {
            "kind": environment.spec.kind,
            "source": environment.spec.source,
            "key": environment.spec.key,
            "platform": f"{platform.system()}-{platform.machine()}".lower(),
            "packages": [redact.text(package) for package in environment.packages],
        },
    }
    return "\n".join(_section(name, values) for name, values in sections.items())


def _section(name: str, values: Mapping[str, Any]) -> str:
    head = [f"[{name}]"] if name else []
    return "\n".join(head + [f"{key} = {_value(value)}" for key, value in values.items()]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + "".join(f"  {_value(item)},\n" for item in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    # A JSON string is TOML's too, but for DEL, and for escapes of what is no character by itself: half an emoji, a byte
    # of a file name that is no UTF-8 (https://toml.io/en/v1.0.0#string).
    text = value.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
