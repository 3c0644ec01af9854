"""The slow part of a job: environment and staging side by side, the launch, the wait.

Whoever drives a job holds its lock file; the journal's rows are fenced besides. `settle` takes over from a dead driver.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import segserve
from segserve import devices, environments, fetch, inputs, lock, redact, tracking
from segserve.backends import local
from segserve.config import Settings
from segserve.errors import Defect, RunCancelled, SegserveError, disk_full
from segserve.fetch import is_remote
from segserve.journal import JobRecord, new_job_id
from segserve.model import (
    Environment,
    Job,
    JobState,
    LaunchPlan,
    StagedImage,
    to_json,
    write_atomically,
)
from segserve.pipeline import building, confinement, preflight, reuse
from segserve.pipeline.confinement import Cache, Confinement
from segserve.pipeline.context import Context, Hold
from segserve.pipeline.facts import Facts
from segserve.pipeline.failure import end_badly
from segserve.pipeline.finish import finish
from segserve.pipeline.launch_plan import Launch
from segserve.pipeline.localise import Localised, for_others, localise
from segserve.pipeline.preflight import Decision
from segserve.pipeline.prepare import Prepared, Request, prepare
from segserve.pipeline.publish import Result, Started
from segserve.pipeline.record import job_of, open_run
from segserve.pipeline.settle import settle
from segserve.pipeline.watch import Watch
from segserve.store import locked

T = TypeVar("T")


def _environment() -> dict[str, str]:
    """What supervisor and executor get: a clean environment, and what somebody's own tracking server asks for."""
    external = tracking.external()
    return {**local.clean_environment(), **(external.variables if external else {})}


def _in_background(work: Callable[[], T]) -> Future[T]:
    """As a pool's `submit`, but nobody waits for it at the end: a refusal must not wait for a server that starts."""
    future: Future[T] = Future()

    def go() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=go, name="segserve-background", daemon=True).start()
    return future


def run(ctx: Context, request: Request) -> Result | Started:
    """Drive one job to its end (attached) or until it runs (detached).

    Raises:
        SegserveError: see `segserve.errors`; once the job is in the journal, journal and MLflow run say so too.
    """
    settle(ctx)
    job_id = new_job_id()
    return Drive(ctx, request, Hold(job_id, 1, ctx.home.job(job_id), 1)).go()


class HandedOver(BaseException):
    """The worker was asked to stop: the job goes on elsewhere. Raised by a signal, like KeyboardInterrupt no error."""


class Drive:
    """One attempt on its way. Every step is a method, `go` and `_run` are the order.

    `queued`: the record of a job that was taken from the queue. It stands in the journal already; its attempt is
    detached, because it has to outlive a worker, but waited for. `shared`: the GPUs of somebody who keeps them for
    several jobs (the stages of a pipeline), instead of some of its own.
    """

    def __init__(
        self,
        ctx: Context,
        request: Request,
        hold: Hold,
        queued: JobRecord | None = None,
        shared: devices.Lease | None = None,
    ) -> None:
        self.ctx, self.request, self.hold, self.queued, self.shared = ctx, request, hold, queued, shared
        self.folder, self.attempt, self.fence = hold.folder, hold.attempt, hold.fence
        self.facts = Facts()
        self.stop = threading.Event()
        self._written = queued is not None

    def go(self) -> Result | Started:
        self.attempt.path.mkdir(parents=True, mode=0o700)
        with locked(self.folder.lock), ThreadPoolExecutor(2, thread_name_prefix="segserve") as pool:
            handle = local.preload(self.attempt, environ=_environment())
            server = _in_background(
                partial(tracking.resolve, self.ctx.home, idle_minutes=self._settings.tracking.idle_minutes)
            )
            try:
                with self._recorded():
                    prepared, job = self._accept()
                    return self._run(prepared, job, handle, server, pool)
            finally:
                self.stop.set()
                handle.abandon()
                if not self._written:
                    shutil.rmtree(self.folder.path, ignore_errors=True)

    @property
    def _settings(self) -> Settings:
        return self.ctx.settings

    def _accept(self) -> tuple[Prepared, Job]:
        """Every cheap check, then the job is written down."""
        began = time.monotonic()
        confinement.require(self._settings.sandbox, others=self.request.others)
        prepared = prepare(self.ctx, self._pinned(), self.attempt.checkout)
        job = job_of(self.request, prepared, self.hold, self._settings, queued=self.queued is not None)
        write_atomically(self.folder.job, to_json(job))
        if self.queued is None:
            self.ctx.journal.begin(job)
            self._written = True
        else:
            self.ctx.journal.accept(job, self.fence)
        self.facts = self.facts.timed(checks=time.monotonic() - began)
        return prepared, job

    def _pinned(self) -> Request:
        """The request; a second try takes the commit of the first, wherever the branch is now."""
        known = self.queued.job if self.queued else None
        if known is None or known.tags.get("dirty"):
            return self.request
        ref = replace(self.request.ref, rev=known.pin.sha, subdir=known.pin.subdir, tree=False)
        return replace(self.request, ref=ref)

    def _run(
        self,
        prepared: Prepared,
        job: Job,
        handle: local.Handle,
        server: Future[tracking.TrackingServer],
        pool: ThreadPoolExecutor,
    ) -> Result | Started:
        where = server.result()
        with tracking.hold(self.ctx.home) as hold:
            tracker = tracking.open_tracker(self.ctx.home, where.uri)
            self._open_run(tracker, where, prepared, job)
            staging = pool.submit(self._stage, prepared)
            known = self._reusable(prepared, job, staging) if self.request.reuse and self.queued else None
            if known is not None:
                return self._reuse(tracker, known, staging.result(), job)
            environment = self._build(prepared)
            self._record_inputs(tracker, staging.result())
            self._lock(environment, prepared, job)
            localised = self._fetch(prepared, tracker)
            launch = self._launch(prepared, job, environment, localised)
            decision = self._preflight(environment)
            with self._lease(job, decision) as lease:  # last: nobody holds a GPU while something is downloaded
                self._note_device(tracker, decision, lease)
                self._start(handle, launch.plan(tracker, lease), lease, hold)
            if not job.attached and self.queued is None:
                handle.release()
                return Started(job.id, self.facts.run_url, Path(job.output))
            return finish(self.ctx, job, self.hold, Watch(self.attempt, self.ctx.reporter).wait(handle))

    def _launch(self, prepared: Prepared, job: Job, environment: Environment, localised: Localised) -> Launch:
        """All that the plan is made of; with a sandbox, what it will show."""
        cache, limits, shut_in = Cache(self.ctx.home, job.pin), self._settings.sandbox, None
        if confinement.shuts_in(limits, others=self.request.others):
            granted = confinement.network(self._settings, self.request.ref, job)
            shut_in = Confinement(limits, granted, self.hold, job, environment, localised, cache)
        told = self.request.variables
        return Launch(self.hold, prepared, job, environment, self.facts, localised, cache.make(), shut_in, limits, told)

    def _open_run(
        self, tracker: tracking.Tracker, where: tracking.TrackingServer, prepared: Prepared, job: Job
    ) -> None:
        """The MLflow run exists before anything slow can fail."""
        experiment = self.request.experiment or self._settings.tracking.experiment
        run = open_run(tracker, self.request, prepared, job, experiment)
        self._learn(
            tracking_uri=where.uri,
            experiment_id=run.experiment_id,
            run_id=run.run_id,
            run_url=run.url,
            artifact_uri=run.artifact_uri,
            about=prepared.project.manifest.texts(),
            defaults=prepared.entry.defaults,
            warnings=(*prepared.notes, *prepared.spec.warnings, *map(str, prepared.project.findings)),
        )
        self.ctx.journal.note(job.id, self.fence, run_id=run.run_id, run_url=run.url)

    def _learn(self, **facts: Any) -> None:
        self.facts = replace(self.facts, **facts)
        self.facts.write(self.folder)

    def _build(self, prepared: Prepared) -> Environment:
        began = time.monotonic()
        environment = environments.prepare(
            self.ctx.home,
            prepared.project,
            prepared.spec,
            options=self.request.build,
            walls=building.walls(self._settings.sandbox, prepared.project, others=self.request.others),
            report=self.ctx.reporter.line,
            phase=self.ctx.reporter.phase,
        )
        self._learn(
            environment=asdict(environment),
            warnings=tuple(dict.fromkeys((*self.facts.warnings, *environment.spec.warnings))),
            seconds={**self.facts.seconds, "environment": time.monotonic() - began},
        )
        for warning in environment.spec.warnings:
            if warning not in prepared.spec.warnings:  # only the build could know it
                self.ctx.reporter.warn(warning)
        return environment

    def _stage(self, prepared: Prepared) -> tuple[StagedImage, ...]:
        if prepared.images is None:
            return ()
        if self.folder.inputs_map.exists():  # an earlier attempt has done it, and all of it
            return inputs.read_map(self.folder.inputs_map)
        shutil.rmtree(self.folder.inputs, ignore_errors=True)

        def progress(done: int, total: int) -> None:
            if self.stop.is_set():
                raise RunCancelled("Staging was interrupted.")
            self.ctx.reporter.progress(done, total, "images staged")

        return inputs.stage(prepared.images, self.folder.inputs, self.folder.inputs_map, progress=progress)

    def _record_inputs(self, tracker: tracking.Tracker, staged: tuple[StagedImage, ...]) -> None:
        digest = inputs.digest(staged) if staged else ""
        self._learn(inputs_digest=digest)
        tags = {"segserve.inputs_digest": digest, "segserve.images": str(len(staged))}
        if staged:
            tags["segserve.images_folder"] = os.path.commonpath([Path(image.source).parent for image in staged])
        tracker.set_tags(self.facts.run_id, tags)

    def _lock(self, environment: Environment, prepared: Prepared, job: Job) -> None:
        lock_text = lock.render(job, environment, prepared.project.file, segserve.__version__)
        self.folder.lockfile.write_text(lock_text, encoding="utf-8")

    def _reusable(self, prepared: Prepared, job: Job, staging: Future[tuple[StagedImage, ...]]) -> JobRecord | None:
        """The job whose result this one can have. Waits for the images: they are what is compared."""
        user = self.queued.user if self.queued else ""
        name = reuse.key(self.request, prepared, job, staging.result(), user)
        self._learn(reuse_key=name)
        return reuse.find(self.ctx, name) if name else None

    def _reuse(self, tracker: tracking.Tracker, known: JobRecord, staged: tuple[StagedImage, ...], job: Job) -> Result:
        """End at once with the output of another job."""
        text = f"The output is that of job {known.job_id}: same commit, parameters, environment and images."
        self.ctx.reporter.phase(text)
        self._record_inputs(tracker, staged)
        self._learn(reused=known.job_id, warnings=(*self.facts.warnings, text))
        done = reuse.take_over(self.ctx, self.hold, known, tracker, self.facts.run_id)
        return finish(self.ctx, job, self.hold, done)

    def _fetch(self, prepared: Prepared, tracker: tracking.Tracker) -> Localised:
        """Parameters that name something remote, on this disk."""
        if any(is_remote(value) for value in prepared.parameters.values()):
            self.ctx.reporter.phase("Fetching what the parameters name")
        shutil.rmtree(self.folder.fetched, ignore_errors=True)  # what an earlier attempt began
        https = for_others(self._settings.fetch) if self.request.others else fetch.https
        localised = localise(prepared.entry, prepared.parameters, self.folder.fetched, tracker.download_uri, https)
        self._learn(parameter_digests=dict(localised.digests))
        return localised

    def _preflight(self, environment: Environment) -> Decision:
        """Which cards the environment can use."""
        cards, allowed = devices.visible(), self._settings.run.cpu_fallback
        driver = devices.driver_cuda() if cards else None
        decision = preflight.decide(self.request.gpus, environment, cards, driver, cpu_allowed=allowed)
        if decision.why:
            self.ctx.reporter.warn(f"It runs on the CPU: {decision.why}.")
            self._learn(warnings=(*self.facts.warnings, f"It ran on the CPU: {decision.why}."))
        return decision

    def _note_device(self, tracker: tracking.Tracker, decision: Decision, lease: devices.Lease) -> None:
        """On the run: what it computes on, because results of CPU and GPU may differ in the last digits."""
        device = ", ".join(lease.names) or "CPU"
        tags = {"segserve.device": device, "segserve.torch": decision.torch, "segserve.cpu_because": decision.why}
        tracker.set_tags(self.facts.run_id, {name: value for name, value in tags.items() if value})

    def _lease(self, job: Job, decision: Decision) -> AbstractContextManager[devices.Lease]:
        """Whole GPUs; the wait for them is a state of its own, and says who holds them."""
        if self.shared is not None:
            return nullcontext(self.shared)

        def on_wait(text: str) -> None:
            self.ctx.journal.move(job.id, self.fence, JobState.WAITING)
            self.ctx.reporter.phase(f"Waiting for a GPU: {text}")

        return devices.lease(
            decision.gpus, job=job.id, wait=self.request.wait, on_wait=on_wait, inventory=decision.fitting
        )

    def _start(self, handle: local.Handle, plan: LaunchPlan, lease: devices.Lease, hold: int) -> None:
        self.ctx.journal.assign(plan.job_id, self.fence, plan.number, ",".join(lease.uuids))
        self.ctx.journal.move(plan.job_id, self.fence, JobState.RUNNING)
        where = f"on {', '.join(lease.names)}" if lease.uuids else "on the CPU"
        self.ctx.reporter.phase(f"Running {plan.entry} {where}  (job {plan.job_id})")
        handle.start(plan, lease, hold=hold)  # the tracking server stays as long as the supervisor lives

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """However an attempt ends that does not end well: it is written down."""
        try:
            yield
        except KeyboardInterrupt:
            self.ctx.reporter.phase("Stopping")
            local.cancel(self.attempt, wait=True)
            self._record(RunCancelled("Interrupted." if self.queued is None else "It was cancelled."))
            raise
        except HandedOver:
            self._hand_over()
            raise
        except SegserveError as failure:
            self._record(failure)
            raise
        except BaseException as defect:
            text = f"A defect of segserve: {type(defect).__name__}: {redact.text(str(defect))}"
            self._record(disk_full(defect, self.ctx.home.path) or Defect(text))
            raise

    def _record(self, failure: SegserveError) -> None:
        if self._written:
            end_badly(self.ctx, self.hold, failure)

    def _hand_over(self) -> None:
        """What runs goes on without us; what does not yet run waits in the queue again."""
        if self.ctx.journal.get(self.hold.job_id).state in (JobState.PREPARING, JobState.WAITING):
            self.ctx.journal.queue.put_back(self.hold.job_id, self.fence, error=None, counted=False)
