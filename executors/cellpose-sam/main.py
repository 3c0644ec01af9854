"""Segment cells with Cellpose-SAM (or say who we are)."""

from typing import Any, Sequence, Tuple

import network
import numpy as np
import settings
from segserve_sdk import Runner, devices, output, sources, tracking, weights


class CellposeSam(Runner):
    """Cells by Cellpose-SAM (Cellpose 4)."""

    name = "cellpose-sam"
    Settings = settings.Settings
    label: str = "Cell"

    def problems(self) -> Sequence[str]:
        """What is wrong with the parameters."""
        return settings.problems(self.settings)

    def load_assets(self) -> None:
        """The network."""
        import torch

        chosen = self.settings
        device = torch.device(devices.choose(chosen.device, torch))
        half = chosen.precision == "bfloat16" or (chosen.precision == "auto" and device.type == "cuda")
        if chosen.model == network.NEW:
            print("random weights: nothing sensible will be found", flush=True)
            self._model: Any = network.new(device, half=half)
            digest = ""
        else:
            file = sources.find(chosen.model, network.NAMES, network.weights_of)
            self._model = network.load(file, device, half=half)
            digest = weights.digest_of(file)
        print(f"{chosen.model} on {device}, {'bfloat16' if half else 'float32'}, sha256 {digest or '–'}", flush=True)
        tracking.log_params({"weights.sha256": digest or "random", "device.used": str(device)})

    def segment(self, image: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Label mask (rows, columns) and one score per object: the mean cell probability of its pixels, 0 to 1."""
        chosen = self.settings
        mask, flows, _ = self._model.eval(
            settings.channel_of(image, chosen.channel),
            diameter=chosen.diameter or None,
            flow_threshold=chosen.flow_threshold,
            cellprob_threshold=chosen.cellprob_threshold,
            min_size=chosen.min_size,
            tile_overlap=chosen.tile_overlap,
            augment=chosen.augment,
            batch_size=chosen.tiles_at_once,
        )
        mask = np.asarray(mask).reshape(image.shape[:2]).astype(np.int32)
        logits = np.asarray(flows[2], np.float64).reshape(mask.shape)
        return mask, output.mean_scores(mask, 1 / (1 + np.exp(-logits)))


if __name__ == "__main__":
    CellposeSam.main()
