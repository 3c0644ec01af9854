"""A real `segserve serve` in a process of its own, on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

from segserve import process

CONFIG = """\
[queue]
backoff_s = 0.2
cpu_slots = 2

[server]
port = 0
{server}

[sandbox]
kind = "{sandbox}"
"""


class Service:
    """`with Service(home, folder) as service: service.http.get("/livez")`."""

    def __init__(self, home: Path, folder: Path, *words: str, server: str = "", sandbox: str = "none") -> None:
        self.home = home
        folder.mkdir(exist_ok=True)
        config = folder / "config.toml"
        config.write_text(CONFIG.format(server=server, sandbox=sandbox))
        variables = {**os.environ, "SEGSERVE_HOME": str(home), "SEGSERVE_CONFIG": str(config)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "segserve", "serve", *words], env=variables, stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if "listens on" not in line:
            self.process.kill()
            raise AssertionError(line + self.process.stderr.read())
        self.url = line.split("listens on ")[1].split()[0]
        threading.Thread(target=self._read, daemon=True).start()
        self.http = httpx.Client(base_url=self.url, timeout=300)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr)

    def wait(self, job: str, http: httpx.Client | None = None) -> dict[str, Any]:
        """Follow a job's events to the end, and return what is known of it then."""
        http = http or self.http
        with http.stream("GET", f"/jobs/{job}/events") as answer:
            for line in answer.iter_lines():
                if line == "event: end":
                    break
        return dict(http.get(f"/jobs/{job}").json())

    def as_(self, token: str) -> httpx.Client:
        """A client that sends a token."""
        return httpx.Client(base_url=self.url, timeout=300, headers={"Authorization": f"Bearer {token}"})

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(60)
        process.end(lambda: process.marked("SEGSERVE_HOME", str(self.home)), grace=1.0)
