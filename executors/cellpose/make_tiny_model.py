"""Train the model that ships in `models/`: a CPnet with a quarter of the usual widths, on synthetic cells.

python make_tiny_model.py [--epochs 60] [-o models/tiny_cells]     4 minutes on two cores, 1.8 MB
"""

import argparse
import logging
import tempfile
from pathlib import Path

import network
from synthetic import cells

WIDTHS = (8, 16, 32, 64)
DIAMETER = 30.0  # pixels, to which cells are rescaled
IMAGES = 64  # seeds 0 … 63: `synthetic.py` draws tests from 1000 on


def train(target: Path, epochs: int, images: int = IMAGES) -> float:
    """Train and write the weights; returns the mean loss of the last epoch."""
    import torch

    network.cellpose()
    from cellpose.train import train_seg

    torch.manual_seed(0)
    pairs = [cells(s, radius=10 + 1.5 * (s % 5), count=20 + s % 25, overlap=0.08 * (s % 3)) for s in range(images)]
    fresh = network.new(WIDTHS, DIAMETER)
    with tempfile.TemporaryDirectory() as scratch:
        made, losses, _ = train_seg(
            fresh,
            [image for image, _ in pairs],
            [labels for _, labels in pairs],
            channels=[0, 0],
            n_epochs=epochs,
            batch_size=8,
            learning_rate=0.1,
            SGD=True,
            weight_decay=1e-4,
            rescale=False,  # drawn in several sizes already
            scale_range=0.5,
            bsize=128,
            save_path=scratch,
            model_name="tiny",
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(made).read_bytes())
    return float(losses[-1])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "models" / "tiny_cells")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    loss = train(options.output, options.epochs, options.images)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB, loss {loss:.3f}")


if __name__ == "__main__":
    main()
