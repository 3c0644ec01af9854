"""Settings from `config.toml`: everything that the person or the admin decides once. Flags of a command win over it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segserve.errors import UsageError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EnvironmentSettings(_Section):
    """`[environments]`: where packages come from and what docker may see."""

    channels: Annotated[tuple[str, ...], Field(description="conda channels used instead of the file's own")] = ()
    mirrors: Annotated[dict[str, str], Field(description="channel name or URL → URL to use for it")] = {}
    keep_defaults: Annotated[bool, Field(description="use Anaconda's `defaults` channel as it is")] = False
    docker_volumes: Annotated[tuple[str, ...], Field(description="host paths that a project may mount")] = ()
    docker_variables: Annotated[tuple[str, ...], Field(description="host variables that a project may copy")] = ()


class TrackingSettings(_Section):
    """`[tracking]`: the embedded MLflow server."""

    idle_minutes: Annotated[float, Field(gt=0, description="it stops after so long without a request")] = 15.0
    experiment: Annotated[str, Field(min_length=1, description="MLflow experiment of new runs")] = "segserve"


class RunSettings(_Section):
    """`[run]`: defaults of `segserve run`."""

    results: Annotated[str, Field(min_length=1, description="folder for results")] = "segserve-results"
    timeout_s: Annotated[float, Field(ge=0, description="time limit per attempt in seconds, 0 = none")] = 0.0
    keep: Annotated[bool, Field(description="keep checkout and staged images of finished jobs")] = False


class Settings(_Section):
    """The whole file."""

    environments: EnvironmentSettings = EnvironmentSettings()
    tracking: TrackingSettings = TrackingSettings()
    run: RunSettings = RunSettings()


def default_path() -> Path:
    """`$SEGSERVE_CONFIG`, else `config.toml` in the platform's configuration folder."""
    configured = os.environ.get("SEGSERVE_CONFIG")
    if configured:
        return Path(configured).expanduser()
    return Path(platformdirs.user_config_dir("segserve")) / "config.toml"


def load(path: Path | None = None) -> Settings:
    """Read the settings; no file at the default place means defaults.

    Raises:
        UsageError: the file that was asked for does not exist, or it is malformed; every wrong key is named.
    """
    chosen = path or default_path()
    if not chosen.exists():
        if path is not None or os.environ.get("SEGSERVE_CONFIG"):
            raise UsageError(f"There is no configuration file '{chosen}'.")
        return Settings()
    try:
        return Settings.model_validate(tomllib.loads(chosen.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{chosen} is not TOML: {error}.") from None
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}" for entry in error.errors()
        )
        raise UsageError(f"{chosen}: {problems}.", hint="docs/configuration.md lists every key.") from None
