"""Every path is named here once. Nobody else joins strings.

$SEGSERVE_HOME/
  segserve.db  mlflow.db  mlartifacts/  tracking.json  tokens.json  sessions.json
  repos/<key>.git  reuse/<key>.json  envs/<key>/  cache/  tmp/
  jobs/<id>/{job.json, facts.json, segserve.lock, uploads/, inputs/, inputs.json, fetched/, serve/, result/, previews/,
              lock}
  jobs/<id>/<attempt>/{attempt.json, checkout/, log, progress, supervisor.json, group.json, heartbeat.json,
                       outcome.json}
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs


@dataclass(frozen=True, slots=True)
class AttemptDir:
    """One attempt at a job: all that its supervisor reads and writes."""

    path: Path

    @property
    def plan(self) -> Path:
        """What to launch (`model.LaunchPlan` as JSON), written by the pipeline before the start."""
        return self.path / "attempt.json"

    @property
    def checkout(self) -> Path:
        """The repository at the pinned commit; the only writable copy that the executor sees."""
        return self.path / "checkout"

    @property
    def log(self) -> Path:
        """stdout and stderr of MLflow and executor, redacted."""
        return self.path / "log"

    @property
    def supervisor(self) -> Path:
        """Identity of the supervisor process (pid, start time, boot id)."""
        return self.path / "supervisor.json"

    @property
    def door(self) -> Path:
        """The unix socket over which a sandbox hands out the sockets of its own network, in a folder of its own."""
        return self.path / "gate" / "door"

    @property
    def elsewhere(self) -> Path:
        """Files of runs and models that the executor has created in a sandbox, until it ends (`gate.elsewhere`)."""
        return self.path / "elsewhere"

    @property
    def shell(self) -> Path:
        """A folder with the program that MLflow takes for bash (`sandbox.shell`)."""
        return self.path / "shell"

    @property
    def group(self) -> Path:
        """Its control group (`cgroups.Group` as JSON), written before that is made."""
        return self.path / "group.json"

    @property
    def storage(self) -> Path:
        """Where MLflow puts what it downloads for this attempt."""
        return self.path / "storage"

    @property
    def heartbeat(self) -> Path:
        """Rewritten every few seconds while the attempt lives, with the processes that it consists of."""
        return self.path / "heartbeat.json"

    @property
    def progress(self) -> Path:
        """How many images are done, as the executor says it (`SEGSERVE_PROGRESS`); empty if it says nothing."""
        return self.path / "progress"

    @property
    def outcome(self) -> Path:
        """How it ended (`model.Outcome` as JSON); appears at once, never changes."""
        return self.path / "outcome.json"


@dataclass(frozen=True, slots=True)
class JobDir:
    """One job."""

    path: Path

    @property
    def job(self) -> Path:
        """`model.Job` as JSON; never changes."""
        return self.path / "job.json"

    @property
    def events(self) -> Path:
        """What whoever drives it from the queue has said: one JSON object a line (`pipeline.events`)."""
        return self.path / "events.jsonl"

    @property
    def secrets(self) -> Path:
        """Credentials and secret parameters of a request that waits (mode 600); goes when the job ends."""
        return self.path / "secrets.json"

    @property
    def inputs(self) -> Path:
        """The staged PNGs, nothing else."""
        return self.path / "inputs"

    @property
    def inputs_map(self) -> Path:
        """inputs.json: staged name → source file, series, t, z, c, pixel size, hash."""
        return self.path / "inputs.json"

    @property
    def facts(self) -> Path:
        """facts.json: what became known on the way (MLflow run, packages, warnings, seconds), for whoever collects."""
        return self.path / "facts.json"

    @property
    def lockfile(self) -> Path:
        """segserve.lock: what exactly ran."""
        return self.path / "segserve.lock"

    @property
    def lock(self) -> Path:
        """Held (flock) by the command that drives this job; free means that nobody does."""
        return self.path / "lock"

    @property
    def fetched(self) -> Path:
        """Remote parameter values, downloaded."""
        return self.path / "fetched"

    @property
    def uploads(self) -> Path:
        """Images that came with a request, under the names that they had."""
        return self.path / "uploads"

    @property
    def serve(self) -> Path:
        """The socket to an executor that stays (a stage of a pipeline), in a folder of its own."""
        return self.path / "serve" / "socket"

    @property
    def result(self) -> Path:
        """Where the result of a job from the queue is published; of a command's job, wherever its user wants it."""
        return self.path / "result"

    @property
    def previews(self) -> Path:
        """Pictures of the images that people have looked at, drawn when they are asked for."""
        return self.path / "previews"

    def assembly(self, fence: int) -> Path:
        """Where whoever has this fence assembles the result before it is published."""
        return self.path / f"assembly-{fence}"

    def attempt(self, number: int) -> AttemptDir:
        """The directory of attempt `number` (1-based)."""
        return AttemptDir(self.path / str(number))


@dataclass(frozen=True, slots=True)
class EnvironmentDir:
    """One environment: a folder per build (a dead one may still be written to), the good one named by `marker`."""

    path: Path

    @property
    def marker(self) -> Path:
        """environment.json: what was built and where; appears last, so that nothing unfinished looks built."""
        return self.path / "environment.json"

    @property
    def lock(self) -> Path:
        """Held (flock) while somebody builds or removes it."""
        return self.path.with_name(f"{self.path.name}.lock")


@dataclass(frozen=True, slots=True)
class Home:
    """The state of one user (or one server) on this machine."""

    path: Path

    @property
    def database(self) -> Path:
        """The journal."""
        return self.path / "segserve.db"

    @property
    def mlflow_database(self) -> Path:
        """The store of the embedded tracking server."""
        return self.path / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """Artifacts of the embedded tracking server."""
        return self.path / "mlartifacts"

    @property
    def tracking_server(self) -> Path:
        """Address and identity of the running embedded tracking server."""
        return self.path / "tracking.json"

    @property
    def repositories(self) -> Path:
        """Bare mirrors."""
        return self.path / "repos"

    @property
    def environments(self) -> Path:
        """Built environments by content key."""
        return self.path / "envs"

    @property
    def jobs(self) -> Path:
        """Job directories."""
        return self.path / "jobs"

    @property
    def cache(self) -> Path:
        """`CACHE_FOLDER` of executors: downloaded weights."""
        return self.path / "cache"

    def executor_cache(self, key: str) -> Path:
        """`CACHE_FOLDER` of one executor, by the key of its repository."""
        return self.cache / "executors" / key

    def executor_cache_filled(self, key: str) -> Path:
        """The commits whose first run has filled that cache; out of the executor's reach."""
        return self.cache / "executors" / f"{key}.filled.json"

    @property
    def temporary(self) -> Path:
        """Scratch on the same file system as everything else, so that `os.replace` works."""
        return self.path / "tmp"

    @property
    def logs(self) -> Path:
        """Logs of defects and of the tracking server."""
        return self.path / "logs"

    @property
    def scheduler_lock(self) -> Path:
        """Held (flock) by the one scheduler that works on the queue."""
        return self.path / "scheduler.lock"

    @property
    def tokens(self) -> Path:
        """Who may call the service (`segserve.tokens`): hashes only."""
        return self.path / "tokens.json"

    @property
    def sessions(self) -> Path:
        """Which browsers are signed in (`server.sessions`): hashes only, mode 600."""
        return self.path / "sessions.json"

    @property
    def prewarm(self) -> Path:
        """prewarm.json: how far the environments of registered executors are (`server.prewarm`)."""
        return self.path / "prewarm.json"

    @property
    def workers_log(self) -> Path:
        """What scheduler and workers print: defects, mostly."""
        return self.logs / "workers.log"

    def reusable(self, key: str) -> Path:
        """Which job has the result for a request (`pipeline.reuse`)."""
        return self.reuse / f"{key}.json"

    @property
    def reuse(self) -> Path:
        """Which jobs have results that may be had again, by request."""
        return self.path / "reuse"

    def environment(self, key: str) -> EnvironmentDir:
        """The directory of an environment."""
        return EnvironmentDir(self.environments / key)

    def environment_log(self, key: str) -> Path:
        """Output of the last build of an environment, redacted; also of one that failed."""
        return self.logs / f"env-{key}.log"

    def job(self, job_id: str) -> JobDir:
        """The directory of a job."""
        return JobDir(self.jobs / job_id)

    def ensure(self) -> Home:
        """Create the folders (mode 700) and return self."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (
            self.repositories,
            self.environments,
            self.jobs,
            self.cache,
            self.temporary,
            self.logs,
            self.artifacts,
        ):
            folder.mkdir(mode=0o700, exist_ok=True)
        return self


def home() -> Home:
    """`$SEGSERVE_HOME`, else the platform's folder for application data."""
    configured = os.environ.get("SEGSERVE_HOME")
    path = Path(configured).expanduser() if configured else Path(platformdirs.user_data_dir("segserve"))
    return Home(path.resolve())
