"""Which image of one side belongs to which of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segserve.errors import UsageError
from segserve.evaluate import Objects, runs
from segserve.sides.base import Side, SideImage


@dataclass(frozen=True, slots=True)
class Pair:
    """The same image on both sides."""

    name: str
    pred: SideImage
    true: SideImage


def pair(pred: Side, true: Side) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """The pairs, in the order of the true side, and notes about how they were found.

    COCO with COCO by image id; else by name, when both sides have the same names; else by order, when they have the
    same number of images.

    Raises:
        UsageError: the images do not belong together.
    """
    if pred.kind == true.kind == "COCO":
        return _by_number(pred, true), ()
    one, two = [image.name for image in pred.images], [image.name for image in true.images]
    if all(two) and len(set(two)) == len(two) and sorted(one) == sorted(two):
        by_name = {image.name: image for image in pred.images}
        return tuple(Pair(image.name, by_name[image.name], image) for image in true.images), ()
    if len(one) != len(two):
        raise UsageError(
            f"{pred.path} has {_images(len(one))}, {true.path} has {_images(len(two))}.{_missing(one, two)}",
            hint="Both sides need a result for each image, in the same order or under the same names.",
        )
    notes = ("the names of the images differ on the two sides: they are compared in order",) if all(one + two) else ()
    if len(one) == 1:
        notes = ()
    pairs = zip(pred.images, true.images, strict=True)
    return tuple(Pair(b.name or a.name or f"image {n}", a, b) for n, (a, b) in enumerate(pairs, 1)), notes


def _by_number(pred: Side, true: Side) -> tuple[Pair, ...]:
    if not true.listed:
        raise UsageError(
            f"{true.path} is COCO's results form, which does not list images without objects.",
            hint="Give a COCO file with images and annotations as the truth.",
        )
    found = {image.number: image for image in pred.images}
    known = {image.number for image in true.images}
    if strangers := sorted(number for number in found if number is not None and number not in known):
        raise UsageError(f"{pred.path} has objects of image {strangers[0]}, which {true.path} does not have.")
    if pred.listed and len(found) != len(known):
        missing = next(image for image in true.images if image.number not in found)
        raise UsageError(f"{pred.path} does not have image {missing.number} ({missing.name}) of {true.path}.")
    return tuple(
        Pair(image.name or f"image {image.number}", found.get(image.number, SideImage("", _nothing)), image)
        for image in true.images
    )


def _nothing() -> Objects:
    return Objects.from_runs(runs.joined([]), 0, scores=np.empty(0))


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _missing(one: Sequence[str], two: Sequence[str]) -> str:
    """The first name that only one side has, where that tells something."""
    both = set(one) & set(two)
    if not both:
        return ""
    alone = next((name for name in (*two, *one) if name not in both), "")
    return f" Only one of them has '{alone}'." if alone else ""
