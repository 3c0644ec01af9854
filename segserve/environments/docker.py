"""`docker_env`: an image that the engine has or pulls, and what a project may ask of the host: what settings allow.

How it is launched is in `dockerline`, the engine itself in `dockerengine`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segserve.environments import dockerengine, locked
from segserve.environments.base import BuildOptions, Report, key_of
from segserve.environments.dockerengine import attempt_image, client_variables, collect_garbage, engine, kill
from segserve.environments.dockerline import SYSTEM_FOLDERS, WORKDIR, is_plain, launch_arguments, write_project
from segserve.errors import DiskFull, EnvironmentBuildFailed, InvalidParameters, InvalidProject, RepositoryUnreachable
from segserve.findings import Finding, Place, Severity
from segserve.model import Environment, EnvironmentSpec
from segserve.project import Project

__all__ = [
    "attempt_image",
    "build",
    "client_variables",
    "collect_garbage",
    "detect",
    "engine",
    "health",
    "kill",
    "kind",
    "launch_arguments",
    "write_project",
]

kind = "docker"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST = re.compile(r"^[a-z0-9][a-zA-Z0-9._/:-]*@sha256:[0-9a-f]{64}$")
_IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._/:@-]*")  # docker's own parser decides the rest


def detect(project: Project, options: BuildOptions) -> EnvironmentSpec | None:
    """The spec of a project with `docker_env`, else None. Needs no engine; one that answers adds the image's id.

    Raises:
        InvalidProject: image, volumes or variables are hostile, or not allowed by this machine's settings.
        InvalidParameters: `--env docker`, and the project names no image.
    """
    if options.kind not in (None, kind):
        return None
    if project.environment.kind != kind:
        if options.kind == kind:
            raise InvalidParameters(
                f"{project.file.name} has no docker_env, so there is no image for `--env docker`.",
                hint="Leave --env away, or add docker_env with an image to the project.",
            )
        return None
    declared = _declared(project, options)
    lines, notes = locked.usable(project, options, kind)
    exact = [line for line in lines if _DIGEST.search(line)]
    image_id = _image_id(exact) or dockerengine.image_id(declared["image"], quietly=True)
    details = {**declared, "image_id": image_id, **({"locked": exact} if exact else {})}
    return EnvironmentSpec(kind, declared["image"], key_of(kind, details), details, notes)


def build(spec: EnvironmentSpec, project: Project, prefix: Path, report: Report) -> Environment:
    """Have the image (pull it if need be) and hold it by a tag of ours, so that it stays what was recorded.

    Raises:
        BackendError: no engine, or it does not answer; the registry cannot be reached.
        EnvironmentBuildFailed: there is no such image, or the registry refuses it.
    """
    found = engine()
    if found.rootless:
        report("This engine is rootless: a tracking server on this machine's loopback address is out of its reach.")
    image = spec.source
    known = spec.details.get("image_id")
    image_id = dockerengine.image_id(known) if known else ""
    if not image_id and spec.details.get("locked"):
        image_id = _pulled_as_locked(image, spec.details["locked"], report)
    image_id = image_id or dockerengine.image_id(image)
    if not image_id:
        report(f"Pulling {image}")
        _pull(image, report)
        image_id = dockerengine.image_id(image)
    location = f"{dockerengine.BASE_REPOSITORY}:{image_id.removeprefix('sha256:')[:12]}"
    dockerengine.docker("tag", image_id, location)
    return Environment(
        spec=spec,
        location=location,
        arguments={name: spec.details[name] for name in ("environment", "host_variables", "volumes")},
        packages=(f"{image}@{image_id}", *dockerengine.digests(image_id)),
    )


def health(environment: Environment) -> str | None:
    """What is wrong with a built environment: None, or a sentence."""
    if dockerengine.image_id(environment.location):
        return None
    return f"the image {environment.spec.source} ({environment.location}) is no longer in the engine"


def _image_id(lines: Sequence[str]) -> str:
    """The id in the first line of a lock, `image@sha256:…`; the others are digests, as registries know the image."""
    return lines[0].rpartition("@")[2] if lines else ""


def _pulled_as_locked(image: str, lines: Sequence[str], report: Report) -> str:
    """The id of the locked image, pulled by its digest: a tag may mean another one by now."""
    for digest in lines[1:]:
        report(f"Pulling {digest}")
        _pull(digest, report)
        if found := dockerengine.image_id(digest):
            return found
    raise EnvironmentBuildFailed(
        f"The image {lines[0]} of the lock is not in this engine, and no registry has it.",
        hint=f"Bring it here (docker save, docker load), or take today's {image}: --no-lock.",
    )


def _pull(image: str, report: Report) -> None:
    answer = dockerengine.docker("pull", image, check=False, timeout=None, on_line=report)
    if answer.code == 0:
        return
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
    quote = "\n".join(lines[-5:])
    text = quote.lower()
    if "no space left" in text:
        raise DiskFull(
            f"There is no room for the image '{image}'.", hint="`docker system df` says what fills it.", quote=quote
        )
    if any(
        word in text
        for word in ("no such host", "timeout", "refused", "x509", "tls", "proxyconnect", "unreachable", "eof")
    ):
        raise RepositoryUnreachable(
            f"The registry of the image '{image}' cannot be reached.",
            hint="The engine pulls, not you: proxy and certificates belong into its own configuration.",
            quote=quote,
        )
    raise EnvironmentBuildFailed(
        f"The image '{image}' cannot be pulled.",
        hint=f"If its author says to build it: do that (docker build -t {image} …). If it is private: docker login.",
        quote=quote,
    )


def _declared(project: Project, options: BuildOptions) -> dict[str, Any]:
    """Image, environment, host variables, volumes of `docker_env`, each checked; all problems at once."""
    docker = project.environment.docker
    problems: list[tuple[str, str]] = []
    image = docker.get("image")
    if not isinstance(image, str) or not _IMAGE.fullmatch(image) or not is_plain(image):
        problems.append(
            (f"docker_env.image {image!r} is not the name of an image.", "Use NAME, NAME:TAG or NAME@DIGEST.")
        )
    volumes = [volume for volume in _entries(docker, "volumes", problems) if _volume_is_fine(volume, options, problems)]
    environment: dict[str, str] = {}
    host_variables: list[str] = []
    for given in _entries(docker, "environment", problems):
        entry = [str(part) for part in given] if isinstance(given, list | tuple) else [str(given)]
        if not _variable_is_fine(entry, options, problems):
            continue
        if len(entry) == 1:
            host_variables.append(entry[0])
        else:
            environment[entry[0]] = entry[1]
    if problems:
        raise InvalidProject(
            f"docker_env of {project.file.name} asks for what segserve does not hand to docker: {problems[0][0]}",
            hint=problems[0][1],
            findings=[
                Finding("docker-env", Severity.ERROR, message, Place(path=project.file.name), fix)
                for message, fix in problems
            ],
        )
    return {"image": image, "environment": environment, "host_variables": host_variables, "volumes": volumes}


def _entries(docker: Mapping[str, Any], name: str, problems: list[tuple[str, str]]) -> list[Any]:
    value = docker.get(name) or []
    if isinstance(value, list | tuple):
        return list(value)
    problems.append((f"docker_env.{name} is not a list.", "Write one entry per line, each with a dash."))
    return []


def _volume_is_fine(volume: Any, options: BuildOptions, problems: list[tuple[str, str]]) -> bool:
    parts = volume.split(":") if isinstance(volume, str) and is_plain(volume) else []
    if (
        len(parts) not in (2, 3)
        or not all(part.startswith("/") for part in parts[:2])
        or parts[2:] not in ([], ["ro"], ["rw"])
    ):
        problems.append(
            (f"docker_env.volumes {volume!r} is not a plain /host:/container[:ro].", "Write absolute paths.")
        )
        return False
    host, target = Path(parts[0]).resolve(), PurePosixPath(parts[1])
    if not any(host.is_relative_to(Path(allowed).resolve()) for allowed in options.docker_volumes):
        problems.append(
            (
                f"docker_env.volumes wants '{parts[0]}' of this machine.",
                "If you trust this executor with it: docker_volumes under [environments] in config.toml.",
            )
        )
        return False
    if target in SYSTEM_FOLDERS or target.is_relative_to(WORKDIR) or ".." in target.parts:
        problems.append((f"docker_env.volumes would cover '{target}' in the container.", "Mount it somewhere else."))
        return False
    return True


def _variable_is_fine(entry: list[str], options: BuildOptions, problems: list[tuple[str, str]]) -> bool:
    if len(entry) not in (1, 2) or not _VARIABLE.fullmatch(entry[0]) or not all(is_plain(part) for part in entry[1:]):
        problems.append((f"docker_env.environment {entry!r} is not a plain NAME or [NAME, value].", "Use plain words."))
        return False
    if len(entry) == 1 and entry[0] not in options.docker_variables:
        problems.append(
            (
                f"docker_env.environment wants the variable '{entry[0]}' of this machine.",
                "If you trust this executor with it: docker_variables under [environments] in config.toml.",
            )
        )
        return False
    return True
