"""A checkpoint → one ONNX file that says itself how to use it, and proof that it computes the same."""

import argparse
import contextlib
import io
import json
import logging
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import torch

from segmentor import dataset, metadata, predict
from segmentor.data import normalisation
from segmentor.metadata import Metadata
from segmentor.module import Segmenter

CHECKPOINT = "best.ckpt"
TILES = "tiles.npy"  # some real input, so that a model can be verified without its data
REPORT = "export.json"


class ExportError(RuntimeError):
    """The ONNX file computes something else than the network, or there is no checkpoint."""


class Exported(torch.nn.Module):
    """The network with its last step: probabilities of background and classes, then the distance within 0..1."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(n, channels, rows, columns) → (n, 1 + K + 1, rows, columns)."""
        output = self.network(image)
        return torch.cat([output[:, :-1].softmax(dim=1), output[:, -1:].clamp(0, 1)], dim=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, verify, log to MLflow."""
    options = parse(arguments)
    report = export(options.model, options.output, tolerance=options.tolerance, data=options.data)
    print(json.dumps(report, indent=1))
    mlflow.log_metrics({f"export_{name}": value["largest"] for name, value in report["verified"].items()})
    mlflow.log_artifacts(str(options.output), "model")


def export(model: Path, target: Path, *, tolerance: float = 1e-3, data: Path | None = None) -> dict[str, Any]:
    """Write `target`/model.onnx and export.json from the checkpoint `model` (a file, or a folder with best.ckpt).

    `data`: a prepared data set whose test images are verified as well. Returns the report: for each kind of input the
    largest and the mean absolute difference of the outputs (all within 0..1), and the pixels whose class differs.

    Raises:
        ExportError: no checkpoint, or a difference above `tolerance`. The file is gone then.
    """
    checkpoint = model / CHECKPOINT if model.is_dir() else model
    if not checkpoint.is_file():
        raise ExportError(f"{checkpoint} is not there: give a checkpoint or the folder of a training")
    segmenter = load(checkpoint)
    processing = segmenter.config.processing
    facts = {"network": segmenter.config.model.network["_target_"], "parameters": _count(segmenter.network)}
    about = Metadata(
        tuple(segmenter.hparams.classes), (processing.tile, processing.tile), normalisation(processing), facts
    )
    target.mkdir(parents=True, exist_ok=True)
    file = target / predict.FILE
    network = Exported(segmenter.network).eval()
    write(network, about, file)
    inputs = {"random": np.random.default_rng(0).random((3, about.normalisation.channels, *about.tile), np.float32)}
    inputs |= _real_inputs(checkpoint.parent, about, data)
    report = {"tolerance": tolerance, "verified": verify(network, predict.Model(file, "cpu"), inputs)}
    (target / REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    worst = max(found["largest"] for found in report["verified"].values())
    if not worst <= tolerance:  # NaN is worse than anything
        file.unlink()
        raise ExportError(f"the ONNX file differs by {worst:.2g} from the network, more than {tolerance:g}")
    return report


def load(checkpoint: Path) -> Segmenter:
    """The network in a checkpoint, ready to predict. Nothing in it is executed (`weights_only`).

    Raises:
        ExportError: it is no checkpoint of ours.
    """
    try:
        return Segmenter.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    except (pickle.UnpicklingError, EOFError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(f"{checkpoint} is no checkpoint of this executor: {reason}") from None


def write(network: torch.nn.Module, about: Metadata, file: Path) -> None:
    """Write the ONNX file: input `image` (n, channels, rows, columns) of the tile's size, any n."""
    example = torch.zeros(2, about.normalisation.channels, *about.tile)
    # It prints its progress, and warns of torchvision, which nothing here needs.
    for noisy in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["image"],
            output_names=["maps"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
        )
    proto = program.model_proto
    forget_places(proto)
    onnx.helper.set_model_props(proto, {metadata.KEY: about.to_json()})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, file)


def forget_places(proto: onnx.ModelProto) -> None:
    """Take out what torch notes beside each operator: stack traces with paths of this machine, a third of a file."""
    parts = [proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, *proto.graph.input]
    for function in proto.functions:
        parts += [function, *function.node, *function.value_info]
    for part in [*parts, *proto.graph.output]:
        del part.metadata_props[:]


def verify(
    network: torch.nn.Module, exported: predict.Model, inputs: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """How far torch and onnxruntime are apart, by name of input (n, channels, rows, columns)."""
    report = {}
    for name, tiles in inputs.items():
        with torch.no_grad():
            wanted = network(torch.from_numpy(tiles)).numpy()
        found = exported.run(tiles)
        difference = np.abs(found - wanted)
        other = found[:, :-1].argmax(axis=1) != wanted[:, :-1].argmax(axis=1)
        report[name] = {
            "tiles": len(tiles),
            "largest": float(difference.max()),
            "mean": float(difference.mean()),
            "pixels_of_another_class": int(other.sum()),
        }
    return report


def tiles_of(samples: Sequence[dataset.Sample], about: Metadata, count: int = 4) -> np.ndarray:
    """The middle of the first images, as the network sees them: (n, channels, rows, columns) float32."""
    tiles = []
    for sample in samples[:count]:
        image = about.normalisation(sample.read_image())
        missing = [max(0, size - length) for size, length in zip(about.tile, image.shape[1:], strict=True)]
        image = np.pad(image, [(0, 0), *((0, length) for length in missing)], mode="symmetric")
        top, left = ((length - size) // 2 for size, length in zip(about.tile, image.shape[1:], strict=True))
        tiles.append(image[:, top : top + about.tile[0], left : left + about.tile[1]])
    return np.stack(tiles)


def _real_inputs(folder: Path, about: Metadata, data: Path | None) -> dict[str, np.ndarray]:
    inputs = {}
    if (folder / TILES).is_file():
        inputs["validation"] = np.load(folder / TILES, allow_pickle=False).astype(np.float32)
    if data is not None:
        parts = dataset.load(data).parts
        inputs["test"] = tiles_of(parts["test"] or parts["val"], about)
    return inputs


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="export", description=__doc__)
    parser.add_argument("model", type=Path, help="checkpoint, or folder of a training")
    parser.add_argument("--data", type=Path, default=Path("/dev/null"), help="prepared data set to verify on")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, default=Path("model"))
    options = parser.parse_args(arguments)
    options.data = options.data if options.data.is_dir() else None
    return options


if __name__ == "__main__":
    try:
        main()
    except (ExportError, ValueError) as problem:
        sys.exit(f"{type(problem).__name__}: {problem}")
