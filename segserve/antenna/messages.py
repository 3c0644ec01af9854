"""What Antenna sends and reads. The names are its own; unknown keys of a request are left alone."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=8000)]
Id = Annotated[str, Field(min_length=1, max_length=500)]
Scalar = str | int | float | bool


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class BoundingBox(_Model):
    """Corners in pixels of the source image: x to the right, y down; x2 and y2 lie behind the last pixel."""

    x1: float
    y1: float
    x2: float
    y2: float


class AlgorithmReference(_Model):
    """An algorithm, by the key that `/info` declares."""

    name: Text
    key: Text


class SourceImageRequest(_Model):
    """An image to fetch."""

    id: Id
    url: Text


class SourceImageResponse(_Model):
    """An image that the request named."""

    id: str
    url: str


class DetectionRequest(_Model):
    """A detection that is there already: its crop goes to the classifying stages."""

    source_image: SourceImageRequest
    bbox: BoundingBox | None = None
    crop_image_url: Text | None = None
    algorithm: AlgorithmReference


class PipelineRequest(_Model):
    """What `POST /process` takes."""

    pipeline: Text = Field(description="slug of a pipeline, as `/info` lists them")
    source_images: list[SourceImageRequest]
    detections: list[DetectionRequest] | None = Field(None, description="to be classified again")
    config: dict[str, Any] | None = Field(None, description="parameters; those that begin with request_ are ignored")


class ClassificationResponse(_Model):
    """What one algorithm says of one detection; `scores` has one score per label, in the order of `labels`."""

    classification: str
    labels: list[str] | None = None
    scores: list[float] = []
    logits: list[float] | None = None
    inference_time: float | None = None
    algorithm: AlgorithmReference
    terminal: bool = True
    timestamp: str


class DetectionResponse(_Model):
    """One object of an image; with `bbox` null: the image was processed, and nothing was found in it."""

    source_image_id: str
    bbox: BoundingBox | None
    inference_time: float | None = None
    algorithm: AlgorithmReference
    timestamp: str
    crop_image_url: str | None = None
    classifications: list[ClassificationResponse] = []


class CategoryMap(_Model):
    """The classes of an algorithm, in the order of its scores."""

    data: list[dict[str, Any]]
    labels: list[str]
    version: str | None = None
    description: str | None = None
    uri: str | None = None


class AlgorithmConfig(_Model):
    """An algorithm; those that name classes have a category map."""

    name: str
    key: str
    description: str | None = None
    task_type: str | None = None
    version: int = 1
    version_name: str | None = None
    uri: str | None = None
    category_map: CategoryMap | None = None


class StageParameter(_Model):
    """A parameter that a request may set in its `config`, under `key`."""

    name: str
    key: str
    category: str = "default"


class StageConfig(_Model):
    """A stage of a pipeline."""

    key: str
    name: str
    params: list[StageParameter] = []
    description: str | None = None


class PipelineConfig(_Model):
    """A pipeline."""

    name: str
    slug: str
    version: int
    description: str | None = None
    algorithms: list[AlgorithmConfig] = []
    stages: list[StageConfig] = []


class Info(_Model):
    """What this service is, and all that it has."""

    name: str
    description: str | None = None
    pipelines: list[PipelineConfig] = []
    algorithms: list[AlgorithmConfig] = []


class PipelineResponse(_Model):
    """What `POST /process` answers; `total_time` in seconds. `errors` has one text per thing that went wrong."""

    pipeline: str
    algorithms: dict[str, AlgorithmConfig] = {}
    total_time: float
    source_images: list[SourceImageResponse]
    detections: list[DetectionResponse]
    errors: list[str] | str | None = None
