"""How well do two segmentations agree? Objects in, numbers out; no I/O.

    objects      what is compared: label mask, rings or runs     runs      objects as rows of pixels
    contingency  which object shares how many pixels with which  matching  who belongs to whom
    metrics      AP, F1, PQ, Dice, AJI, SEG                      coco      COCO's AP
    changes      what became of each object                      drawing   hits, misses, false alarms

Everything counts pixels: a pixel belongs to an object when its centre lies in the closed ring (docs/format.md), so that
an `output.json` and the label image that it was traced from agree exactly. Definitions: docs/compare.md.
"""

from segserve.evaluate.changes import Change, Drift, drift
from segserve.evaluate.coco import CocoScores, Ranked, coco_scores
from segserve.evaluate.contingency import Overlap, overlap
from segserve.evaluate.drawing import picture
from segserve.evaluate.matching import Matches, match
from segserve.evaluate.metrics import Tally, mean_of_images, pool, tally
from segserve.evaluate.objects import Objects, Rings
from segserve.evaluate.runs import Runs

__all__ = [
    "Change",
    "CocoScores",
    "Drift",
    "Matches",
    "Objects",
    "Overlap",
    "Ranked",
    "Rings",
    "Runs",
    "Tally",
    "coco_scores",
    "drift",
    "match",
    "mean_of_images",
    "overlap",
    "picture",
    "pool",
    "tally",
]
