"""Entry points of the threshold executor: segment images, or say who we are."""

import argparse
import time
from typing import List, Optional

import mlflow
from segment import CHOICES, Settings, problems, segment
from segserve_sdk import images, output

NAME = "threshold"


def main(arguments: Optional[List[str]] = None) -> None:
    """Read the images, write output.json, log it to MLflow."""
    options = parse(arguments)
    if options.info:
        output.write_info("output.json", NAME)
    else:
        paths = images.paths(options.input_images)
        settings = settings_of(options)
        results = []
        for number, path in enumerate(paths, 1):
            start = time.perf_counter()
            labels, scores = segment(images.read(path), settings)
            results.append(output.objects(labels, scores.round(4), options.label))
            seconds = time.perf_counter() - start
            print(f"{number}/{len(paths)} {len(scores)} objects in {seconds:.2f} s", flush=True)
        output.write_output("output.json", output.provenance(), results)
    mlflow.log_artifact("output.json")


def parse(arguments: Optional[List[str]]) -> argparse.Namespace:
    """The command line; what each setting means stands at `segment.Settings`."""
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input_images", nargs="?", default=".", help="folder of PNG files, or one file")
    parser.add_argument("--info", action="store_true", help="write who we are instead")
    parser.add_argument("--label", default="Cell", help="what the objects are called")
    for name, value in default._asdict().items():
        kind = str if name in CHOICES else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value)
    options = parser.parse_args(arguments)
    wrong = problems(settings_of(options))
    if wrong:
        parser.exit(2, "".join(f"error: {problem}\n" for problem in wrong))
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings among the options."""
    return Settings(**{name: getattr(options, name) for name in Settings._fields})


if __name__ == "__main__":
    main()
