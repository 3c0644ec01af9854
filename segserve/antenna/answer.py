"""What was found → Antenna's response."""

from __future__ import annotations

from datetime import UTC, datetime

from segserve.antenna.chain import Classified, Detected, Outcome, Run, algorithms
from segserve.antenna.chains import Algorithm, Asked, Box
from segserve.antenna.messages import (
    AlgorithmConfig,
    AlgorithmReference,
    BoundingBox,
    CategoryMap,
    ClassificationResponse,
    DetectionResponse,
    PipelineResponse,
    SourceImageResponse,
)


def response(asked: Asked, run: Run, total_s: float) -> PipelineResponse:
    """The response to a request. An image in which nothing was found has one detection whose box is null."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    first = algorithms(asked.chain)[0]
    detections = [found for outcome in run.outcomes for found in _of_image(outcome, first, now)]
    errors = [f"image {outcome.image.id}: {text}" for outcome in run.outcomes for text in outcome.errors]
    return PipelineResponse(
        pipeline=asked.chain.slug,
        algorithms={one.key: configuration(one) for one in algorithms(asked.chain)},
        total_time=round(total_s, 4),
        source_images=[SourceImageResponse(id=one.id, url=one.url) for one in asked.images],
        detections=detections,
        errors=errors or None,
    )


def configuration(algorithm: Algorithm) -> AlgorithmConfig:
    """An algorithm as `/info` and responses declare it."""
    classes = algorithm.classes
    found = CategoryMap(
        data=[{"index": index, "label": label} for index, label in enumerate(classes)],
        labels=list(classes),
        version=str(algorithm.version),
    )
    return AlgorithmConfig(
        name=algorithm.name,
        key=algorithm.key,
        description=algorithm.description or None,
        task_type=algorithm.task,
        version=algorithm.version,
        uri=algorithm.uri or None,
        category_map=found if classes else None,
    )


def _of_image(outcome: Outcome, first: Algorithm, now: str) -> list[DetectionResponse]:
    if outcome.detections:
        return [_detection(outcome.image.id, one, now) for one in outcome.detections]
    if not outcome.processed or outcome.errors:
        return []
    nothing = DetectionResponse(
        source_image_id=outcome.image.id,
        bbox=None,
        inference_time=outcome.seconds,
        algorithm=AlgorithmReference(name=first.name, key=first.key),
        timestamp=now,
    )
    return [nothing]


def _detection(image: str, found: Detected, now: str) -> DetectionResponse:
    name, key = found.algorithm
    return DetectionResponse(
        source_image_id=image,
        bbox=_box(found.box),
        inference_time=found.seconds,
        algorithm=AlgorithmReference(name=name, key=key),
        timestamp=now,
        crop_image_url=found.crop_url or None,
        classifications=[_classification(one, now) for one in found.classified],
    )


def _classification(said: Classified, now: str) -> ClassificationResponse:
    name, key = said.algorithm
    return ClassificationResponse(
        classification=said.label,
        labels=list(said.labels),
        scores=list(said.scores),
        inference_time=said.seconds,
        algorithm=AlgorithmReference(name=name, key=key),
        terminal=said.terminal,
        timestamp=now,
    )


def _box(box: Box) -> BoundingBox:
    return BoundingBox(x1=box[0], y1=box[1], x2=box[2], y2=box[3])
