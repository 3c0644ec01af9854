"""The docker engine, through its own client: does it answer, what has it, and what of ours has to go."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from segserve import process
from segserve.errors import BackendError

ATTEMPT_LABEL = "segserve.attempt"
BASE_REPOSITORY = "segserve/base"  # tags that hold the images of environments, by image id
JOB_REPOSITORY = "segserve/job-"  # + attempt: what MLflow builds for one attempt, removed with it
_QUICK_S = 30.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A docker engine that answers."""

    version: str
    rootless: bool


def engine() -> Engine:
    """The engine that answers.

    Raises:
        BackendError: docker is missing, not running, not ours to use, or on another machine.
    """
    host = client_variables().get("DOCKER_HOST", "unix://")
    if not host.startswith(("unix://", "npipe://")):
        raise BackendError(
            f"The docker engine is on another machine ({host}).",
            hint="Inputs and results live on this one: unset DOCKER_HOST, or `docker context use default`.",
        )
    answer = docker("info", "--format", "{{.ServerVersion}}\t{{json .SecurityOptions}}", check=False)
    version, _, security = answer.stdout.strip().partition("\t")
    if answer.code != 0 or not version:
        raise _no_engine(answer.stderr.strip() or answer.stdout.strip())
    return Engine(version, "name=rootless" in security)


def client_variables() -> dict[str, str]:
    """What a `docker` command (and docker-py, which MLflow uses) needs from our environment to reach the same engine.

    docker-py knows nothing of `docker context`: the address of the chosen context is given as DOCKER_HOST.
    """
    names = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")
    return dict(_client_variables(tuple((name, os.environ[name]) for name in names if os.environ.get(name))))


def kill(label: str) -> int:
    """Remove the containers of an attempt, running or not, and the image that was built for it; how many containers.

    Raises:
        BackendError: the engine does not answer, or a container does not go away.
    """
    found: set[str] = set()
    # The engine may still be creating one on behalf of a `docker run` that is dead: look twice.
    for round_ in range(10):
        containers = _lines("ps", "-aq", "--no-trunc", "--filter", f"label={ATTEMPT_LABEL}={label}")
        if not containers and round_ > 0:
            break
        found.update(containers)
        if containers:
            docker("rm", "--force", "--volumes", *containers, check=False)
    else:
        raise BackendError(
            f"The container of {label} does not go away.",
            hint=f"Remove it by hand: docker rm -f {' '.join(containers)}",
        )
    _remove_images(attempt_image(label))
    return len(found)


def collect_garbage(keep: Iterable[str], *, older_than_s: float = 86_400.0) -> list[str]:
    """Remove what no environment in `keep` (locations) and no running attempt needs; the names of what was removed.

    Stopped containers of ours, images of attempts older than `older_than_s`, tags that hold images of removed
    environments (the image itself stays when another tag has it).
    """
    kept = set(keep)
    stopped = _lines(
        "ps", "-aq", "--filter", f"label={ATTEMPT_LABEL}", "--filter", "status=exited", "--filter", "status=dead"
    )
    removed = [name for name in stopped if docker("rm", name, check=False).code == 0]
    names = _images(f"{JOB_REPOSITORY}*") + [name for name in _images(BASE_REPOSITORY) if name not in kept]
    old = [name for name in names if _age_s(name) > older_than_s or name.startswith(BASE_REPOSITORY)]
    return removed + [name for name in old if docker("rmi", name, check=False).code == 0]


def attempt_image(label: str) -> str:
    """The name of the image that MLflow builds for one attempt."""
    return JOB_REPOSITORY + re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _no_engine(text: str) -> BackendError:
    if "permission denied" in text.lower():
        return BackendError(
            "This user may not use the docker engine.",
            hint="Ask the administrator to add you to the group `docker` (then log in again), or use rootless docker.",
            quote=text,
        )
    return BackendError(
        "The docker engine does not answer.",
        hint="Start it (`sudo systemctl start docker`), or set DOCKER_HOST to the one that runs.",
        quote=text,
    )


def docker(
    *words: str, check: bool = True, timeout: float | None = _QUICK_S, on_line: Callable[[str], None] | None = None
) -> process.Completed:
    """Run the docker client. The sentence for a client that is missing or silent is said here."""
    try:
        env = {**os.environ, **client_variables()}
        return process.run(["docker", *words], check=check, timeout=timeout, on_line=on_line, env=env)
    except FileNotFoundError:
        raise BackendError(
            "This executor wants docker, and there is no docker on this machine.",
            hint="Install it: https://docs.docker.com/engine/install/ .",
        ) from None
    except process.CommandTimedOut as error:
        raise BackendError(f"The docker engine does not answer within {timeout:g} s.", quote=str(error)) from None
    except process.CommandFailed as error:
        raise BackendError(f"docker {words[0]} failed.", quote=str(error)) from None


@lru_cache(maxsize=8)
def _client_variables(given: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    variables = dict(given)
    if "DOCKER_HOST" not in variables:
        try:
            words = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
            answer = process.run(words, check=False, timeout=_QUICK_S)
        except FileNotFoundError:
            return given
        if answer.code == 0 and answer.stdout.strip():
            variables["DOCKER_HOST"] = answer.stdout.strip()
    variables.pop("DOCKER_CONTEXT", None)  # DOCKER_HOST says it; both at once make the client warn
    return tuple(variables.items())


def _lines(*words: str) -> list[str]:
    return docker(*words).stdout.split()


def image_id(image: str, *, quietly: bool = False) -> str:
    """`sha256:…` of an image that the engine has, else "". `quietly`: no engine is no error."""
    try:
        answer = docker("image", "inspect", "--format", "{{.Id}}", image, check=False)
    except BackendError:
        if quietly:
            return ""
        raise
    if answer.code != 0 and "no such image" not in answer.stderr.lower() and not quietly:
        raise _no_engine(answer.stderr.strip())
    return answer.stdout.strip() if answer.code == 0 else ""


def digests(image_id: str) -> list[str]:
    """`repository@sha256:…` as registries know the image; nothing for one that was made here."""
    return sorted(json.loads(docker("image", "inspect", "--format", "{{json .RepoDigests}}", image_id).stdout) or [])


def _images(reference: str) -> list[str]:
    return _lines("image", "ls", "--filter", f"reference={reference}", "--format", "{{.Repository}}:{{.Tag}}")


def _remove_images(reference: str) -> None:
    names = _images(reference)
    if names:
        docker("rmi", *names, check=False)


def _age_s(image: str) -> float:
    answer = docker("image", "inspect", "--format", "{{.Created}}", image, check=False)
    if answer.code != 0:
        return 0.0
    created = datetime.fromisoformat(answer.stdout.strip()[:19]).replace(tzinfo=UTC)  # always UTC, nanoseconds cut off
    return (datetime.now(UTC) - created).total_seconds()
