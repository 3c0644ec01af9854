"""Fine-tuning, for Cellpose 3 and 4 alike: pairs are split, a model learns, what it is worth is measured and logged.

The MLflow run gets `model/weights` and `model/model.json`, so that a later run takes `-P model=runs:/<id>/model`.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import pairs
from segserve_sdk import sources, tracking, weights

AT = (0.5, 0.75)  # IoU of the AP that is logged
FOLDER = Path("model")


class Trainer(NamedTuple):
    """What differs between the two. Models are `CellposeModel`s.

    start: options → the model to begin with. fit: (model, learn, test, options) → file of weights, losses per epoch,
    losses of the tests (0 in epochs without). evaluate: (model, image, options) → label mask.
    """

    start: Callable[[argparse.Namespace], Any]
    fit: Callable[[Any, List[pairs.Pair], List[pairs.Pair], argparse.Namespace], Tuple[Path, np.ndarray, np.ndarray]]
    evaluate: Callable[[Any, np.ndarray, argparse.Namespace], np.ndarray]


def parser(description: str, *, model: str, learning_rate: float, weight_decay: float) -> argparse.ArgumentParser:
    """The options that both have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("images", type=Path)
    made.add_argument("labels", type=Path, help="label images of the same names (also with _masks); 0 = background")
    made.add_argument("--model", default=model, help="to begin with; 'new' begins with random weights")
    made.add_argument("--epochs", type=int, default=100)
    made.add_argument("--learning-rate", type=float, default=learning_rate)
    made.add_argument("--weight-decay", type=float, default=weight_decay)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--held-out", type=float, default=0.2, help="share of the images that AP is measured on")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="auto")
    return made


def problems(options: argparse.Namespace, names: Sequence[str], choices: Dict[str, Tuple[str, ...]]) -> List[str]:
    """What is wrong with the options, one sentence each; `choices` has what options that are words can be."""
    wrong = [
        f"{name} is '{getattr(options, name)}'; it can be {', '.join(allowed)}."
        for name, allowed in choices.items()
        if getattr(options, name) not in allowed
    ]
    wrong.append("" if options.model == "new" else sources.problem(options.model, names))
    wrong.append("" if min(options.epochs, options.batch_size) >= 1 else "epochs and batch_size are at least 1.")
    wrong.append("" if 0 <= options.held_out < 1 else "held_out lies between 0 and 1.")
    return [problem for problem in wrong if problem]


def run(options: argparse.Namespace, trainer: Trainer) -> None:
    """Read, split, train, measure, log. What is wrong with the images or the model ends it with one line."""
    try:
        everything = pairs.read(options.images, options.labels)
        learn, test = split(everything, options.held_out)
        print(f"{len(learn)} images to learn from, {len(test)} held out: {', '.join(pair.name for pair in test)}")
        model = trainer.start(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    before = quality(trainer, model, test, options)
    made, losses, test_losses = trainer.fit(model, learn, test, options)
    after = quality(trainer, model, test, options)
    print("held out: " + ", ".join(f"{name} {before[name]:.3f} → {value:.3f}" for name, value in after.items()))
    FOLDER.mkdir(exist_ok=True)
    file = made.replace(FOLDER / "weights")
    facts = {
        "from": options.model,
        "cellpose": version("cellpose"),
        "images": [pair.name for pair in learn],
        "held_out": [pair.name for pair in test],
        "before": before,
        "after": after,
        "sha256": weights.digest_of(file),
    }
    (FOLDER / "model.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    log(losses, test_losses, before, after)


def split(everything: List[pairs.Pair], share: float) -> Tuple[List[pairs.Pair], List[pairs.Pair]]:
    """To learn from, and to test on: spread evenly and the same each time; at least one of both where there are two.

    With a single image (or share 0) the test is on what was learned from, which proves little.
    """
    count = min(len(everything) - 1, max(1, round(share * len(everything)))) if share else 0
    if not count:
        return everything, everything[:1]
    chosen = set(np.linspace(0, len(everything) - 1, count + 2).round().astype(int)[1:-1].tolist())
    test = [pair for number, pair in enumerate(everything) if number in chosen]
    return [pair for number, pair in enumerate(everything) if number not in chosen], test


def quality(trainer: Trainer, model: Any, test: List[pairs.Pair], options: argparse.Namespace) -> Dict[str, float]:
    """Average precision at each IoU of `AT`: TP / (TP + FP + FN), pooled over the images."""
    from cellpose.metrics import average_precision

    found = [np.asarray(trainer.evaluate(model, pair.image, options)).astype(np.int32) for pair in test]
    _, hits, false, missed = average_precision([pair.labels for pair in test], found, threshold=list(AT))
    total = np.maximum((hits + false + missed).sum(axis=0), 1)
    return {f"ap.{round(100 * at)}": float(value) for at, value in zip(AT, hits.sum(axis=0) / total)}


def log(losses: np.ndarray, test_losses: np.ndarray, before: Dict[str, float], after: Dict[str, float]) -> None:
    """Curves, AP and the model, to the MLflow run."""
    for epoch, (loss, test_loss) in enumerate(zip(losses, test_losses)):
        values = {"loss.train": float(loss)}
        if epoch == 5 or epoch % 10 == 0:  # when cellpose looks at the test images
            values["loss.test"] = float(test_loss)
        tracking.log_metrics(values, step=epoch)
    tracking.log_metrics({**after, **{f"before.{name}": value for name, value in before.items()}})
    if not tracking.log_folder(FOLDER, "model"):
        print(f"no MLflow run: the model is {FOLDER.resolve()}")
