"""What is known of one image: which pixels belong to which object, and of what class each object is."""

from typing import NamedTuple

import cv2
import numpy as np


class Annotation(NamedTuple):
    """`instances` (rows, columns) int32: 0 = background, objects 1 … n; `classes` (n,) int64: 1 … K of each."""

    instances: np.ndarray
    classes: np.ndarray

    def class_map(self) -> np.ndarray:
        """(rows, columns) int64: 0 = background, 1 … K."""
        return np.concatenate([[0], self.classes])[self.instances]


def compact(instances: np.ndarray, classes: np.ndarray) -> Annotation:
    """Objects renumbered 1 … n, those without pixels dropped; `classes[i]` is the class of label `i + 1`."""
    labels, inverse = np.unique(np.append(instances.ravel(), 0), return_inverse=True)
    return Annotation(
        inverse[:-1].reshape(instances.shape).astype(np.int32), np.asarray(classes, np.int64)[labels[1:] - 1]
    )


def from_classes(class_map: np.ndarray) -> Annotation:
    """Objects are the 8-connected parts of each class: the best that a mask without objects can say."""
    instances, classes = np.zeros(class_map.shape, np.int32), []
    for value in np.unique(class_map[class_map > 0]):
        count, parts = cv2.connectedComponents((class_map == value).astype(np.uint8), connectivity=8)
        instances[parts > 0] = parts[parts > 0] + len(classes)
        classes += [int(value)] * (count - 1)
    return Annotation(instances, np.array(classes, np.int64))


def distances(instances: np.ndarray) -> np.ndarray:
    """How deep each pixel lies in its object: 1 at its innermost, near 0 at its rim, 0 outside; float32.

    Touching objects have a valley between them, whatever their size: that is what separates them again.
    """
    padded = np.pad(instances, 1)  # a rim at the image's border, too
    result = np.zeros(padded.shape, np.float32)
    for label, (rows, columns) in boxes(padded):
        window = slice(rows.start - 1, rows.stop + 1), slice(columns.start - 1, columns.stop + 1)
        inside = (padded[window] == label).astype(np.uint8)
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        result[window][inside > 0] = (depth / depth.max())[inside > 0]
    return result[1:-1, 1:-1]


def boxes(instances: np.ndarray) -> list[tuple[int, tuple[slice, slice]]]:
    """`(label, (rows, columns))` for every label that has pixels."""
    rows, columns = np.nonzero(instances)
    labels = instances[rows, columns]
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    if not len(found):
        return []
    sides = [
        (np.minimum.reduceat(at[order], starts), np.maximum.reduceat(at[order], starts) + 1) for at in (rows, columns)
    ]
    (top, bottom), (left, right) = ((low.tolist(), high.tolist()) for low, high in sides)
    return [(label, (slice(top[i], bottom[i]), slice(left[i], right[i]))) for i, label in enumerate(found.tolist())]
