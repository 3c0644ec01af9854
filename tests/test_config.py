"""config.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from segserve import config
from segserve.errors import UsageError

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


def test_the_documented_file_is_the_default_one(tmp_path: Path) -> None:
    """docs/configuration.md shows every key with its default, so it must load to exactly the defaults."""
    text = DOCS.read_text().split("```toml\n")[1].split("```")[0]
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert config.load(file) == config.Settings()
    documented = {section: set(keys) for section, keys in tomllib.loads(text).items()}
    assert documented == {name: set(value) for name, value in config.Settings().model_dump().items()}
