"""Data sets as Lightning and MONAI want them: cached, cropped, augmented, with what the network has to learn."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader
from omegaconf import DictConfig

from segmentor.annotation import distances
from segmentor.dataset import Dataset, DatasetError, Sample
from segmentor.pixels import Normalisation

_BOTH = ("image", "instances")


class Load(mt.Transform):
    """Sample → image (channels, rows, columns), instances (1, rows, columns), lookup: instance → class."""

    def __init__(self, normalisation: Normalisation) -> None:
        self.normalisation = normalisation

    def __call__(self, sample: Sample) -> dict[str, Any]:
        annotation = sample.read_annotation()
        return {
            "image": torch.from_numpy(self.normalisation(sample.read_image())),
            "instances": torch.from_numpy(annotation.instances.astype(np.float32))[None],
            "lookup": np.concatenate([[0], annotation.classes]),
        }


class Targets(mt.Transform):
    """instances → classes (1, rows, columns) int64 and distance (1, rows, columns); objects as the crop shows them."""

    def __call__(self, item: dict[str, Any]) -> dict[str, torch.Tensor]:
        instances = np.rint(np.asarray(item["instances"]))[0].astype(np.int32)
        return {
            "image": torch.as_tensor(np.asarray(item["image"])),
            "classes": torch.from_numpy(item["lookup"][instances])[None],
            "distance": torch.from_numpy(distances(instances))[None],
        }


def augmented(processing: DictConfig, crops: int) -> mt.Compose:
    """Training: random crops around objects, moved and lit in other ways."""
    tile, chance = (processing.tile,) * 2, processing.augmentation
    steps: list[Any] = [
        Load(normalisation(processing)),
        mt.SpatialPadd(_BOTH, tile, mode=("reflect", "constant")),
        # Three of four crops are centred on an object: many images are mostly background.
        mt.RandCropByPosNegLabeld(_BOTH, "instances", tile, pos=3, neg=1, num_samples=crops),
        mt.RandFlipd(_BOTH, chance.flip, 0),
        mt.RandFlipd(_BOTH, chance.flip, 1),
        mt.RandRotate90d(_BOTH, chance.rotate90, max_k=3),
        mt.RandAffined(
            _BOTH,
            prob=chance.affine,
            rotate_range=np.pi / 4,
            scale_range=0.2,
            mode=("bilinear", "nearest"),
            padding_mode="reflection",
        ),
        mt.RandAdjustContrastd("image", chance.intensity, gamma=(0.6, 1.6)),
        mt.RandScaleIntensityd("image", 0.2, chance.intensity),
        mt.RandShiftIntensityd("image", 0.1, prob=chance.intensity),
        mt.RandLambdad("image", lambda image: 1 - image, prob=chance.invert),
        mt.RandGaussianNoised("image", chance.noise, std=0.05),
        Targets(),
    ]
    return mt.Compose(steps)


def whole(processing: DictConfig) -> mt.Compose:
    """Validation: whole images, as they are."""
    return mt.Compose([Load(normalisation(processing)), Targets()])


def normalisation(processing: DictConfig) -> Normalisation:
    """Of the configuration."""
    return Normalisation(processing.channels, processing.low, processing.high)


class DataModule(pl.LightningDataModule):
    """Train and val of a prepared data set."""

    def __init__(self, dataset: Dataset, processing: DictConfig, training: DictConfig, seed: int) -> None:
        """Raises DatasetError when there is nothing to train on or to check with."""
        super().__init__()
        for part in ("train", "val"):
            if not any(len(sample.classes) for sample in dataset.parts[part]):
                raise DatasetError(f"the part '{part}' of the data set has no annotated object")
        self.dataset, self.processing, self.training, self.seed = dataset, processing, training, seed

    def setup(self, stage: str) -> None:
        """Read, normalise and cache all images."""
        transform = augmented(self.processing, self.training.crops).set_random_state(self.seed)
        self.train = CacheDataset(self.dataset.parts["train"], transform, progress=False)
        self.val = CacheDataset(self.dataset.parts["val"], whole(self.processing), progress=False)

    def train_dataloader(self) -> DataLoader:
        """Shuffled crops."""
        batch = max(1, self.training.batch // self.training.crops)
        return self._loader(self.train, batch_size=batch, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """One whole image at a time: sizes differ."""
        return self._loader(self.val, batch_size=1)

    def _loader(self, data: CacheDataset, **options: Any) -> DataLoader:
        workers = self.training.workers
        pinned = torch.cuda.is_available()
        return DataLoader(data, num_workers=workers, persistent_workers=workers > 0, pin_memory=pinned, **options)
