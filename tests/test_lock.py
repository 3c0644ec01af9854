"""segserve.lock is TOML, whatever stands in it."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve import lock
from segserve.model import Environment, EnvironmentSpec, Job, Resources
from segserve.refs import Pin

SHA = "0123456789" * 4


def rendered(project_file: Path, text: str, packages: tuple[str, ...] = ("numpy==2.1.0",)) -> str:
    spec = EnvironmentSpec("uv", text, "k" * 20)
    job = Job("job", Pin(text, SHA, text), "main", {}, None, spec, Resources(), "2026-01-01T00:00:00+00:00")
    return lock.render(job, Environment(spec, "/env", packages=packages), project_file, "0.1.0")


@pytest.fixture(scope="module")
def project_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("project") / "MLProject"
    file.write_text("name: x\n")
    return file


@pytest.mark.parametrize(
    "text",
    [
        "https://host/group/repo",
        'quote " and \\ backslash',
        "line\nbreak\r\ttab",
        '"\n[executor]\ncommit = "forged',
        "null \x00, escape \x1b, delete \x7f, next line \x85",
        "μm 细胞 😀",
        "'''\"\"\"",
        "",
    ],
)
def test_what_goes_in_comes_out(project_file: Path, text: str) -> None:
    read = tomllib.loads(rendered(project_file, text, packages=(text, "b==1")))
    assert read["version"] == lock.VERSION
    assert read["executor"] == {
        "repository": text,
        "commit": SHA,
        "subdir": text,
        "mlproject_sha256": hashlib.sha256(b"name: x\n").hexdigest(),
    }
    assert read["environment"]["packages"] == [text, "b==1"]


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_is_valid_and_can_be_written(project_file: Path, text: str) -> None:
    toml = rendered(project_file, text)
    read = tomllib.loads(toml.encode("utf-8").decode("utf-8"))
    assert read["executor"]["repository"] == text.encode("utf-8", "replace").decode("utf-8")


def test_a_package_from_a_private_address_is_redacted(project_file: Path) -> None:
    text = rendered(project_file, "r", packages=("cells @ git+https://me:canary@host/cells@abc",))
    assert "canary" not in text
    assert tomllib.loads(text)["environment"]["packages"] == ["cells @ git+https://***@host/cells@abc"]
