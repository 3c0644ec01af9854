"""An executor that says what an image shows, instead of where something is.

class Kinds(Classifier):
    "Discs and bars."

    classes = ("disc", "bar")

    def load_assets(self):
        self.model = ...

    def classify(self, batch):
        return self.model(batch)      # (n, 2), one row of scores per image
"""

from typing import List, Sequence

import numpy as np

from segserve_sdk import output
from segserve_sdk.runner import Runner, Segmentation


class Classifier(Runner):
    """Base class of classifiers. `classes` are the names of what it tells apart; all else is as in `Runner`.

    Its result is format 0.2, too: one object per class, as large as the image, with the score of that class, the best
    first. segserve makes classifications of it when the executor is a stage of a pipeline.
    """

    classes = ()  # type: Sequence[str]

    def classify(self, batch: List[np.ndarray]) -> Sequence[Sequence[float]]:
        """One row of scores per image (of any size), one score in 0..1 per class, in the order of `classes`."""
        raise NotImplementedError(f"{type(self).__name__} has no classify")

    def segment_batch(self, batch: List[np.ndarray]) -> Sequence[Segmentation]:
        """The scores as objects of format 0.2."""
        rows = self.classify(batch)
        if len(rows) != len(batch):
            raise ValueError(f"classify gave {len(rows)} rows for {len(batch)} images")
        return [output.classes(image.shape, self.classes, row) for image, row in zip(batch, rows)]
