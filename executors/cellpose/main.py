"""Segment cells with Cellpose 3 (or say who we are): models of the package, files, URLs, MLflow models."""

from typing import Any, Sequence, Tuple

import network
import numpy as np
import settings
from segserve_sdk import Runner, devices, output, sources, tracking, weights


class Cellpose(Runner):
    """Cells by Cellpose 3."""

    name = "cellpose"
    Settings = settings.Settings
    label: str = "Cell"

    def problems(self) -> Sequence[str]:
        """What is wrong with the parameters."""
        return settings.problems(self.settings)

    def load_assets(self) -> None:
        """The network, and the one that estimates diameters if the model has one and it is needed."""
        import torch

        device = torch.device(devices.choose(self.settings.device, torch))
        model = self.settings.model
        file = sources.find(model, network.NAMES, network.weights_of)
        self._model = network.load(file, device, network.trained_at(model))
        self._size = None
        if not self.settings.diameter and model in network.WITH_SIZE:
            self._size = network.size_model(self._model, model)
        digest = weights.digest_of(file)
        print(f"{model} on {device}: {file.name}, sha256 {digest}", flush=True)
        tracking.log_params({"weights.sha256": digest, "device.used": str(device)})

    def segment(self, image: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Label mask (rows, columns) and one score per object: the mean cell probability of its pixels, 0 to 1."""
        chosen = self.settings
        image, channels = _prepared(image, chosen.channel, chosen.nucleus)
        diameter = chosen.diameter or self._estimated(image, channels)
        mask, flows, _ = self._model.eval(
            image,
            channels=list(channels),
            diameter=diameter or None,
            flow_threshold=chosen.flow_threshold,
            cellprob_threshold=chosen.cellprob_threshold,
            min_size=chosen.min_size,
            invert=chosen.invert,
            bsize=chosen.tile,
            tile_overlap=chosen.tile_overlap,
            augment=chosen.augment,
            batch_size=chosen.tiles_at_once,
        )
        mask = np.asarray(mask).reshape(image.shape[:2]).astype(np.int32)
        logits = np.asarray(flows[2], np.float64).reshape(mask.shape)
        return mask, output.mean_scores(mask, 1 / (1 + np.exp(-logits)))

    def _estimated(self, image: np.ndarray, channels: Tuple[int, int]) -> float:
        if self._size is None:
            return 0.0
        found: Any = self._size.eval(image, channels=list(channels), batch_size=self.settings.tiles_at_once)
        return float(np.atleast_1d(found[0])[0])


def _prepared(image: np.ndarray, channel: str, nucleus: str) -> Tuple[np.ndarray, Tuple[int, int]]:
    """The image without alpha; a grey image has nothing but grey to choose from."""
    if image.ndim == 2:
        if channel != "grey" or nucleus != "none":
            raise ValueError(f"the image is grey: channel={channel}, nucleus={nucleus} need colours")
        return image, (0, 0)
    return image[..., :3], settings.channels_of(channel, nucleus)


if __name__ == "__main__":
    Cellpose.main()
