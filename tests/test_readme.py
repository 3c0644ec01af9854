"""The README's words, as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from segserve import api
from segserve.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.network
def test_the_first_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`segserve run . examples/images`: real images, this repository's own executor, every image its own result."""
    words = re.findall(r"\.venv/bin/segserve (run [^\n]+)", README)[0].split()
    monkeypatch.chdir(ROOT)
    try:
        assert main([*words, "--json", "-o", str(tmp_path / "result")]) == 0
    finally:
        with api.session() as session:
            session.stop_ui()
    counts = {Path(image["file"]).name: image["objects"] for image in json.loads(capsys.readouterr().out)["images"]}
    assert set(counts) == {file.name for file in (ROOT / "examples" / "images").iterdir()}
    assert counts["coins.png"] == 24
    assert counts["cell.png"] == 1
    assert (tmp_path / "result" / "report" / "index.html").exists()


def test_the_second_command_is_the_one_of_ci() -> None:
    command = re.findall(r"## Tests\n\n```sh\n([^\n]+)", README)[0]
    assert command == ".venv/bin/pip install -e '.[dev]' && .venv/bin/pytest"
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install --quiet -e '.[dev]'" in script
    assert "\npytest\n" in script
