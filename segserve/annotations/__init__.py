"""Segmentations as people keep them → `evaluate.Objects` per image: the files that `segserve compare` reads.

read(path)           an output.json, a result folder, COCO, a label image (stack) or a folder of them
pair(pred, true)     which image belongs to which
read_images(path)    the images themselves, to draw upon
"""

from segserve.annotations.base import Annotated, Annotations
from segserve.annotations.files import read, read_images
from segserve.annotations.pairing import Pair, pair

__all__ = ["Annotated", "Annotations", "Pair", "pair", "read", "read_images"]
