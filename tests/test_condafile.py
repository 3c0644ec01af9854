"""conda.yaml and python_env.yaml: what is read, what is refused, and conda's words in PyPI's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segserve.environments import condafile, translate
from segserve.environments.condafile import MatchSpec, parse_spec
from segserve.errors import InvalidParameters, InvalidProject


@pytest.mark.parametrize(
    ("text", "name", "version", "build", "channel"),
    [
        ("python", "python", "", "", ""),
        ("python=3.8.5", "python", "=3.8.5", "", ""),
        ("python==3.8.5", "python", "==3.8.5", "", ""),
        ("python 3.8.5", "python", "=3.8.5", "", ""),
        ("python >=3.8", "python", ">=3.8", "", ""),
        ("python>=3.8,<3.11", "python", ">=3.8,<3.11", "", ""),
        ("python >= 3.8, < 3.11", "python", ">=3.8,<3.11", "", ""),
        ("python=3.8|3.9", "python", "=3.8|3.9", "", ""),
        ("python=*", "python", "", "", ""),
        ("python~=3.8", "python", "~=3.8", "", ""),
        ("numpy!=1.20", "numpy", "!=1.20", "", ""),
        ("pytorch=1.9=cuda*", "pytorch", "=1.9", "cuda*", ""),
        ("pytorch==1.9.0=py3.8_cuda11.1_cudnn8.0.5_0", "pytorch", "==1.9.0", "py3.8_cuda11.1_cudnn8.0.5_0", ""),
        ("numpy 1.21 py38_0", "numpy", "=1.21", "py38_0", ""),
        ("numpy=1.21.*", "numpy", "=1.21.*", "", ""),
        ("conda-forge::numpy", "numpy", "", "", "conda-forge"),
        ("conda-forge::numpy>=1.2", "numpy", ">=1.2", "", "conda-forge"),
        ("pytorch/linux-64::pytorch=1.9", "pytorch", "=1.9", "", "pytorch/linux-64"),
        ("https://example.org/channel::x", "x", "", "", "https://example.org/channel"),
        ("numpy[version='>=1.2,<2', build=py*]", "numpy", ">=1.2,<2", "py*", ""),
        ("x[channel=bioconda]", "x", "", "", "bioconda"),
        ("_openmp_mutex=4.5", "_openmp_mutex", "=4.5", "", ""),
        ("Pillow", "pillow", "", "", ""),
    ],
)
def test_match_specs_are_taken_apart(text: str, name: str, version: str, build: str, channel: str) -> None:
    assert parse_spec(text) == MatchSpec(text, name, version, build, channel)


@pytest.mark.parametrize("text", ["", " ", "=1.0", "a b c d e; rm", "num py", "$(x)", "-e .", "a\nb", "[x=1]"])
def test_what_is_no_match_spec_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no conda requirement"):
        parse_spec(text)


def test_a_whole_file(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        """\
name: cells
channels: [conda-forge, defaults]
dependencies:
  - python=3.8.5   # as it was then
  - pip
  - opencv
  - pip:
      - mlflow==1.30.1
      - -r requirements.txt
prefix: /home/somebody/miniconda3
variables:
  KMP_DUPLICATE_LIB_OK: TRUE
""",
    )
    read = condafile.load(path)
    assert read.name == "cells"
    assert read.channels == ("conda-forge", "defaults")
    assert read.dependencies == ("python=3.8.5", "pip", "opencv")
    assert read.pip == ("mlflow==1.30.1", "-r requirements.txt")
    assert read.python == "=3.8.5"
    assert read.variables == {"KMP_DUPLICATE_LIB_OK": "TRUE"}
    assert "conda.yaml:10:" in read.warnings[0]
    assert not read.is_plain


@pytest.mark.parametrize(
    ("dependencies", "plain"),
    [
        ("[python=3.8, pip]", True),
        ("[python>=3.9, pip=20, setuptools, wheel, git, {pip: [numpy]}]", True),
        ("[]", True),
        ("[python=3.8=h123_0]", False),
        ("[python, numpy]", False),
    ],
)
def test_plain_means_that_no_channel_is_needed(tmp_path: Path, dependencies: str, plain: bool) -> None:
    assert condafile.load(_file(tmp_path, f"dependencies: {dependencies}\n")).is_plain is plain


def test_versions_are_taken_as_written(tmp_path: Path) -> None:
    path = tmp_path / "python_env.yaml"
    path.write_text("python: 3.10\nbuild_dependencies: [pip==23.1]\ndependencies:\n  - -r requirements.txt\n")
    read = condafile.load_python_env(path)
    assert (read.python, read.build_dependencies, read.dependencies) == (
        "3.10",
        ("pip==23.1",),
        ("-r requirements.txt",),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dependencies: [python", "not YAML"),
        ("dependencies: python\n", "conda.yaml:1:15: error"),
        ("- a\n- b\n", "expected 'key: value'"),
        ("dependencies:\n  - python\n  - conda: [x]\n", "conda.yaml:3:5"),
        ("dependencies:\n  - [a, b]\n", "conda.yaml:2:5"),
        ("dependencies:\n  - '=='\n", "'==' is no conda requirement"),
        ("name: a\nname: b\n", "twice"),
        ('dependencies:\n  - pip: ["numpy\\n--index-url x"]\n', "control characters"),
        ("dependencies: !!python/object/apply:os.system ['true']\n", ""),
        ("a: &a [x,x]\ndependencies: [" + "*a," * 5 + "]\n", "expected a text"),
    ],
)
def test_malformed_files_say_where(tmp_path: Path, text: str, says: str) -> None:
    if not says:  # a tag that would run code in a careless loader is only a list here
        assert condafile.load(_file(tmp_path, text)).dependencies == ("true",)
        return
    with pytest.raises(InvalidProject) as caught:
        condafile.load(_file(tmp_path, text))
    assert says in str(caught.value)
    assert caught.value.hint


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidProject) as caught:
        condafile.load(_file(tmp_path, "channels: 3\ndependencies:\n  - '='\n  - {conda: [x]}\n"))
    assert [finding.place.line for finding in caught.value.findings] == [1, 3, 4]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 5000, b"a" * 2_000_000])
def test_hostile_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "conda.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidProject):
        condafile.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidProject, match=r"'conda\.yaml' does not exist"):
        condafile.load(tmp_path / "conda.yaml")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = _file(tmp_path, f"dependencies:\n  - {text}\n")
    try:
        read = condafile.load(path)
    except InvalidProject:
        return
    assert all(spec.name for spec in read.specs)


@pytest.mark.parametrize(
    ("conda", "pip"),
    [
        ("", ""),
        ("=1.9", "==1.9.*"),
        ("=1.9.*", "==1.9.*"),
        ("==1.9.0", "==1.9.0"),
        (">=1.9,<2", ">=1.9,<2"),
        (">=1.9.*", ">=1.9"),
        ("~=1.9", "~=1.9"),
        ("!=1.9.*", "!=1.9.*"),
        ("1.9|1.10", None),
        ("=1.9.post1", "==1.9.post1.*"),
    ],
)
def test_versions_in_pips_words(conda: str, pip: str | None) -> None:
    assert translate.pep440(conda) == pip


def test_conda_packages_become_pypi_packages() -> None:
    specs = [
        parse_spec(text)
        for text in (
            "python=3.9",
            "pytorch=1.9=cuda*",
            "opencv==4.5.5",
            "scikit-image>=0.18",
            "cudatoolkit=11.3",
            "pip",
        )
    ]
    lines, warnings = translate.to_pypi(specs)
    assert lines == ("torch==1.9.*", "opencv-python-headless==4.5.5.*", "scikit-image>=0.18")
    assert len(warnings) == 2
    assert "cuda*" in warnings[0]
    assert "cudatoolkit" in warnings[1]


def test_what_cannot_be_translated_is_named() -> None:
    with pytest.raises(InvalidParameters) as caught:
        translate.to_pypi([parse_spec(text) for text in ("samtools=1.9", "numpy", "scipy=1.9|1.10")])
    assert "'samtools=1.9', 'scipy=1.9|1.10'" in str(caught.value)


def _file(folder: Path, text: str) -> Path:
    path = folder / "conda.yaml"
    path.write_text(text, encoding="utf-8")
    return path
