"""config.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from segserve import config
from segserve.errors import UsageError
from tests.servers import free_port

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"


def test_no_file_means_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.load() == config.Settings()


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no configuration file"):
        config.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[runn]\nkeep = true", "runn"),
        ("[run]\ntimeout_s = -1", "run.timeout_s"),
        ("[run\n", "not TOML"),
        ("[environments]\nchannels = 3", "environments.channels"),
    ],
)
def test_every_wrong_key_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        config.load(file)


def test_variables_win_over_the_file_and_flags_over_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[server]\nport = 9001\nmax_images = 7\n[queue]\ntries = 2\n")
    assert config.load(file).server.port == 9001
    monkeypatch.setenv("SEGSERVE_SERVER__PORT", "9002")
    monkeypatch.setenv("SEGSERVE_SERVER__HOSTS", '["seg.example.org"]')
    monkeypatch.setenv("SEGSERVE_EXECUTORS__OURS__REF", "https://example.org/ours")
    monkeypatch.setenv("SEGSERVE_HOME", str(tmp_path))  # these mean something else
    monkeypatch.setenv("SEGSERVE_CONFIG", str(file))
    monkeypatch.setenv("SEGSERVE_PROGRESS", "/x")
    loaded = config.load()
    assert (loaded.server.port, loaded.server.max_images, loaded.queue.tries) == (9002, 7, 2)
    assert loaded.server.hosts == ("seg.example.org",)
    assert loaded.executors["ours"] == config.ExecutorSettings(ref="https://example.org/ours")
    assert config.Settings().server.port == 8000
    # What `segserve serve` does with them; where it listens is the last word's.
    port = free_port()
    monkeypatch.setenv("SEGSERVE_SERVER__HOSTS", "[]")
    words = [sys.executable, "-m", "segserve", "serve", "--port", str(port)]
    server = subprocess.Popen(words, env={**os.environ}, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    assert f"127.0.0.1:{port}" in server.stderr.readline()
    server.terminate()
    server.communicate(timeout=60)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SEGSERVE_SERVRE__PORT", "1", r"SEGSERVE_SERVRE__PORT: there is no section \[servre\]"),
        ("SEGSERVE_SERVER__PROT", "1", "^SEGSERVE_SERVER__PROT: there is no such key"),
        ("SEGSERVE_SERVER__PORT", "many", "^SEGSERVE_SERVER__PORT: Input should be a valid integer"),
        ("SEGSERVE_SERVER__HOSTS", "one,two", "SEGSERVE_"),
    ],
)
def test_wrong_variables_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        config.load()


def test_the_documented_file_is_the_default_one(tmp_path: Path) -> None:
    """docs/configuration.md shows every key with its default, so it must load to exactly the defaults."""
    text = DOCS.read_text().split("```toml\n")[1].split("```")[0]
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert config.load(file) == config.Settings()
    documented = {section: set(keys) for section, keys in tomllib.loads(text).items()}
    assert documented == {name: set(value) for name, value in config.Settings().model_dump().items()}
