"""Pipelines as frozen values, and a request for one as the queue keeps it: JSON that needs no configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

LOCALIZATION, DETECTION, CLASSIFICATION = "localization", "detection", "classification"
LANE = "pipeline "  # and the slug: the lane of the queue in which the requests for a pipeline wait
RESPONSE = "response.json"  # in the result folder of such a request
Box = tuple[float, float, float, float]  # x1, y1, x2, y2: corners of pixels, x2 and y2 behind the last one


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What a stage does. `classes` are what it names, in order; none: it only says where."""

    key: str
    name: str
    task: str = LOCALIZATION
    classes: tuple[str, ...] = ()
    version: int = 1
    description: str = ""
    uri: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """An executor as a step. `request` is a `pipeline.Request` as JSON (`pipeline.wire`); `settable` are the parameters
    of its entry point that a request may set. `margin` in pixels is added to boxes before their crops are cut.
    """

    algorithm: Algorithm
    request: str
    batch_size: int = 1
    settable: tuple[str, ...] = ()
    margin: int = 0
    error: str = "StageError"


@dataclass(frozen=True, slots=True)
class Chain:
    """A pipeline. One in Python (`whole`) has a single stage that does all that its `algorithms` say."""

    slug: str
    name: str
    version: int
    stages: tuple[Stage, ...]
    description: str = ""
    whole: bool = False
    algorithms: tuple[Algorithm, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """A source image, by Antenna's id."""

    id: str
    url: str


@dataclass(frozen=True, slots=True)
class Known:
    """A detection that came with the request; `image` is the id of its source image."""

    image: str
    box: Box | None
    crop_url: str
    algorithm: tuple[str, str]  # name, key


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, checked. `values` has texts by the name of the parameter, per stage."""

    chain: Chain
    images: tuple[Image, ...]
    known: tuple[Known, ...] = ()
    values: tuple[Mapping[str, str], ...] = field(default=())
    others: bool = True  # it is not the local user who asks

    def to_json(self) -> str:
        """For the journal."""
        return json.dumps({"pipeline": self.chain.slug, **asdict(self)}, ensure_ascii=False)

    @property
    def lane(self) -> str:
        """Where it waits."""
        return LANE + self.chain.slug

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides the answer."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def from_json(text: str) -> Asked:
    """Read back what `Asked.to_json` gave."""
    data = json.loads(text)
    chain = data["chain"]
    stages = tuple(
        Stage(**{**one, "algorithm": _algorithm(one["algorithm"]), "settable": tuple(one["settable"])})
        for one in chain["stages"]
    )
    algorithms = tuple(map(_algorithm, chain["algorithms"]))
    return Asked(
        Chain(**{**chain, "stages": stages, "algorithms": algorithms}),
        tuple(Image(**one) for one in data["images"]),
        tuple(
            Known(
                one["image"],
                None if one["box"] is None else tuple(one["box"]),
                one["crop_url"],
                (one["algorithm"][0], one["algorithm"][1]),
            )
            for one in data["known"]
        ),
        tuple(data["values"]),
        data.get("others", True),  # absent from rows of older versions
    )


def _algorithm(data: Mapping[str, Any]) -> Algorithm:
    return Algorithm(**{**data, "classes": tuple(data["classes"])})
