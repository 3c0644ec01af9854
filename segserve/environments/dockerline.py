"""The one line of shell that MLflow makes of a docker run, and how nothing in it can be read as more than it is.

MLflow joins `docker run …`, the image and the entry point's command **unquoted** into one `bash -c` on the host
(mlflow/projects/backend/local.py; https://github.com/mlflow/mlflow/issues/12475). So MLflow runs a project that we
write (`write_project`): one entry point whose command is quoted for the host's shell and interpreted by the
container's, under a name of its own, so that images of concurrent jobs never share a tag. Every docker argument is ours
and quoted (`launch_arguments`); MLflow takes a dict, so what repeats stands behind the first value of its kind.

The executor sees the job's checkout (over MLflow's copy of the project and at its own path), its inputs and `path`
parameters read-only, the cache, the run's artifact folder and the file for its progress: nothing else of the host.
Paths are the same inside.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from segserve.environments.dockerengine import ATTEMPT_LABEL, attempt_image, engine
from segserve.errors import BackendError, InvalidProject
from segserve.model import GATE_PORTS, Environment, Resources
from segserve.project import EntryPoint

WORKDIR = PurePosixPath("/mlflow/projects/code")  # mlflow.projects.utils.MLFLOW_DOCKER_WORKDIR_PATH
PIDS_LIMIT = 4096
SHARED_MEMORY = "2g"  # the default of 64 MB ends torch data loaders with "bus error"
SYSTEM_FOLDERS = frozenset(
    PurePosixPath("/", name)
    for name in ("", "bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr", "var")
)

# Inside a container without network: its supervisor's unix socket, and the script that hands sockets over it.
GATE, DOORWAY = PurePosixPath("/segserve/gate"), PurePosixPath("/segserve/doorway.py")
_THROUGH_DOORWAY = (
    "p=$(command -v python3 || command -v python); "
    'if [ -z "$p" ]; then echo "Without a network, the image needs Python to reach MLflow." >&2; exit 127; fi; '
    f'exec "$p" {DOORWAY} {GATE}/door 0 "${GATE_PORTS}" "$@"'
)
_PLAIN_COMMAND = re.compile(r"[\w@%+=:,./ -]*", re.ASCII)


def is_plain(word: str) -> bool:
    """Whether a shell reads `word` as one plain word."""
    return shlex.quote(word) == word


def write_project(
    folder: Path, environment: Environment, entry: EntryPoint, *, label: str, shut_in: bool = False
) -> Path:
    """Write the project that MLflow runs for one attempt (`mlflow.projects.run(folder, entry, build_image=True)`).

    `shut_in`: the container has no network, and makes the sockets of the gate before anything else.

    It has the image, the entry point with its parameters, and no code: the checkout is mounted by `launch_arguments`.

    Raises:
        InvalidProject: the command cannot be told apart into text and parameters.
    """
    parameters = {
        name: {"type": str(parameter.type), **({} if parameter.default is None else {"default": parameter.default})}
        for name, parameter in entry.parameters.items()
    }
    through_doorway = f"sh -c {shlex.quote(_THROUGH_DOORWAY)} sh " if shut_in else ""
    content = {
        "name": attempt_image(label),
        "docker_env": {"image": environment.location},
        "entry_points": {entry.name: {"parameters": parameters, "command": through_doorway + container_command(entry)}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "MLproject").write_text(text, encoding="utf-8")
    return folder


def container_command(entry: EntryPoint) -> str:
    """The command of an entry point for MLflow in docker mode: what the shell has to do, the *container's* shell does.

    Plain words stay as they are (no shell needed in the image). Anything else becomes `sh -c '…' sh {a} {b}` with the
    parameters as `"${1}"`, `"${2}"`: what follows `&&`, `;`, `|` or a line break must not run on the host, where
    MLflow's unquoted line would have it. (`project.command` has refused placeholders that do not stand alone.)

    Raises:
        InvalidProject: the command cannot be told apart into text and declared parameters.
    """
    command = entry.command.strip()
    script, names, plain = "", list[str](), True
    for literal, field, form, conversion in _parsed(entry, command):
        script += literal
        plain = plain and _PLAIN_COMMAND.fullmatch(literal) is not None
        if field is None:
            continue
        if field not in entry.parameters or form or conversion:
            raise InvalidProject(f"The command of '{entry.name}' uses {{{field}}}, which is no declared parameter.")
        names.append(field)
        script += f'"${{{len(names)}}}"'
    if plain:
        return command
    quoted = shlex.quote(script).replace("{", "{{").replace("}", "}}")
    return f"sh -c {quoted} sh" + "".join(f" {{{name}}}" for name in names)


def launch_arguments(
    environment: Environment,
    *,
    project: Path,
    checkout: Path,
    inputs: Path | None,
    artifacts: Path | None,
    cache: Path,
    label: str,
    resources: Resources,
    progress: Path | None = None,
    path_mounts: Iterable[Path] = (),
    gpus: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    secrets: Iterable[str] = (),
    gate: tuple[Path, Path] | None = None,
    cache_read_only: bool = False,
    user: str | None = None,
    tracking_uri: str = "",
) -> dict[str, Any]:
    """The `docker_args` of `mlflow.projects.run`; every value is quoted for the shell that MLflow hands it to.

    `project` is the project's folder in `checkout`; `progress` is a file that the executor writes; `path_mounts` are
    further host paths, mounted read-only; `artifacts` is the run's artifact folder where it is local (MLflow mounts it
    itself; we create it, else the engine would, as root). `gpus` are UUIDs. `variables` are set in the container and
    seen in the log; `secrets` are names whose values the container takes from the environment of the `docker` command,
    so that no argument list and no file holds them. `user` is `uid:gid` (default: the caller, so that files can be
    removed), "" leaves it to the image.
    `gate` are the folder of the supervisor's socket and the script for it: then the container has no network.

    Raises:
        BackendError: a path or the tracking address cannot be handed over by MLflow, or the engine does not answer.
    """
    _check_unquoted(artifacts, tracking_uri)
    if artifacts is not None:
        artifacts.mkdir(parents=True, exist_ok=True)
    mounts = _Mounts()
    mounts.add(checkout)
    mounts.add(project, WORKDIR)
    mounts.add(cache, read_only=cache_read_only)
    if progress is not None:
        mounts.add(progress)
    for source, target in zip(gate or (), (GATE, DOORWAY), strict=False):
        mounts.add(source, target, read_only=True)
    for path in ([inputs] if inputs else []) + list(path_mounts):
        mounts.add(path, read_only=True)
    for volume in environment.arguments.get("volumes", ()):
        source, target, mode = [*volume.split(":"), "rw"][:3]
        mounts.add(Path(source), PurePosixPath(target), read_only=mode == "ro")
    user = _caller() if user is None else user
    settings = {**environment.arguments.get("environment", {}), **_own_settings(label, user, gpus), **(variables or {})}
    names = dict.fromkeys([*environment.arguments.get("host_variables", ()), *secrets])
    options: list[tuple[str, str | bool]] = [
        *_CONFINED,
        ("network", "none" if gate else "host"),
        ("label", f"{ATTEMPT_LABEL}={label}"),
        # git only finds the repository of a project in a subdirectory from the path where `.git` is above it.
        ("workdir", str(WORKDIR if project == checkout else project)),
        *([("user", user)] if user else []),
        *_limits(resources),
        *([("gpus", _csv(["device=" + ",".join(gpus)]))] if gpus else []),
        *(("mount", mount) for mount in mounts.rendered()),
        *(("env", f"{name}={value}") for name, value in settings.items()),
        *(("env", name) for name in names),
    ]
    return _as_dict(options)


_CONFINED: tuple[tuple[str, str | bool], ...] = (
    ("init", True),
    ("pull", "never"),  # MLflow has just built the image: one of that name from elsewhere would be another
    ("cap-drop", "ALL"),
    ("security-opt", "no-new-privileges"),
    ("pids-limit", str(PIDS_LIMIT)),
    ("shm-size", SHARED_MEMORY),
    ("log-driver", "none"),  # the output is read as it comes; a copy on the engine's disk has no limit
)


def _own_settings(label: str, user: str, gpus: Sequence[str]) -> dict[str, str]:
    settings = {"SEGSERVE_ATTEMPT": label}
    if user and user.partition(":")[0] not in ("0", "root"):
        # The home of an uid that the image does not know is `/`, where nothing can be written, and it has no name.
        settings |= {"HOME": "/tmp", "USER": "segserve", "LOGNAME": "segserve"}  # noqa: S108 - in the container
    if not gpus:
        # Images of NVIDIA set this to `all`, which an engine whose default runtime is theirs obeys.
        settings["NVIDIA_VISIBLE_DEVICES"] = "void"
    return settings


class _Mounts:
    """Bind mounts by target; one that another already shows is left out."""

    def __init__(self) -> None:
        self.targets: dict[PurePosixPath, tuple[Path, bool]] = {}

    def add(self, source: Path, at: PurePosixPath | None = None, *, read_only: bool = False) -> None:
        target = at or PurePosixPath(source)
        if target in SYSTEM_FOLDERS:
            raise BackendError(
                f"'{target}' would cover the container's own files.", hint="Pass a folder of its own as the parameter."
            )
        if not source.exists():
            raise BackendError(f"'{source}' does not exist, so that docker cannot mount it.")
        if target in self.targets:
            return
        self.targets[target] = (source.resolve(), read_only)

    def rendered(self) -> list[str]:
        """Values of `--mount`; outer folders first."""
        ordered = sorted(self.targets.items(), key=lambda item: item[0].parts)
        return [
            _csv(["type=bind", f"source={source}", f"target={target}", *(["readonly"] if read_only else [])])
            for target, (source, read_only) in ordered
        ]


def _csv(fields: Sequence[str]) -> str:
    """Fields as docker's client reads them (encoding/csv): a comma in a path is quoted."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(fields)
    return stream.getvalue()


def _limits(resources: Resources) -> list[tuple[str, str | bool]]:
    options: list[tuple[str, str | bool]] = []
    if resources.memory_gb > 0:
        size = f"{int(resources.memory_gb * 1024)}m"
        options += [("memory", size), ("memory-swap", size)]  # equal: no swap on top
    if resources.cpus > 0:
        options.append(
            ("cpus", f"{min(resources.cpus, float(os.cpu_count() or 1)):g}")
        )  # docker refuses more than there are
    return options


def _caller() -> str:
    """The user that files of the container shall belong to: us; in a rootless engine, its root is us."""
    return "0:0" if engine().rootless else f"{os.getuid()}:{os.getgid()}"


def _as_dict(options: Iterable[tuple[str, str | bool]]) -> dict[str, Any]:
    """Options as MLflow's dict: it renders `--name value`, so what repeats goes behind the first value, quoted."""
    rendered: dict[str, Any] = {}
    for name, value in options:
        if isinstance(value, bool):
            rendered[name] = value
        elif name in rendered:
            rendered[name] += f" --{name} {shlex.quote(value)}"
        else:
            rendered[name] = shlex.quote(value)
    return rendered


def _check_unquoted(artifacts: Path | None, tracking_uri: str) -> None:
    """Two things MLflow puts on the line itself: the artifact folder (`-v`) and the tracking address (`-e`)."""
    if artifacts is not None and (not is_plain(str(artifacts)) or ":" in str(artifacts)):
        raise BackendError(
            f"MLflow cannot mount the artifact folder '{artifacts}': its path has characters that a shell would read.",
            hint="Set SEGSERVE_HOME to a path without blanks and punctuation.",
        )
    if not is_plain(tracking_uri or "x"):
        raise BackendError(
            "MLflow cannot hand this tracking address to a container: it has characters that a shell would read.",
            hint="Use one without user, query and blanks; credentials go into MLFLOW_TRACKING_USERNAME and _PASSWORD.",
        )


def _parsed(entry: EntryPoint, command: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(command))
    except ValueError as error:
        raise InvalidProject(
            f"The command of '{entry.name}' has unbalanced braces: {error}.",
            hint="Double braces that are meant as text.",
        ) from None
