"""What runs inside the supervisor's thread: the project, through mlflow."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segserve import tracking
from segserve.model import CONTAINER_LABEL, COOKIE, LaunchPlan

# mlflow.projects works without them (mlflow-skinny is mlflow without them), and they are half of its import time.
_UNNEEDED = ("pandas", "scipy", "numpy")
_FOR_US_ALONE = ("PYTHONPATH",)
_FOR_DOCKER_ALONE = ("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")


def preload() -> None:
    """Import mlflow.projects and what its local backend will need."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    blocked = [name for name in _UNNEEDED if name not in sys.modules]
    for name in blocked:
        sys.modules[name] = None  # type: ignore[assignment]  # `import` fails as if it were not installed
    try:
        _import()
        blocked_well = True
    except ImportError:  # an mlflow that cannot do without
        blocked_well = False
    finally:
        for name in blocked:
            del sys.modules[name]
        del os.environ["GIT_PYTHON_REFRESH"]
    if not blocked_well:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
            del sys.modules[name]
        _import()


def _import() -> None:
    import mlflow.projects
    import mlflow.projects.backend.local
    import mlflow.store.tracking.rest_store  # noqa: F401


def enter(plan: LaunchPlan, gate: Mapping[str, str]) -> dict[str, str]:
    """Make this process's environment the executor's: mlflow hands all of it on. `gate` is how it reaches MLflow.

    Returns what is set inside of the walls only, if there are any: what packages and a conda.yaml say (a PATH on which
    they have a `git` or `bwrap` of their own, LD_PRELOAD), nothing outside must heed.
    """
    walled = plan.sandbox is not None and plan.docker_args is None
    path = os.pathsep.join([*plan.path, os.environ.get("PATH", os.defpath)])
    variables = {name: value for name, value in plan.variables.items() if name not in gate}
    for name in (*_FOR_US_ALONE, *(() if plan.docker_args is not None else _FOR_DOCKER_ALONE)):
        os.environ.pop(name, None)
    os.environ.update(
        {
            COOKIE: plan.cookie,
            "CUDA_VISIBLE_DEVICES": ",".join(plan.gpus),  # empty: none, whatever the machine has
            "PYTHONUNBUFFERED": "1",  # the log is followed live
            "PYTHONNOUSERSITE": "1",  # a conda Python would prefer ~/.local to its own packages
            "TERM": "dumb",
            **(tracking.on_loopback() if walled else variables),
            **gate,
        }
    )
    if walled:
        return {**variables, "PATH": path}
    os.environ["PATH"] = path
    return {}


def run(plan: LaunchPlan, storage: Path) -> None:
    """Run the project to its end. Raises whatever mlflow raises; see `exit_code`."""
    import mlflow
    import mlflow.projects

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])  # the gate, for mlflow itself as for the executor
    docker: dict[str, Any] = {}
    if plan.docker_args is not None:
        docker = {"build_image": True, "docker_args": docker_arguments(plan)}
    mlflow.projects.run(
        uri=plan.project,
        entry_point=plan.entry,
        parameters=dict(plan.parameters),
        experiment_id=plan.experiment_id,
        run_id=plan.run_id,
        env_manager="local",
        storage_dir=str(storage),
        synchronous=True,
        **docker,
    )


def docker_arguments(plan: LaunchPlan) -> dict[str, Any]:
    """The plan's arguments, with the label by which the container is found again, and the leased GPUs by UUID.

    mlflow joins them, unquoted, into a line for bash; docker wants a list of devices in quotes of its own.
    """
    arguments = {**(plan.docker_args or {}), "label": f"{CONTAINER_LABEL}={plan.cookie}"}
    if plan.gpus:
        arguments.setdefault("gpus", f"""'"device={",".join(plan.gpus)}"'""")
    return arguments


def exit_code(error: BaseException | None) -> int | None:
    """What the executor's shell ended with (negative: a signal), by the exception that `run` ended with.

    mlflow says no more than "Run … failed", but the process is still to be found in the frames of that exception. None:
    the executor never started, or the code is not known.
    """
    if error is None:
        return 0
    for frame, _ in traceback.walk_tb(error.__traceback__):
        command = getattr(frame.f_locals.get("submitted_run_obj"), "command_proc", None)
        if command is not None and command.returncode is not None:
            return int(command.returncode)
    return None


def explain(error: BaseException, code: int | None) -> str:
    """One sentence on how the executor failed."""
    import signal

    if code is None:
        return f"MLflow could not run the project: {type(error).__name__}: {error}"
    number = -code if code < 0 else code - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"The executor was ended by {signal.Signals(number).name} (exit code {code})."
    return f"The executor ended with exit code {code}."
