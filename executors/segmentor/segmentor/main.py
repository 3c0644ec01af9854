"""Entry points `main` (images → output.json by an exported model) and `info`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mlflow
from segserve_sdk import images, output

from segmentor.instances import Settings
from segmentor.predict import Model, ModelError

NAME = "segmentor"
# MLflow looks relative paths up in the folder that it was started in and has no empty ones: this stands for ours.
NOTHING = Path("/dev/null")
SHIPPED = Path(__file__).parent.parent / "models" / "shapes.onnx"


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment every image, write output.json, log it to MLflow."""
    options = parse(arguments)
    if options.info:
        output.write_info("output.json", NAME)
    else:
        model = Model(SHIPPED if options.model == NOTHING else options.model, options.device)
        print(f"{', '.join(model.metadata.classes)} · {', '.join(model.session.get_providers())}", flush=True)
        settings = Settings(options.threshold, options.seed, options.min_area)
        paths, results = images.paths(options.input_images), []
        for number, path in enumerate(paths, 1):
            start = time.perf_counter()
            image = images.read(path)
            found = model.segment(image, settings, overlap=options.overlap, batch=options.batch, scale=options.scale)
            names = [model.metadata.classes[index - 1] for index in found.classes]
            results.append(output.objects(found.labels, found.scores.round(4), names))
            print(f"{number}/{len(paths)} {len(names)} objects in {time.perf_counter() - start:.2f} s", flush=True)
        output.write_output("output.json", output.provenance(), results)
    mlflow.log_artifact("output.json")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; what threshold, seed and min_area mean stands at `instances.Settings`."""
    default = Settings()
    parser = argparse.ArgumentParser(prog="main", description=__doc__)
    parser.add_argument("input_images", nargs="?", default=".", help="folder of PNG files, or one file")
    parser.add_argument("--model", type=Path, default=NOTHING, help="ONNX file, or folder with model.onnx")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--batch", type=int, default=4, help="tiles at once")
    parser.add_argument("--overlap", type=_share, default=0.25, help="of neighbouring tiles")
    parser.add_argument("--scale", type=_scale, default=1, help="resize images by it for the network")
    parser.add_argument("--threshold", type=float, default=default.threshold)
    parser.add_argument("--seed", type=float, default=default.seed)
    parser.add_argument("--min-area", type=float, default=default.min_area)
    parser.add_argument("--info", action="store_true", help="write who we are instead")
    return parser.parse_args(arguments)


def _scale(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 16:
        raise argparse.ArgumentTypeError("0.01 to 16")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("at least 0, less than 1")
    return value


if __name__ == "__main__":
    try:
        main()
    except ModelError as problem:
        sys.exit(f"ModelError: {problem}")
