"""Pipelines that there are: the chains of config.toml, every registered executor, and what executors declare in Python.

Nothing is built or fetched for this, so that `/info` is cheap: it is read from config.toml, from manifests, and from
MLProject files of folders and of repositories that have been fetched before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from segserve import project, refs
from segserve.antenna import messages
from segserve.antenna.answer import configuration
from segserve.antenna.chain import algorithms
from segserve.antenna.chains import (
    CLASSIFICATION,
    DETECTION,
    LOCALIZATION,
    Algorithm,
    Asked,
    Chain,
    Image,
    Known,
    Stage,
)
from segserve.config import PipelineSettings, ServiceSettings, Settings, StageSettings
from segserve.errors import InvalidParameters, NotFound, TooLarge, UsageError, did_you_mean
from segserve.manifest import schema as declarations
from segserve.manifest.schema import ChainDeclaration, Manifest
from segserve.pipeline import Request, wire
from segserve.project import EntryPoint, ParameterType
from segserve.registry import Registered

_KINDS = {"localizer": LOCALIZATION, "detector": DETECTION, "classifier": CLASSIFICATION}
_FILES = (ParameterType.PATH, ParameterType.URI)  # requests name no files of this machine
_OWN = "request_"  # keys of a config that are Antenna's
_TRUTH = {True: "true", False: "false"}


class UnknownPipeline(NotFound):
    """There is no pipeline of this slug."""

    http_status = 422


class BadConfig(InvalidParameters):
    """A request for a pipeline is not what it should be."""

    http_status = 422


@dataclass(frozen=True, slots=True)
class Seen:
    """What an executor says of itself, as far as it can be read here; `ready`: its environment is built."""

    manifest: Manifest
    entry: EntryPoint | None
    ready: bool


class Executors(Protocol):
    """Who knows executors (the API)."""

    def request(self, ref: str, *, entry: str | None, parameters: Mapping[str, Any]) -> Request:
        """A request for an executor, without images."""

    def seen(self, request: Request) -> Seen | None:
        """What it says of itself; None when it cannot be read without fetching it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A pipeline in the catalogue. `seen` has one item per stage of the chain; `ready`: all environments are built."""

    chain: Chain
    seen: tuple[Seen | None, ...]

    @property
    def ready(self) -> bool:
        """Whether it can be run without building anything."""
        return all(one is not None and one.ready for one in self.seen)


class Catalogue:
    """All pipelines by slug, at one moment."""

    def __init__(self, entries: Mapping[str, Entry], service: ServiceSettings) -> None:
        self.entries, self._service = dict(entries), service

    def chain(self, slug: str) -> Chain:
        """One pipeline.

        Raises:
            UnknownPipeline: there is none of this slug.
        """
        entry = self.entries.get(slug)
        if entry is None:
            hint = did_you_mean(slug, self.entries) or "GET /info lists them."
            raise UnknownPipeline(f"There is no pipeline '{slug}'.", hint=hint)
        return entry.chain

    def ready(self) -> list[str]:
        """The slugs of those whose environments are built."""
        return [slug for slug, entry in self.entries.items() if entry.ready]

    def info(self, about: str) -> messages.Info:
        """What `/info` answers; `about` stands where config.toml has no description."""
        known = {one.key: one for entry in self.entries.values() for one in algorithms(entry.chain)}
        return messages.Info(
            name=self._service.name,
            description=self._service.description or about,
            pipelines=[_described(entry) for entry in self.entries.values()],
            algorithms=[configuration(one) for one in known.values()],
        )

    def asked(self, wanted: messages.PipelineRequest) -> Asked:
        """A request, checked.

        Raises:
            UnknownPipeline, BadConfig, TooLarge: it cannot be one; every wrong parameter is named.
        """
        entry = self.entries[self.chain(wanted.pipeline).slug]
        known = tuple(map(_known, wanted.detections or ()))
        images = {one.id: Image(one.id, one.url) for one in wanted.source_images}
        if len(images) < len(wanted.source_images):
            raise BadConfig("Two of the source images have the same id.", hint="An id names one image.")
        for one in wanted.detections or ():  # images that only the detections name
            images.setdefault(one.source_image.id, Image(one.source_image.id, one.source_image.url))
        if len(images) > self._service.max_images:
            raise TooLarge(f"More than {self._service.max_images} images.", hint="Send fewer at a time.")
        return Asked(entry.chain, tuple(images.values()), known, _values(entry, wanted.config or {}))


def catalogue(settings: Settings, names: Mapping[str, Registered], executors: Executors) -> Catalogue:
    """All pipelines.

    Raises:
        UsageError: config.toml describes one that cannot be.
    """
    entries = {slug: _configured(slug, one, executors) for slug, one in settings.pipelines.items()}
    for name in names:
        for entry in _registered(name, names[name], executors):
            entries.setdefault(entry.chain.slug, entry)
    _check_keys([entry.chain for entry in entries.values() if entry.chain.slug in settings.pipelines])
    return Catalogue(entries, settings.service)


# --------------------------------------------------------------------------------------------------- what there is


def _configured(slug: str, given: PipelineSettings, executors: Executors) -> Entry:
    stages, seen = [], []
    for number, one in enumerate(given.stages):
        request = executors.request(one.executor, entry=one.entry_point, parameters=one.parameters)
        found = executors.seen(request)
        stages.append(_stage(slug, number, one, request, found))
        seen.append(found)
    first, *later = (stage.algorithm for stage in stages)
    if any(one.task != CLASSIFICATION for one in later):
        raise UsageError(
            f"pipelines.{slug}: only its first stage can find objects; the others classify what it has found.",
            hint='Set `kind = "classifier"`, or make two pipelines.',
        )
    keys = [stage.algorithm.key for stage in stages]
    if len({*keys}) < len(keys):
        raise UsageError(f"pipelines.{slug}: two stages have the same key.", hint="Give each stage a `key`.")
    chain = Chain(slug, given.name or slug, given.version, tuple(stages), given.description or first.description)
    return Entry(chain, tuple(seen))


def _stage(slug: str, number: int, given: StageSettings, request: Request, found: Seen | None) -> Stage:
    manifest = found.manifest if found else Manifest()
    declared = _declared(manifest, request)
    task = _KINDS[given.kind] if given.kind else None
    if task is None:
        task = declared.task if declared else LOCALIZATION if number == 0 else CLASSIFICATION
    classes = given.classes or tuple(declared.classes if declared else ())
    if task == CLASSIFICATION and not classes:
        raise UsageError(
            f"pipelines.{slug}: stage {number} classifies, and nobody says which classes there are.",
            hint="Set `classes = […]` in the stage, or [algorithm] classes in the executor's segserve.toml.",
        )
    algorithm = Algorithm(
        key=given.key or _slug(request.ref.name),
        name=given.name or manifest.title or request.ref.name,
        task=task,
        classes=classes,
        version=given.version if given.version != 1 or declared is None else declared.version,
        description=given.description or manifest.description,
        uri=declared.uri if declared else "",
    )
    return Stage(
        algorithm=algorithm,
        request=wire.to_json(request),
        batch_size=given.batch_size,
        settable=given.config,
        margin=given.margin,
        error=given.error_name,
    )


def _registered(name: str, registered: Registered, executors: Executors) -> Iterator[Entry]:
    """An executor as a pipeline of one stage, and the pipelines in Python that it declares."""
    request = executors.request(registered.name, entry=None, parameters={})
    found = executors.seen(request)
    manifest = found.manifest if found else Manifest()
    for declared in manifest.pipelines:
        yield _in_python(name, declared, executors)
    if found is not None and (found.entry is None or found.entry.images_parameter is None):
        return  # it takes no images, or has no entry point of this name
    algorithm = _declared(manifest, request)
    task = algorithm.task if algorithm else LOCALIZATION
    about = Algorithm(
        key=_slug(name),
        name=manifest.title or name,
        task=task,
        classes=tuple(algorithm.classes if algorithm else ()),
        version=algorithm.version if algorithm else 1,
        description=registered.description or manifest.description,
        uri=algorithm.uri if algorithm else "",
    )
    stage = Stage(about, wire.to_json(request), batch_size=8, settable=_settable(found))
    yield Entry(Chain(_slug(name), about.name, about.version, (stage,), about.description), (found,))


def _in_python(name: str, declared: ChainDeclaration, executors: Executors) -> Entry:
    request = executors.request(name, entry=declared.entry_point, parameters={})
    found = executors.seen(request)
    own = tuple(
        Algorithm(one.key, one.name, one.task, tuple(one.classes), one.version, one.description, one.uri)
        for one in declared.algorithms
    )
    stage = Stage(own[0], wire.to_json(request), settable=_settable(found), error="PipelineError")
    description = declared.description
    return Entry(Chain(declared.slug, declared.name, declared.version, (stage,), description, True, own), (found,))


def _declared(manifest: Manifest, request: Request) -> declarations.Algorithm | None:
    """What the manifest says of the main entry point; another one may do something else."""
    return manifest.algorithm if request.ref.entry == refs.DEFAULT_ENTRY else None


def _settable(found: Seen | None) -> tuple[str, ...]:
    entry = found.entry if found else None
    return () if entry is None else tuple(name for name, one in entry.parameters.items() if one.type not in _FILES)


def _check_keys(configured: Sequence[Chain]) -> None:
    """An algorithm's key means the same in every pipeline of config.toml."""
    known: dict[str, Algorithm] = {}
    for chain in configured:
        for one in algorithms(chain):
            if replace(known.setdefault(one.key, one)) != one:
                raise UsageError(
                    f"pipelines.{chain.slug}: '{one.key}' means something else in another pipeline.",
                    hint="Give the stage a `key` of its own.",
                )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_") or "executor"


def _described(entry: Entry) -> messages.PipelineConfig:
    chain = entry.chain
    own = algorithms(chain)
    params = [_parameters(stage, seen) for stage, seen in zip(chain.stages, entry.seen, strict=True)]
    return messages.PipelineConfig(
        name=chain.name,
        slug=chain.slug,
        version=chain.version,
        description=chain.description or None,
        algorithms=[configuration(one) for one in own],
        stages=[
            messages.StageConfig(
                key=one.key,
                name=one.name,
                description=one.description or None,
                params=params[index] if index < len(params) else [],
            )
            for index, one in enumerate(own)
        ],
    )


def _parameters(stage: Stage, seen: Seen | None) -> list[messages.StageParameter]:
    known = seen.entry.parameters if seen and seen.entry else {}
    return [
        messages.StageParameter(
            name=known[name].description or name if name in known else name, key=name, category=stage.algorithm.key
        )
        for name in stage.settable
    ]


# ------------------------------------------------------------------------------------------------- what is asked for


def _known(given: messages.DetectionRequest) -> Known:
    box = given.bbox
    if box is not None and not (box.x1 < box.x2 and box.y1 < box.y2):
        raise BadConfig(
            f"The box of a detection in image '{given.source_image.id}' is empty.", hint="x1 < x2, y1 < y2."
        )
    corners = None if box is None else (box.x1, box.y1, box.x2, box.y2)
    return Known(
        given.source_image.id, corners, given.crop_image_url or "", (given.algorithm.name, given.algorithm.key)
    )


def _values(entry: Entry, config: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """The parameters of a request per stage, as texts that fit their types."""
    given = {name: value for name, value in config.items() if not name.startswith(_OWN)}
    settable = {name for stage in entry.chain.stages for name in stage.settable}
    wrong = [f"{name}: there is no such parameter. {did_you_mean(name, settable)}".strip() for name in given]
    wrong = [text for name, text in zip(given, wrong, strict=True) if name not in settable]
    found: list[dict[str, str]] = []
    for stage, seen in zip(entry.chain.stages, entry.seen, strict=True):
        known = seen.entry.parameters if seen and seen.entry else {}
        own: dict[str, str] = {}
        for name in (name for name in stage.settable if name in given):
            value = given[name]
            if not isinstance(value, (str, int, float, bool)):
                wrong.append(f"{name}: a value is text, a number, true or false")
                continue
            own[name] = _TRUTH[value] if isinstance(value, bool) else str(value)
            problem = project.type_problem(known[name], own[name]) if name in known else ""
            if name in known and known[name].type in _FILES:
                problem = "A request names no files."
            wrong += [f"{name}: {problem}"] if problem else []
        found.append(own)
    if wrong:
        raise BadConfig("The config does not fit: " + "; ".join(wrong), hint="GET /info lists what a request may set.")
    return tuple(found)
