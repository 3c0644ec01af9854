"""Small executor repositories, each with one way to behave. They are real: MLflow, uv and git run them."""

from __future__ import annotations

from pathlib import Path

from tests.repositories import make_repository

MLPROJECT = """\
name: {name}
python_env: python_env.yaml
entry_points:
  main:
    parameters:
      input_images: path
      size: {{type: float, default: 10}}
      label: {{type: string, default: Cell}}
    command: "python main.py {{input_images}} --size {{size}} --label {{label}}"
  info:
    command: "python info.py"
"""

PYTHON_ENV = """\
python: "3.11"
dependencies:
  - mlflow-skinny
"""

# The way in which the public executors do it: sorted glob of PNGs, provenance from git, output.json logged to MLflow.
MAIN = """\
import argparse, glob, json, os, struct, subprocess, sys, time
import mlflow

def git(*words):
    return subprocess.check_output(["git", *words]).decode().strip()

def size_of(png):
    with open(png, "rb") as stream:
        stream.seek(16)
        return struct.unpack(">II", stream.read(8))

parser = argparse.ArgumentParser()
parser.add_argument("images")
parser.add_argument("--size", type=float)
parser.add_argument("--label")
arguments = parser.parse_args()
names = sorted(glob.glob(os.path.join(arguments.images, "*.png")))
segmentation = []
for index, name in enumerate(names):
    width, height = size_of(name)
    side = min(arguments.size, width - 2, height - 2)
    rings = [[[x, 1], [x, 1 + side], [x + side, 1 + side], [x + side, 1]] for x in (1, 20)[:1 + index % 2]]
    shared = {{"label": arguments.label, "type": "Polygon", "score": 0.9}}
    segmentation.append([dict(shared, contour_coordinates=ring) for ring in rings])
document = {{
    "model": git("config", "--get", "remote.origin.url") + "#" + git("rev-parse", "--short", "HEAD"),
    "format_version": "0.2",
    "segmentation_data": segmentation,
}}
{behaviour}
with open("output.json", "w") as stream:
    json.dump(document, stream)
mlflow.log_artifact("output.json")
{after}
"""

INFO = """\
import json, mlflow
with open("output.json", "w") as stream:
    json.dump({"name": "tester", "git_url": "u", "git_hash": "h", "type": "info"}, stream)
mlflow.log_artifact("output.json")
"""

# kind → (what happens before output.json is written, what happens behind it)
BEHAVIOURS = {
    "good": ("", ""),
    "crash": ("raise RuntimeError('the model file is empty')", ""),
    "no_output": ("sys.exit(0)", ""),
    "not_logged": (
        "with open('output.json', 'w') as stream: json.dump(document, stream)\nsys.exit(0)",
        "",
    ),
    "bad_polygons": ("document['segmentation_data'][0][0]['contour_coordinates'] = [[1, 'x'], [2]]", ""),
    "wrong_count": ("document['segmentation_data'].append([])", ""),
    "hang": ("print('sleeping', flush=True)\ntime.sleep(3600)", ""),
    "half_written": (
        "open('output.json', 'w').write(json.dumps(document)[:-40]); mlflow.log_artifact('output.json'); sys.exit(0)",
        "",
    ),
    "format_0_1": (
        "document = {'model': document['model'], 'format_version': '0.1', 'segmentation': segmentation[0]}",
        "",
    ),
    "grandchild": (
        "subprocess.Popen(['setsid', 'sleep', '3600'])\nprint('sleeping', flush=True)\ntime.sleep(3600)",
        "",
    ),
    "slow": ("time.sleep({'slowly': 30, 'at-once': 0}.get(arguments.label, 3))", ""),
    "out_of_memory": ("raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')", ""),
}


def make_executor(folder: Path, kind: str = "good", *, python_env: str = PYTHON_ENV, **extra: str) -> str:
    """Create a repository of one kind and return its full commit id. `extra` holds further files."""
    before, after = BEHAVIOURS[kind]
    return make_repository(
        folder,
        {
            "MLProject": MLPROJECT.format(name=kind),
            "python_env.yaml": python_env,
            "main.py": MAIN.format(behaviour=before, after=after),
            "info.py": INFO,
            **extra,
        },
    )


SHELL_PROJECT = """\
name: shell
entry_points:
  main:
    parameters:
      input_images: path
      nap: {type: float, default: 0}
      mark: {type: string, default: none}
    command: "sh segment.sh {input_images} {nap} {mark}"
"""

# One square per image. It notes when it begins and when it ends, so that a test can see who ran at the same time.
SHELL_SCRIPT = """\
set -e
[ -z "$2" ] || sleep "$2"
[ "$3" != crash ] || { echo "the model file is empty" >&2; exit 3; }
square='[{"label": "Cell", "type": "Polygon", "contour_coordinates": [[1, 1], [1, 9], [9, 9], [9, 1]]}]'
list=""
for image in "$1"/*.png; do list="$list${list:+, }$square"; done
printf '{"model": "shell", "format_version": "0.2", "segmentation_data": [%s]}' "$list" > output.json
"""


def make_shell_executor(folder: Path, *, environment: bool = False) -> str:
    """An executor that is a shell command: it starts in no time and needs no environment (`kind="local"`).

    `nap` seconds pass before it writes its result; `mark=crash` lets it fail. With `environment` it brings one, which
    has nothing in it and is built without an index.
    """
    project = SHELL_PROJECT + ("python_env: python_env.yaml\n" if environment else "")
    files = {"python_env.yaml": 'python: "3.11"\ndependencies: []\n'} if environment else {}
    return make_repository(folder, {"MLproject": project, "segment.sh": SHELL_SCRIPT, **files})
