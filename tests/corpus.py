"""Small broken executor repositories, one per rule: a good one and what was changed in it. None of them is run."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

GOOD: Mapping[str, str] = {
    "MLProject": """\
name: tiny
python_env: python_env.yaml
entry_points:
  main:
    parameters:
      input_images: path
      size: {type: float, default: 10}
    command: >-
      python main.py {input_images} --size {size}
  info:
    command: "python info.py"
""",
    "python_env.yaml": """\
python: "3.12"
dependencies:
  - mlflow-skinny>=2.14
  - numpy==2.1.0
""",
    "main.py": '''\
"""Segments nothing."""
import argparse
import glob
import json
import os

import mlflow

parser = argparse.ArgumentParser()
parser.add_argument("input_images")
parser.add_argument("--size", type=float)
options = parser.parse_args()
paths = sorted(glob.glob(os.path.join(options.input_images, "*.png")))
document = {"model": "tiny", "format_version": "0.2", "segmentation_data": [[] for _ in paths]}
with open("output.json", "w") as stream:
    json.dump(document, stream)
mlflow.log_artifact("output.json")
''',
    "info.py": "import mlflow\n\nopen('output.json', 'w').write('{}')\nmlflow.log_artifact('output.json')\n",
    "README.md": "# tiny\n\nSegments nothing.\n",
    "LICENSE": "BSD 3-Clause License\n",
}
CONDA = """\
name: tiny
channels:
  - conda-forge
dependencies:
  - python=3.12
  - pip
  - pip:
      - mlflow-skinny>=2.14
"""
DOCKER = """\
name: tiny
docker_env:
  image: registry.example.org/tiny:1.2
entry_points:
  main:
    parameters: {input_images: path}
    command: python main.py {input_images}
  info: {command: python info.py}
"""

Change = tuple[str, str] | str | bytes | Path | None


def replaced(old: str, new: str) -> Change:
    """Instead of a whole file: one place in it."""
    return (old, new)


def _project(old: str, new: str) -> dict[str, Change]:
    return {"MLProject": replaced(old, new)}


def _main(old: str, new: str) -> dict[str, Change]:
    return {"main.py": replaced(old, new)}


def _packages(*lines: str) -> dict[str, Change]:
    added = "".join(f"  - {line}\n" for line in lines)
    return {"python_env.yaml": replaced("  - numpy==2.1.0\n", f"  - numpy==2.1.0\n{added}")}


def _conda(old: str, new: str) -> dict[str, Change]:
    return {
        "MLProject": replaced("python_env: python_env.yaml", "conda_env: conda.yaml"),
        "conda.yaml": CONDA.replace(old, new),
        "python_env.yaml": None,
    }


def _docker(old: str, new: str, **more: Change) -> dict[str, Change]:
    return {"MLProject": DOCKER.replace(old, new), "python_env.yaml": None, **more}


# Not in one piece, or this file would hold what is looked for.
TOKEN = "gh" + "p_" + base64.b64encode(b"no token at all, only a test 42").decode().replace("=", "0")[:36]
KEY = "-----BEGIN " + "RSA PRIVATE KEY-----\nMIIB\n"

# rule → what is changed in the good repository; None removes a file, a Path is a link to it
# An algorithm module in the same repository, which has no MLProject then.
MODULE = """\
[project]
name = "tiny"
version = "1.0.0"
dependencies = ["numpy"]

[tool.compox]
algorithm_type = "Image2Segmentation"
tags = ["image-segmentation"]
"""
RUNNER = """\
from compox.algorithm_utils.Image2SegmentationRunner import Image2SegmentationRunner


class Runner(Image2SegmentationRunner):
    def inference(self, data, args={}):
        return data > 100
"""


def _module(more: str = "", *, old: str = "", new: str = "", runner: str = RUNNER) -> Mapping[str, Change]:
    """A module with further lines in [tool.compox], or one text of its pyproject.toml replaced."""
    assert old in MODULE
    gone = dict.fromkeys(("MLProject", "python_env.yaml", "main.py", "info.py"))
    pyproject = (MODULE.replace(old, new) if old else MODULE) + more
    return {**gone, "pyproject.toml": pyproject, "Runner.py": runner}


BROKEN: Mapping[str, Mapping[str, Change]] = {
    # MLProject, as it is read
    "no-mlproject": {"MLProject": None},
    "two-mlprojects": {"MLproject": GOOD["MLProject"]},
    "outside-repository": _project("python_env.yaml", "../python_env.yaml"),
    "yaml": _project("name: tiny", "name: 'tiny"),
    "encoding": {"MLProject": b"name: t\xe9ny\n"},
    "empty-file": {"MLProject": "# nothing\n"},
    "duplicate-key": _project("name: tiny", "name: tiny\nname: other"),
    "alias": {"MLProject": "name: tiny\nentry_points: &a\n  main: *a\n"},
    "too-large": {"MLProject": "# " + "x" * 300_000 + "\n" + GOOD["MLProject"]},
    "structure": _project('  info:\n    command: "python info.py"', "  info: python info.py"),
    "unsupported": _project("name: tiny", "name: tiny\ndatabricks_spark_job: {python_file: main.py}"),
    "several-environments": {**_project("name: tiny", "name: tiny\nconda_env: conda.yaml"), "conda.yaml": CONDA},
    "missing-file": {"python_env.yaml": None},
    "unknown-key": _project("    command: >-", "    paramters: {}\n    command: >-"),
    "parameter-name": {
        "MLProject": GOOD["MLProject"].replace("      size:", "      the.size: string\n      size:"),
        "segserve.toml": '[check]\nignore = ["unused-parameter"]\n',
    },
    "unknown-type": _project("type: float", "type: number"),
    "bad-default": _project("default: 10", "default: ten"),
    "command-braces": _project('"python info.py"', '"python info.py {"'),
    "undeclared-placeholder": _project('"python info.py"', '"python info.py {verbose}"'),
    "unsafe-placeholder": _project("--size {size}", '--size "{size}"'),
    # MLProject, as it is meant
    "no-entry-points": {"MLProject": "name: tiny\npython_env: python_env.yaml\n"},
    "no-main": _project("  main:", "  count:"),
    "no-info": _project('  info:\n    command: "python info.py"\n', ""),
    "no-images-parameter": _project("  info:\n", '  segment:\n    command: "python info.py"\n  info:\n'),
    "images-not-a-path": _project("input_images: path", "input_images: string"),
    "unused-parameter": _project(" --size {size}", ""),
    "unreachable-parameter": _project("--size {size}", "--diameter {size}"),
    "broken-command-line": _project(
        ">-\n      python main.py {input_images} --size {size}",
        "|\n      python main.py {input_images} --size {size}\n      --verbose",
    ),
    "block-command": _project(">-", "|"),
    "missing-script": _project('"python info.py"', '"python about.py"'),
    "secret-parameter": {
        "MLProject": GOOD["MLProject"].replace("size", "api_token"),
        "main.py": GOOD["main.py"].replace("size", "api_token"),
    },
    "no-name": _project("name: tiny\n", ""),
    # The environment
    "no-environment": {"MLProject": replaced("python_env: python_env.yaml\n", ""), "python_env.yaml": None},
    "environment-file": {"python_env.yaml": replaced("dependencies:", "dependencies: none\nbuild_dependencies:")},
    "environment-key": {"python_env.yaml": replaced("dependencies:", "dependancies: []\ndependencies:")},
    "requirements": _packages("../outside"),
    "unpinned-dependency": _packages("scipy"),
    "unpinned-python": {"python_env.yaml": replaced('python: "3.12"\n', "")},
    "unpinned-git": _packages("cells @ git+https://git.example.org/cells@main"),
    "contradictory-dependencies": _packages("numpy>=2.2"),
    "duplicate-dependency": _packages("numpy>=2"),
    "rival-packages": _packages("opencv-python==4.10.0.84", "opencv-python-headless==4.10.0.84"),
    "default-channels": _conda("- conda-forge", "- defaults"),
    "python-end-of-life": {"python_env.yaml": replaced("3.12", "3.8")},
    "old-cuda": _conda("  - pip\n", "  - pip\n  - cudatoolkit=10.2\n"),
    "mlflow-missing": {"python_env.yaml": replaced("  - mlflow-skinny>=2.14\n", "")},
    "insecure-index": _packages("--extra-index-url http://packages.example.org/simple"),
    # docker
    "docker-unpinned-image": _docker(":1.2", ""),
    "docker-digest": _docker(":1.2", "@sha256:" + "0a" * 32),
    "docker-shell-characters": _docker("  image:", '  volumes: ["/data:/data;id;"]\n  image:'),
    "docker-volume": _docker("  image:", '  volumes: ["/data/cells:/data"]\n  image:'),
    "docker-dangerous-volume": _docker("  image:", '  volumes: ["/var/run/docker.sock:/docker.sock"]\n  image:'),
    "docker-host-variable": _docker("  image:", "  environment: [SCANNER]\n  image:"),
    "docker-ignored-files": _docker("", "", **{"conda.yaml": CONDA}),
    # The code
    "python-syntax": _main("import json", "import json as"),
    "output-never-written": {
        "main.py": replaced("output.json", "result.json"),
        "info.py": "print('tiny')\n",
    },
    "output-not-logged": {
        "main.py": replaced('mlflow.log_artifact("output.json")\n', ""),
        "info.py": replaced("mlflow.log_artifact('output.json')\n", ""),
    },
    "old-format": _main('"0.2"', '"0.1"'),
    "glob-misses-images": _main('"*.png"', '"*.tif"'),
    "unsorted-images": _main(
        'sorted(glob.glob(os.path.join(options.input_images, "*.png")))',
        'glob.glob(os.path.join(options.input_images, "*.png"))',
    ),
    "hard-coded-path": _main("import mlflow", 'import mlflow\n\nWEIGHTS = "/home/anna/weights.pt"'),
    "holes-as-objects": _main("import mlflow", "import cv2\nimport mlflow\n\nMODE = cv2.RETR_TREE"),
    "squeezed-contour": _main(
        "import mlflow",
        "import mlflow\nfrom cv2 import findContours\nfrom numpy import squeeze\n\n"
        "flat = lambda mask: [squeeze(ring) for ring in findContours(mask, 0, 2)[0]]",
    ),
    "needs-gpu": _main("import mlflow", 'import mlflow\nimport torch\n\nDEVICE = torch.device("cuda")'),
    # Secrets
    "credential": {"settings.cfg": f"[remote]\nkey = {TOKEN}\n"},
    "private-key": {"deploy.pem": KEY},
    # Files
    "no-licence": {"LICENSE": None},
    "no-readme": {"README.md": None},
    "oversized-file": {"weights.pt": b"\0" * 50_000_001},
    "leftover-files": {"__pycache__/main.cpython-312.pyc": b"\0"},
    "committed-output": {"output.json": "{}\n"},
    "lfs-pointer": {
        "weights.pt": f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0a' * 32}\nsize 123456789\n"
    },
    "escaping-link": {"weights.pt": Path("../weights.pt")},
    "submodules": {".gitmodules": '[submodule "cells"]\n\tpath = cells\n\turl = https://git.example.org/cells\n'},
    # The lock
    "stale-lock": {
        "segserve.lock": 'version = 1\n[executor]\ncommit = "0"\nmlproject_sha256 = "0"\n[environment]\nkind = "uv"\n'
    },
    "bad-lock": {"segserve.lock": "version = 9\n"},
    # The manifest
    "manifest-outside": {"segserve.toml": Path("../segserve.toml")},
    "manifest-too-large": {"segserve.toml": "# " + "x" * 70_000},
    "manifest-encoding": {"segserve.toml": b'title = "t\xe9ny"\n'},
    "manifest-toml": {"segserve.toml": "title = tiny\n"},
    "manifest-unknown-key": {"segserve.toml": 'titel = "tiny"\n'},
    "manifest-value": {"segserve.toml": 'licence = "whatever you like"\n'},
    "unknown-ignore": {"segserve.toml": '[check]\nignore = ["no-licences"]\n'},
    # algorithm modules
    "module-toml": _module("tags = 3\n"),
    "module-table": _module('\n[tool.t3dserver]\nalgorithm_type = "Image2Image"\n'),
    "module-unknown-key": _module("tag = []\n"),
    "module-name": _module(old='name = "tiny"\n'),
    "module-type": _module(old="Image2Segmentation", new="Image2Mask"),
    "module-devices": _module('supported_devices = ["cpu"]\ndefault_device = "gpu"\n'),
    "module-value": _module('obfuscate = "yes"\n'),
    "module-dependencies": _module(old='"numpy"', new='"numpy ==== 2"'),
    "module-dynamic-dependencies": _module(old='dependencies = ["numpy"]', new='dynamic = ["dependencies"]'),
    "module-provided": _module(old='"numpy"', new='"numpy", "compox"'),
    "module-parameter": _module('additional_parameters = [{name = "a", config = {type = "integr"}}]\n'),
    "module-default": _module(
        'additional_parameters = [{name = "a", config = {type = "int_range", default = 9, min = 0, max = 5}}]\n'
    ),
    "module-older-spelling": _module('additional_parameters = [{name = "a", type = "str", default = "x"}]\n'),
    "module-obfuscate": _module("obfuscate = true\n"),
    "module-hash": _module("hash_assets = false\n"),
    "module-runner": _module(runner="class Runnner:\n    pass\n"),
    "module-base": _module(runner=RUNNER.replace("Image2Segmentation", "Image2Image")),
    "module-method": _module(runner=RUNNER.replace("data, args={}", "data")),
}


def make(folder: Path, changes: Mapping[str, Change] | None = None) -> Path:
    """Write the good repository with some changes; a folder `.git` says where it ends."""
    (folder / ".git").mkdir(parents=True)
    for name, change in {**GOOD, **(changes or {})}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(change, tuple):
            assert change[0] in GOOD[name], f"{name} has no {change[0]!r}"
            path.write_text(GOOD[name].replace(*change))
        elif isinstance(change, Path):
            (folder.parent / change.name).write_text("")
            path.symlink_to(change)
        elif change is not None:
            path.write_bytes(change.encode() if isinstance(change, str) else change)
    return folder
