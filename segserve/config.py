"""Settings: everything that the person or the admin decides once.

`config.toml`, over it variables (`SEGSERVE_SERVER__PORT` is `port` of `[server]`), over both the flags of a command.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from segserve import refs
from segserve.errors import UsageError
from segserve.model import write_atomically
from segserve.refs import SHORT_NAME

_PREFIX = "SEGSERVE_"
SLUG = r"^[a-z0-9][a-z0-9_-]{0,99}$"


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
    cpu_fallback: Annotated[bool, Field(description="run on the CPU what torch cannot run on the GPU")] = False
    keep: Annotated[bool, Field(description="keep checkout and staged images of finished jobs")] = False


class QueueSettings(_Section):
    """`[queue]`: jobs that wait for `segserve serve` to drive them."""

    tries: Annotated[int, Field(ge=1, description="how often a job is begun, when machine or network fail it")] = 3
    backoff_s: Annotated[float, Field(gt=0, description="seconds before the second try; doubled each time")] = 5.0
    longest_backoff_s: Annotated[float, Field(gt=0, description="at most so long between two tries")] = 300.0
    lease_s: Annotated[float, Field(gt=0, description="a worker that says nothing for so long is replaced")] = 60.0
    reuse_results: Annotated[
        bool, Field(description="a user's same request again gets the earlier result, of deterministic executors")
    ] = False
    cpu_slots: Annotated[int, Field(ge=0, description="jobs without GPU at a time; 0 = by memory and cores")] = 0
    slot_memory_gb: Annotated[float, Field(gt=0, description="memory that one CPU slot stands for")] = 4.0


_Origin = Annotated[str, Field(pattern=r"^https?://[^/?#@\s*]+$")]


class ServerSettings(_Section):
    """`[server]`: what `segserve serve` listens to, and what it takes."""

    host: Annotated[str, Field(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on, 0 = any that is free")] = 8000
    root_path: Annotated[str, Field(pattern=r"^(/[^/?#]+)*$", description="path below which a proxy shows it")] = ""
    max_body_mb: Annotated[int, Field(ge=1, description="the largest body that is taken, in MiB")] = 4096
    max_images: Annotated[int, Field(ge=1, description="the most images of one request")] = 10_000
    max_megapixels: Annotated[float, Field(gt=0, description="the most of one image, in 10^6 pixels")] = 400.0
    max_connections: Annotated[int, Field(ge=2, description="the most requests that are answered at a time")] = 1000
    max_streams: Annotated[int, Field(ge=1, description="the most jobs that one user follows at a time")] = 100
    max_waiting: Annotated[
        int, Field(ge=1, description="the most requests of one user that wait for a result (SegServe routes, /process)")
    ] = 100
    patience_s: Annotated[float, Field(gt=0, description="a client that sends nothing for so long is given up")] = 30.0
    sync_wait_s: Annotated[float, Field(gt=0, description="SegServe routes wait so long for a result")] = 540.0
    log: Annotated[Literal["text", "json"], Field(description="json: a line for each request, too")] = "text"
    mlflow: Annotated[Literal["read", "admin"], Field(description="the scope for looking at /mlflow")] = "read"
    hosts: Annotated[tuple[str, ...], Field(description="names by which it is called")] = ()
    origins: Annotated[tuple[_Origin, ...], Field(description="pages that may call it, as https://host[:port]")] = ()
    proxies: Annotated[tuple[str, ...], Field(description="addresses whose X-Forwarded-For and -Proto count")] = ()


class RepositorySettings(_Section):
    """`[repositories]`: what those may run who are not the local user."""

    allow: Annotated[
        tuple[Annotated[str, AfterValidator(refs.check_pattern)], ...],
        Field(description="addresses; one with a slash behind stands for everything below it"),
    ] = ()


class UserQuotaSettings(_Section):
    """`[quotas.users.<name>]`: for one user, instead of what holds for all."""

    open_jobs: Annotated[int | None, Field(ge=0, description="jobs that may be open at a time, 0 = no limit")] = None
    upload_gb_per_day: Annotated[float | None, Field(ge=0, description="uploads in GiB, 0 = no limit")] = None


class QuotaSettings(_Section):
    """`[quotas]`: for each user who is no administrator; all open clients together are the user `open`."""

    open_jobs: Annotated[int, Field(ge=0, description="jobs that may be open at a time, 0 = no limit")] = 1000
    upload_gb_per_day: Annotated[float, Field(ge=0, description="uploads in 24 hours in GiB, 0 = no limit")] = 500.0
    users: Annotated[dict[str, UserQuotaSettings], Field(description="other limits for some")] = {}


class OpenClientSettings(_Section):
    """`[open_clients]`: who may use the SegServe routes without a token."""

    networks: Annotated[tuple[IPv4Network | IPv6Network, ...], Field(description="their addresses; none: nobody")] = ()


class FetchSettings(_Section):
    """`[fetch]`: images that a request names by URL."""

    allow: Annotated[
        tuple[str, ...], Field(description="hosts, addresses, networks that may be reached although they are private")
    ] = ()
    only: Annotated[tuple[str, ...], Field(description="if any: nothing but these hosts and networks is reached")] = ()
    ports: Annotated[tuple[int, ...], Field(description="ports of hosts that `allow` does not name")] = (80, 443)
    max_mb: Annotated[float, Field(gt=0, description="the largest file, in MiB")] = 200.0
    max_megapixels: Annotated[float, Field(gt=0, description="the largest image, in millions of pixels")] = 200.0
    timeout_s: Annotated[float, Field(gt=0, description="time limit per file in seconds")] = 30.0


class RetentionSettings(_Section):
    """`[retention]`: what is kept of jobs that have ended, on the disk of this machine."""

    days: Annotated[float, Field(ge=0, description="their folders and results go after so long, 0 = never")] = 0.0
    max_gb: Annotated[float, Field(ge=0, description="the oldest go while all have more, 0 = no limit")] = 0.0


class SandboxSettings(_Section):
    """`[sandbox]`: how executors are shut in, beside those that bring an image for docker."""

    kind: Annotated[
        Literal["auto", "none", "bubblewrap"],
        Field(description="bubblewrap, none, or auto: bubblewrap for the jobs of all but the local user"),
    ] = "auto"
    memory_gb: Annotated[float, Field(ge=0, description="of all processes of a job together, 0 = no limit")] = 0.0
    processes: Annotated[int, Field(ge=0, description="the most processes and threads of a job, 0 = no limit")] = 4096
    output_gb: Annotated[float, Field(ge=0, description="what a job may write and upload, 0 = no limit")] = 200.0
    control_groups: Annotated[bool, Field(description="let the kernel heed memory and processes, where it can")] = True
    allow: Annotated[
        tuple[str, ...], Field(description="hosts, addresses, networks for executors with a network, if not public")
    ] = ()


class ClientSettings(_Section):
    """`[client]`: servers that commands are sent to with `--server`."""

    tokens: Annotated[dict[str, str], Field(description="address of a server → token for it")] = {}


class ExecutorSettings(_Section):
    """`[executors.<name>]`: what a short name stands for."""

    ref: Annotated[str, Field(min_length=1, description="the reference, as `segserve run` takes it")]
    description: Annotated[str, Field(description="for `segserve executors list`")] = ""
    network: Annotated[
        Literal["none", "first-run", "always"], Field(description="what it gets of the network in a sandbox")
    ] = "none"
    prewarm: Annotated[bool, Field(description="`segserve serve` builds its environment before anybody asks")] = True


_Slug = Annotated[str, Field(pattern=SLUG)]
_Name = Annotated[str, Field(pattern=rf"^{SHORT_NAME.pattern}$")]


_Folder = Annotated[str, Field(pattern=r"^/")]


class StageSettings(_Section):
    """One of `[[pipelines.<slug>.stages]]`: an executor, and how it is used."""

    executor: Annotated[str, Field(min_length=1, description="short name or reference, as `segserve run` takes it")]
    entry_point: Annotated[str | None, Field(description="if the reference does not say it")] = None
    key: Annotated[str | None, Field(pattern=SLUG, description="the algorithm's name for programs")] = None
    name: Annotated[str, Field(description="the algorithm's name for people")] = ""
    description: Annotated[str, Field(description="what it does")] = ""
    kind: Annotated[
        Literal["localizer", "detector", "classifier"] | None, Field(description="instead of what its manifest says")
    ] = None
    classes: Annotated[tuple[str, ...], Field(description="instead of those in its manifest")] = ()
    version: Annotated[int, Field(ge=0, description="of the algorithm")] = 1
    batch_size: Annotated[int, Field(ge=1, le=10_000, description="images or crops at once")] = 1
    parameters: Annotated[dict[str, str | int | float | bool], Field(description="of the entry point")] = {}
    config: Annotated[tuple[str, ...], Field(description="parameters that a request may set")] = ()
    margin: Annotated[int, Field(ge=0, le=10_000, description="pixels around a box that its crop has besides")] = 0
    error_name: Annotated[str, Field(pattern=r"^\w+$", description="what its failures are called")] = "StageError"


class PipelineSettings(_Section):
    """`[pipelines.<slug>]`: a chain of executors, as one pipeline of the service."""

    name: Annotated[str, Field(description="its name for people")] = ""
    version: Annotated[int, Field(ge=0, description="counts up whenever its answers change")] = 1
    description: Annotated[str, Field(description="what it does")] = ""
    stages: Annotated[tuple[StageSettings, ...], Field(min_length=1, max_length=20)]


class ServiceSettings(_Section):
    """`[service]`: the processing service that pipelines make."""

    name: Annotated[str, Field(min_length=1, description="what it is called")] = "segserve"
    description: Annotated[str, Field(description="what it says of itself")] = ""
    idle_s: Annotated[float, Field(gt=0, description="stages end after so long without a request")] = 300.0
    residents: Annotated[int, Field(ge=1, description="pipelines that may be loaded at a time")] = 4
    gpus: Annotated[str, Field(description="that the stages of one pipeline share: a number, auto or none")] = "auto"
    max_images: Annotated[int, Field(ge=1, description="the most images of one request")] = 1000


class Settings(_Section):
    """The whole file."""

    executors: Annotated[
        dict[_Name, ExecutorSettings | str | Literal[False]],
        Field(description="short name → reference; false hides one that comes with segserve"),
    ] = {}

    environments: EnvironmentSettings = EnvironmentSettings()
    tracking: TrackingSettings = TrackingSettings()
    run: RunSettings = RunSettings()
    queue: QueueSettings = QueueSettings()
    server: ServerSettings = ServerSettings()
    client: ClientSettings = ClientSettings()
    fetch: FetchSettings = FetchSettings()
    sandbox: SandboxSettings = SandboxSettings()
    retention: RetentionSettings = RetentionSettings()
    repositories: RepositorySettings = RepositorySettings()
    open_clients: OpenClientSettings = OpenClientSettings()
    quotas: QuotaSettings = QuotaSettings()
    data_roots: Annotated[
        dict[_Folder, tuple[str, ...]], Field(description='folder → users who may name what is in it; "*": all')
    ] = {}
    service: ServiceSettings = ServiceSettings()
    pipelines: Annotated[dict[_Slug, PipelineSettings], Field(description="slug → chain of executors")] = {}


def default_path() -> Path:
    """`$SEGSERVE_CONFIG`, else `config.toml` in the platform's configuration folder."""
    configured = os.environ.get("SEGSERVE_CONFIG")
    if configured:
        return Path(configured).expanduser()
    return Path(platformdirs.user_config_dir("segserve")) / "config.toml"


def load(path: Path | None = None) -> Settings:
    """Read the settings; no file at the default place means defaults. Variables win over the file.

    Raises:
        UsageError: the file that was asked for does not exist, or something is malformed; every wrong key is named.
    """
    chosen = path or default_path()
    if not chosen.exists() and (path is not None or os.environ.get("SEGSERVE_CONFIG")):
        raise UsageError(
            f"There is no configuration file '{chosen}'.", hint="--config and SEGSERVE_CONFIG name one that exists."
        )
    try:
        values = tomllib.loads(chosen.read_text(encoding="utf-8")) if chosen.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{chosen} is not TOML: {error}.", hint="Correct it, or move it away; docs/configuration.md has examples."
        ) from None
    except OSError as error:
        raise UsageError(
            f"{chosen} cannot be read: {error.strerror}.", hint="The configuration is a file, config.toml."
        ) from None
    variables = _variables()
    try:
        return Settings.model_validate(_over(values, variables))
    except ValidationError as error:
        problems = "; ".join(_problem(entry, variables) for entry in error.errors())
        place = "" if problems.startswith(_PREFIX) else f"{chosen}: "
        raise UsageError(f"{place}{problems}.", hint="docs/configuration.md lists every key.") from None


def _problem(entry: Any, variables: dict[str, Any]) -> str:
    named = _named(entry["loc"], variables)
    return f"{named}: there is no such key" if entry["type"] == "extra_forbidden" else f"{named}: {entry['msg']}"


def _variables() -> dict[str, Any]:
    """What variables set: `SEGSERVE_<SECTION>__<KEY>`; lists and tables as JSON.

    Raises:
        UsageError: there is no such section, or a value is no JSON.
    """
    given = [name for name in os.environ if name.upper().startswith(_PREFIX) and "__" in name]
    if not given:  # the library is imported only where it is needed: it costs as much as all the rest of a command
        return {}
    from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

    for name in given:
        section = name[len(_PREFIX) :].partition("__")[0].lower()
        if section not in Settings.model_fields:
            raise UsageError(f"{name}: there is no section [{section}].", hint="docs/configuration.md lists every key.")

    class Variables(BaseSettings, Settings):
        model_config = SettingsConfigDict(
            env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=False
        )

    try:
        found = EnvSettingsSource(Variables)()
    except SettingsError as error:
        raise UsageError(f"A variable {_PREFIX}…: {error}.", hint="Lists and tables are written as JSON.") from None
    sections = {name[len(_PREFIX) :].partition("__")[0].lower() for name in given}
    return {name: value for name, value in found.items() if name in sections}


def _over(values: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _over(values[name], above[name]) for name in values.keys() & above.keys() if _tables(values, above, name)
    }
    return {**values, **above, **both}


def _tables(values: dict[str, Any], above: dict[str, Any], name: str) -> bool:
    return isinstance(values[name], dict) and isinstance(above[name], dict)


def _named(location: tuple[int | str, ...], variables: dict[str, Any]) -> str:
    """A key as whoever set it has written it."""
    at: Any = variables
    for part in location:
        if not isinstance(at, dict) or part not in at:
            return ".".join(str(part) for part in location)
        at = at[part]
    return _PREFIX + "__".join(str(part).upper() for part in location)


def with_flags(server: ServerSettings, flags: Mapping[str, Any]) -> ServerSettings:
    """`[server]` under the flags of a command.

    Raises:
        UsageError: with every flag that is wrong.
    """
    try:
        return ServerSettings.model_validate({**server.model_dump(), **flags})
    except ValidationError as error:
        wrong = {str(entry["loc"][0]): entry["msg"] for entry in error.errors()}
        problems = "; ".join(f"--{key.replace('_', '-')} '{flags.get(key, '')}': {msg}" for key, msg in wrong.items())
        raise UsageError(
            f"{problems}.", hint="A path begins with a slash and does not end with one: /segserve"
        ) from None


def edit_executor(path: Path, name: str, value: str | dict[str, str] | bool | None) -> None:
    """Set what a short name stands for in the file (made if need be), or take it out (None). All else stays as it is.

    Raises:
        UsageError: the file is malformed or cannot be written.
    """
    import tomlkit  # takes longer than all the rest of this module

    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        document = tomlkit.parse(text)
        table: Any = document.setdefault("executors", tomlkit.table())
        table.pop(name, None)
        if isinstance(value, dict):
            table[name] = tomlkit.inline_table()
            table[name].update(value)
        elif value is not None:
            table[name] = value
        if not table:
            document.pop("executors")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path.resolve(), tomlkit.dumps(document))
    except (tomlkit.exceptions.TOMLKitError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}.", hint="Correct it first.") from None
    except OSError as error:
        raise UsageError(
            f"'{path}' cannot be written: {error.strerror}.", hint="--config names another file."
        ) from None
