"""Jobs of the executor `spy` on a real service: sending one, reading what it has said."""

from __future__ import annotations

import json

import httpx

from tests.services import Service
from tests.uploads import png


def submit(http: httpx.Client, *, env: str = "local", **parameters: str) -> str:
    form = {"executor": "spy", "env": env, "gpus": "0", "parameters": json.dumps(parameters)}
    made = http.post("/jobs", data=form, files={"images": ("a.png", png(5))})
    assert made.status_code == 202, made.text
    return str(made.json()["job"])


def log(service: Service, job: str, http: httpx.Client | None = None) -> str:
    return (http or service.http).get(f"/jobs/{job}/log").text
