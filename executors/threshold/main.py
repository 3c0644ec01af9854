"""Entry points of the threshold executor: segment images, or say who we are."""

from typing import Sequence, Tuple

import numpy as np
import segment
from segserve_sdk import Runner, parameter


class Threshold(Runner):
    """Segmentation without learning; what each setting means stands at `segment.Settings`."""

    name = "threshold"
    Settings = segment.Settings
    label: str = parameter("Cell", help="what the objects are called")

    def problems(self) -> Sequence[str]:
        """What is wrong with the settings."""
        return segment.problems(self.settings)

    def segment(self, image: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Label mask and one score per label."""
        labels, scores = segment.segment(image, self.settings)
        return labels, scores.round(4)


if __name__ == "__main__":
    Threshold.main()
