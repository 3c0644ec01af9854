"""Segmentations as people keep them → `evaluate.Objects` per image: the files that `segserve compare` reads.

read(path)           an output.json, a result folder, COCO, a label image (stack) or a folder of them
pair(pred, true)     which image belongs to which
read_images(path)    the images themselves, to draw upon
"""

from segserve.sides.base import Side, SideImage
from segserve.sides.files import read, read_images
from segserve.sides.pairing import Pair, pair

__all__ = ["Pair", "Side", "SideImage", "pair", "read", "read_images"]
