"""A folder that `docker build` makes a service of: model, app, Dockerfile, and the modules that inference needs."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import mlflow
import segserve_sdk

from segmentor import predict
from segmentor.main import NOTHING, SHIPPED
from segmentor.predict import Model, ModelError

TEMPLATE = Path(__file__).parent.parent / "deployment"
_MODULES = ("__init__", "annotation", "instances", "metadata", "pixels", "predict")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder, log it to MLflow."""
    parser = argparse.ArgumentParser(prog="deploy", description=__doc__)
    parser.add_argument("--model", type=Path, default=NOTHING, help="ONNX file, or folder with model.onnx")
    parser.add_argument("--output", type=Path, default=Path("deployment-folder"))
    options = parser.parse_args(arguments)
    deploy(SHIPPED if options.model == NOTHING else options.model, options.output)
    mlflow.log_artifacts(str(options.output), "deployment")
    print(f"docker build -t segmentor {options.output} && docker run --rm -p 8000:8000 segmentor")


def deploy(model: Path, folder: Path) -> None:
    """Write `folder`, which is not there yet.

    Raises:
        ModelError: the model cannot be loaded; the folder is there already.
    """
    if folder.exists():
        raise ModelError(f"{folder} is there already; choose another output")
    Model(model, "cpu")
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(model / predict.FILE if model.is_dir() else model, folder / predict.FILE)
    (folder / "segmentor").mkdir()
    for name in _MODULES:
        shutil.copyfile(Path(__file__).parent / f"{name}.py", folder / "segmentor" / f"{name}.py")
    kit = Path(segserve_sdk.__file__).parent
    shutil.copytree(kit, folder / "segserve_sdk", ignore=shutil.ignore_patterns("__pycache__"))


if __name__ == "__main__":
    try:
        main()
    except ModelError as problem:
        sys.exit(f"ModelError: {problem}")
