"""The network, what it learns, and how well: a LightningModule that a checkpoint alone brings back."""

from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from monai.inferers import sliding_window_inference
from omegaconf import DictConfig, OmegaConf
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from segmentor.dataset import metric_name

# What `_target_` may name: a configuration comes out of a checkpoint as well, which somebody else may have made.
_TRUSTED = ("monai.networks.nets.", "monai.losses.", "segmentation_models_pytorch.")


class Segmenter(pl.LightningModule):
    """(n, channels, rows, columns) → logits of background and classes, and the distance as the last channel."""

    def __init__(self, config: dict[str, Any], classes: list[str]) -> None:
        """config: what Hydra composed, as plain values, with `outputs` set. classes: names of classes 1 … K."""
        super().__init__()
        self.save_hyperparameters()
        self.config = OmegaConf.create(config)
        self.network = build(self.config.model.network)
        self.loss = build(self.config.training.loss)
        count = len(classes) + 1
        per_class = {"num_classes": count, "average": "none"}
        self.scores = MetricCollection(
            {"dice": MulticlassF1Score(**per_class), "iou": MulticlassJaccardIndex(**per_class)}, prefix="val/"
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Tiles of the configured size."""
        return self.network(image)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Loss of one batch of crops."""
        losses = self._losses(self(batch["image"]), batch)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, on_step=False, on_epoch=True)
        return losses["loss"]

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        """Loss and overlap on one whole image."""
        processing = self.config.processing
        output = sliding_window_inference(
            batch["image"],
            (processing.tile, processing.tile),
            self.config.training.batch,
            self,
            overlap=processing.overlap,
            mode="gaussian",
            padding_mode="reflect" if min(batch["image"].shape[2:]) > processing.tile // 2 else "constant",
        )
        losses = self._losses(output, batch)
        self.log_dict({f"val/{name}": value for name, value in losses.items()}, batch_size=1)
        self.scores.update(output[:, :-1].argmax(dim=1), batch["classes"][:, 0])

    def on_validation_epoch_end(self) -> None:
        """Pooled over all images; the mean over classes without background is what training is judged by."""
        for name, values in self.scores.compute().items():
            self.log(name, values[1:].mean(), prog_bar=True)
            for label, value in zip(self.hparams.classes, values[1:], strict=True):
                self.log(f"{name}/{metric_name(label)}", value)
        self.scores.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW; the rate falls to zero with (1 - epoch / epochs) ^ 0.9, also when more epochs are asked for later."""
        training = self.config.training
        optimizer = torch.optim.AdamW(self.parameters(), training.learning_rate, weight_decay=training.weight_decay)
        falling = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: max(0.0, 1 - epoch / training.epochs) ** 0.9
        )
        return {"optimizer": optimizer, "lr_scheduler": falling}

    def _losses(self, output: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        of_classes = self.loss(output[:, :-1].float(), batch["classes"])
        of_distance = functional.mse_loss(output[:, -1:].float(), batch["distance"])
        total = of_classes + self.config.training.distance_weight * of_distance
        return {"loss": total, "classes": of_classes, "distance": of_distance}


def build(config: DictConfig) -> torch.nn.Module:
    """The network or loss that `_target_` names.

    Raises:
        ValueError: another package than MONAI's networks and losses or segmentation-models-pytorch, or one that is not
            installed, or arguments that do not fit.
    """
    target = str(config.get("_target_"))
    if not target.startswith(_TRUSTED):
        raise ValueError(f"{target} is none of {', '.join(name + '*' for name in _TRUSTED)}")
    try:
        return instantiate(config)
    except Exception as error:  # hydra wraps whatever an import or a constructor raises
        raise ValueError(f"{target} cannot be made: {error.__cause__ or error}") from error
