"""Fine-tune a Cellpose 3 model on a folder of images and a folder of label images; log model, curves and AP."""

import argparse
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import network
import numpy as np
import pairs
import settings
import training
from segserve_sdk import devices, sources

CHOICES = {**settings.CHOICES, "rescale": ("true", "false")}


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line; everything that is wrong is said at once."""
    parser = training.parser(__doc__ or "", model="cyto3", learning_rate=0.1, weight_decay=1e-4)
    parser.add_argument("--crop", type=int, default=224, help="width of what is learned from at once, in pixels")
    parser.add_argument("--channel", default="grey")
    parser.add_argument("--nucleus", default="none")
    parser.add_argument("--rescale", type=str.lower, default="true", help="bring all cells to one size first")
    options = parser.parse_args(arguments)
    wrong = training.problems(options, network.NAMES, CHOICES)
    if options.crop < 32:
        wrong.append("crop is at least 32 pixels.")
    if wrong:
        parser.exit(2, "".join(f"error: {problem}\n" for problem in wrong))
    return options


def start(options: argparse.Namespace) -> Any:
    """The model to begin with."""
    import torch

    torch.manual_seed(options.seed)
    device = torch.device(devices.choose(options.device, torch))
    if options.model != "new":
        file = sources.find(options.model, network.NAMES, network.weights_of)
        return network.load(file, device, network.trained_at(options.model))
    models = network.cellpose()
    model = models.CellposeModel(pretrained_model=False, device=device, mkldnn=False)
    model.net = network.new(network.USUAL_WIDTHS, 30.0).to(device)
    return model


def fit(
    model: Any, learn: List[pairs.Pair], test: List[pairs.Pair], options: argparse.Namespace
) -> Tuple[Path, np.ndarray, np.ndarray]:
    """Train `model` in place, as `training.Trainer` wants it."""
    from cellpose.train import train_seg

    made, losses, test_losses = train_seg(
        model.net,
        [pair.image for pair in learn],
        [pair.labels for pair in learn],
        test_data=[pair.image for pair in test],
        test_labels=[pair.labels for pair in test],
        channels=list(settings.channels_of(options.channel, options.nucleus)),
        n_epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        SGD=True,
        batch_size=options.batch_size,
        bsize=options.crop,
        rescale=options.rescale == "true",
        min_train_masks=1,
        save_path=".",
        model_name="trained",
    )
    model.net.eval()
    model.diam_labels = float(model.net.diam_labels.item())
    return Path(made), losses, test_losses


def evaluate(model: Any, image: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """The label mask of one image."""
    channels = list(settings.channels_of(options.channel, options.nucleus))
    return np.asarray(model.eval(image, channels=channels)[0])


if __name__ == "__main__":
    training.run(parse(), training.Trainer(start, fit, evaluate))
