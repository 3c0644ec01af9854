"""Disc or bar: a network that the segmentor has trained, asked about crops instead of whole images."""

import json
import os
from pathlib import Path
from typing import List

import crops
import numpy as np
from segserve_sdk import Classifier, parameter

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime looks when it is imported
import onnxruntime

MODEL = Path(__file__).parent / "models" / "kinds.onnx"


class Shapes(Classifier):
    """Says whether a crop shows a disc or a bar."""

    name = "shapes"
    classes = ("bar", "disc")
    temperature: float = parameter(1.0, help="above 1 makes the scores less sure, below 1 more")

    def problems(self) -> List[str]:
        """What is wrong with the settings."""
        return [] if self.temperature > 0 else ["temperature is above 0"]

    def load_assets(self) -> None:
        """The network, and what its file says about how to use it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # it is small, and other stages work beside it
        self.session = onnxruntime.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
        about = json.loads(self.session.get_modelmeta().custom_metadata_map["segmentor"])
        self.order = [about["classes"].index(name) for name in self.classes]

    def classify(self, batch: List[np.ndarray]) -> np.ndarray:
        """(n, 2): for each class its share of what is no background, over all pixels."""
        tiles = np.stack([crops.tile(crop) for crop in batch])[:, None]
        (maps,) = self.session.run(None, {"image": tiles})
        shares = maps[:, 1:-1].sum(axis=(2, 3))[:, self.order] ** (1 / self.temperature)
        return shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-6)


if __name__ == "__main__":
    Shapes.main()
