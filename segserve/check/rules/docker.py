"""`docker_env`: what MLflow drops without a word, and what nobody should hand to a container."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from segserve.check.repository import Repository
from segserve.environments.dockerline import SYSTEM_FOLDERS, is_plain
from segserve.findings import Finding, Place, Rule, Severity

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

UNPINNED = Rule(
    "docker-unpinned-image",
    _W,
    "The image has no tag, or the tag latest: tomorrow it is another one.",
    "Name a version: image: name:1.2.3.",
)
DIGEST = Rule(
    "docker-digest",
    _N,
    "The image is named by its digest alone: plain MLflow cannot build upon one without a tag.",
    "Name a tag; segserve.lock records the digest.",
)
SHELL = Rule(
    "docker-shell-characters",
    _E,
    "MLflow hands this to a shell of the host without quotes, so that it could run commands (mlflow#12475).",
    "Use plain words: letters, digits, and _ @ % + = : , . / -.",
)
VOLUME = Rule(
    "docker-volume",
    _W,
    "The container wants a folder of the host, which exists on one machine at best and needs the user's consent.",
    "Take it as a parameter of the type path.",
)
DANGEROUS = Rule(
    "docker-dangerous-volume",
    _E,
    "The container wants a folder of the system, or docker's own socket: that is the whole machine.",
    "Remove the volume.",
)
VARIABLE = Rule(
    "docker-host-variable",
    _W,
    "The container wants a variable of the host, which is dropped unless the user allows it by name.",
    "Make it a parameter, or give it a value: [NAME, value].",
)
IGNORED = Rule(
    "docker-ignored-files",
    _W,
    "With docker_env, MLflow ignores an environment file that lies beside it.",
    "Install its contents in the image and remove the file, or use it instead of docker_env.",
)
RULES = (UNPINNED, DIGEST, SHELL, VOLUME, DANGEROUS, VARIABLE, IGNORED)


def find(repository: Repository) -> Iterator[Finding]:
    """Everything about docker_env, if there is one."""
    project = repository.project
    if project is None or project.environment.kind != "docker":
        return
    docker = project.environment.docker
    where = repository.find(repository.project_file, "image:", behind="docker_env:")
    yield from _image(str(docker.get("image", "")), where)
    yield from _volumes(docker, repository)
    yield from _variables(docker, repository)
    for name in ("conda.yaml", "python_env.yaml"):
        if repository.shown(name) in repository.files:
            yield IGNORED.at(f"{name} is ignored.", Place(repository.shown(name), 1, 1))


def _image(image: str, where: Place) -> Iterator[Finding]:
    name = image.rpartition("/")[2]
    if not is_plain(image):
        yield SHELL.at(f"The image {image!r} is no plain word.", where)
    elif "@sha256:" in image:
        yield DIGEST.at(f"{image[:60]}… has no tag.", where)
    elif ":" not in name or name.endswith(":latest"):
        yield UNPINNED.at(f"{image} can be any version.", where)


def _volumes(docker: Mapping[str, Any], repository: Repository) -> Iterator[Finding]:
    for volume in docker.get("volumes") or []:
        text = str(volume)
        where = repository.find(repository.project_file, text, behind="volumes:")
        source = re.sub(r"/+$", "", text.split(":", maxsplit=1)[0]) or "/"
        if not is_plain(text):
            yield SHELL.at(f"The volume {text!r} is no plain word.", where)
        elif source == "/var/run/docker.sock" or source in {str(folder) for folder in SYSTEM_FOLDERS} | {
            "/root",
            "/home",
        }:
            yield DANGEROUS.at(f"{source} of the host is asked for.", where)
        else:
            yield VOLUME.at(f"{source} of the host is asked for.", where)


def _variables(docker: Mapping[str, Any], repository: Repository) -> Iterator[Finding]:
    for entry in docker.get("environment") or []:
        words = [str(part) for part in entry] if isinstance(entry, list | tuple) else [str(entry)]
        where = repository.find(repository.project_file, words[0], behind="environment:")
        if not all(is_plain(word) for word in words):
            yield SHELL.at(f"The variable {words[0]!r} has something that is no plain word.", where)
        elif len(words) == 1:
            yield VARIABLE.at(f"{words[0]} of the host is asked for.", where)
