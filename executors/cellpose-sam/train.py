"""Fine-tune Cellpose-SAM on a folder of images and a folder of label images; log model, curves and AP."""

import argparse
import sys
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import network
import numpy as np
import settings
from segserve_sdk import devices, sources

# Pairs, options, measuring and logging are the same for both generations of Cellpose and live with the other one.
sys.path.append(str(Path(__file__).resolve().parent.parent / "cellpose"))
import pairs
import training


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line; everything that is wrong is said at once."""
    parser = training.parser(__doc__ or "", model="cpsam_v2", learning_rate=1e-5, weight_decay=0.1)
    parser.add_argument("--channel", default="all")
    options = parser.parse_args(arguments)
    wrong = training.problems(options, network.NAMES, settings.CHOICES)
    if wrong:
        parser.exit(2, "".join(f"error: {problem}\n" for problem in wrong))
    return options


def start(options: argparse.Namespace) -> Any:
    """The model to begin with, in float32: that is how it is trained and saved."""
    import torch

    device = torch.device(devices.choose(options.device, torch))
    torch.manual_seed(options.seed)
    if options.model == network.NEW:
        return network.new(device, half=False)
    return network.load(sources.find(options.model, network.NAMES, network.weights_of), device, half=False)


def fit(
    model: Any, learn: List[pairs.Pair], test: List[pairs.Pair], options: argparse.Namespace
) -> Tuple[Path, np.ndarray, np.ndarray]:
    """Train `model` in place, as `training.Trainer` wants it."""
    from cellpose.train import train_seg

    made, losses, test_losses = train_seg(
        model.net,
        [settings.channel_of(pair.image, options.channel) for pair in learn],
        [pair.labels for pair in learn],
        test_data=[settings.channel_of(pair.image, options.channel) for pair in test],
        test_labels=[pair.labels for pair in test],
        n_epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        batch_size=options.batch_size,
        min_train_masks=1,
        save_path=".",
        model_name="trained",
    )
    model.net.eval()
    return Path(made), losses, test_losses


def evaluate(model: Any, image: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """The label mask of one image."""
    return np.asarray(model.eval(settings.channel_of(image, options.channel))[0])


if __name__ == "__main__":
    training.run(parse(), training.Trainer(start, fit, evaluate))
