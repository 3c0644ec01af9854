"""Train a network: Hydra composes the configuration, Lightning runs the loop, MLflow and TensorBoard hear of it.

python -m segmentor.train data=DIR model=basicunet training.epochs=50 processing.tile=256
"""

import os
import shlex
import sys
from pathlib import Path

import hydra
import mlflow
import numpy as np
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger

from segmentor import dataset, pixels, samples
from segmentor.data import DataModule, normalisation
from segmentor.export import TILES, export, tiles_of
from segmentor.metadata import Metadata
from segmentor.module import Segmenter

CONFIGS = str(Path(__file__).parent.parent / "configs")
_WORDS = ("data", "resume")  # paths, which Hydra's grammar would take apart
_NOTHING = "/dev/null"  # MLflow has no empty paths


@hydra.main(version_base="1.3", config_path=CONFIGS, config_name="config")
def main(config: DictConfig) -> None:
    """One training: data in, `model/` with best.ckpt, last.ckpt and model.onnx out."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    folder = Path(HydraConfig.get().runtime.output_dir)
    data = dataset.load(Path(config.data))
    config.outputs = len(data.classes) + 2
    module = DataModule(data, config.processing, config.training, config.seed)
    module.setup("fit")
    segmenter = Segmenter(OmegaConf.to_container(config, resolve=True), data.classes)
    tracker = MLFlowLogger("segmentor", tracking_uri=mlflow.get_tracking_uri(), run_id=os.environ.get("MLFLOW_RUN_ID"))
    board = TensorBoardLogger(folder, name="", version="tensorboard")
    _show_samples(module, folder, board)
    best = ModelCheckpoint(
        folder / "model", "best", monitor="val/iou", mode="max", save_last=True, enable_version_counter=False
    )
    patience = EarlyStopping("val/iou", mode="max", patience=config.training.patience)
    trainer = pl.Trainer(
        max_epochs=config.training.epochs,
        accelerator=config.training.accelerator,
        devices=config.training.devices,
        precision=_precision(config.training),
        logger=[tracker, board],
        callbacks=[best, patience, LearningRateMonitor("epoch")],
        default_root_dir=folder,
        log_every_n_steps=1,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
    )
    tracker.log_hyperparams({"config": OmegaConf.to_container(config, resolve=True)})
    trainer.fit(segmenter, module, ckpt_path=_checkpoint(config.resume, config.training.epochs), weights_only=True)
    _finish(folder, data, config, tracker)
    print(f"best val/iou {float(best.best_model_score):.4f} · {trainer.current_epoch} epochs · {folder / 'model'}")


def _finish(folder: Path, data: dataset.Dataset, config: DictConfig, tracker: MLFlowLogger) -> None:
    """Export the best network, and hand everything over to MLflow."""
    model = folder / "model"
    processing = config.processing
    about = Metadata(tuple(data.classes), (processing.tile, processing.tile), normalisation(processing))
    np.save(model / TILES, tiles_of(data.parts["val"], about).astype(np.float16))
    export(model, model)
    for name in ("model", ".hydra", "tensorboard", "samples.png"):
        place = "hydra" if name == ".hydra" else name
        path = folder / name
        if path.is_dir():
            tracker.experiment.log_artifacts(tracker.run_id, str(path), place)
        else:
            tracker.experiment.log_artifact(tracker.run_id, str(path))


def _show_samples(module: DataModule, folder: Path, board: TensorBoardLogger) -> None:
    crops = [crop for index in range(min(4, len(module.train))) for crop in module.train[index]]
    picture = samples.grid(crops[:16])
    pixels.write_png(folder / "samples.png", picture)
    board.experiment.add_image("samples", picture, dataformats="HWC")


def _precision(training: DictConfig) -> str:
    if training.precision != "auto":
        return training.precision
    return "16-mixed" if training.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "32-true"


def _checkpoint(resume: str | None, epochs: int) -> str | None:
    if resume is None or resume == _NOTHING:
        return None
    path = Path(resume) / "last.ckpt" if Path(resume).is_dir() else Path(resume)
    if not path.is_file():
        raise dataset.DatasetError(f"{path} is not there: resume from a checkpoint or the folder `model` of a training")
    done = torch.load(path, map_location="cpu", weights_only=True)["epoch"] + 1
    if done >= epochs:
        raise dataset.DatasetError(f"{path} has {done} epochs: ask for more, training.epochs={2 * done}")
    return str(path)


def words(arguments: list[str]) -> list[str]:
    """MLflow gives one word per parameter: paths become quoted for Hydra, `overrides` is taken apart into words."""
    found = []
    for word in arguments:
        name, _, value = word.partition("=")
        if name == "overrides":
            found += shlex.split(value)
        elif name in _WORDS:
            quoted = str(Path(value).absolute()).replace("\\", "\\\\").replace("'", "\\'")
            found.append(f"{name}='{quoted}'")
        else:
            found.append(word)
    return found


if __name__ == "__main__":
    sys.argv[1:] = words(sys.argv[1:])
    main()
