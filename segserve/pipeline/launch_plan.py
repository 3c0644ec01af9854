"""What the supervisor is told: the project, its parameters with local paths, the environment, docker's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segserve import sandbox, tracking
from segserve.config import SandboxSettings
from segserve.devices import Lease
from segserve.environments import docker
from segserve.errors import NotFound
from segserve.gate import runs_named
from segserve.model import GATE_PORTS, INPUTS_VARIABLE, PROGRESS_VARIABLE, Environment, Job, LaunchPlan, Sandbox
from segserve.pipeline.confinement import Confinement
from segserve.pipeline.context import Hold
from segserve.pipeline.facts import Facts
from segserve.pipeline.localise import Localised
from segserve.pipeline.prepare import Prepared


@dataclass(frozen=True)
class Launch:
    """Everything that a plan is made of."""

    hold: Hold
    prepared: Prepared
    job: Job
    environment: Environment
    facts: Facts
    localised: Localised
    cache: Path
    shut_in: Confinement | None
    limits: SandboxSettings
    variables: Mapping[str, str]

    def plan(self, tracker: tracking.Tracker, lease: Lease) -> LaunchPlan:
        """The plan of the attempt."""
        values = dict(self.localised.values)
        if self.job.images_parameter:
            values[self.job.images_parameter] = str(self.hold.folder.inputs)
        server, attempt = tracker.server, self.hold.attempt
        attempt.progress.touch(mode=0o600)
        told = {PROGRESS_VARIABLE: str(attempt.progress)}
        if self.job.images_parameter:
            told[INPUTS_VARIABLE] = str(self.hold.folder.inputs_map)
        plan = LaunchPlan(
            job_id=self.job.id,
            number=self.hold.number,
            fence=self.hold.fence,
            attached=self.job.attached,
            project=str(self.prepared.project.folder),
            entry=self.job.entry,
            parameters=values,
            tracking_uri=server.uri,
            experiment_id=self.facts.experiment_id,
            run_id=self.facts.run_id,
            artifact_uri=self.facts.artifact_uri,
            path=self.environment.path,
            variables={
                **tracking.on_loopback(),
                "CACHE_FOLDER": str(self.cache),
                **told,
                **self.environment.variables,
                **self.variables,
            },
            gpus=lease.uuids,
            timeout_s=self.job.resources.timeout_s,
            memory_gb=self.job.resources.memory_gb or self.limits.memory_gb,
            processes=self.limits.processes,
            control_groups=self.limits.control_groups,
            output_gb=self.limits.output_gb,
        )
        own = tracker.local_artifacts(plan.run_id)
        if self.shut_in is not None:
            plan = replace(plan, sandbox=self.shut_in.show(own, lease, readable=self._named(tracker)))
        return replace(self._in_place(plan, tracker), written=self._written(plan.sandbox, own))

    def _in_place(self, plan: LaunchPlan, tracker: tracking.Tracker) -> LaunchPlan:
        return self._in_docker(plan, tracker) if self.environment.spec.kind == docker.kind else plan

    def _written(self, shut_in: Sandbox | None, artifacts: Path | None) -> tuple[str, ...]:
        if shut_in is not None:
            return shut_in.writable
        folders = [self.hold.attempt.checkout, self.hold.attempt.progress, self.cache]
        return tuple(map(str, [*folders, *([artifacts] if artifacts else [])]))

    def _named(self, tracker: tracking.Tracker) -> list[Path]:
        """Where artifacts of the runs lie that a parameter names, as far as they lie on this machine."""
        folders = []
        for run_id in runs_named(self.job.parameters.values()):
            with suppress(NotFound):  # the executor says so, in its own words
                folders.append(tracker.local_artifacts(run_id))
        return [folder for folder in folders if folder is not None]

    def _in_docker(self, plan: LaunchPlan, tracker: tracking.Tracker) -> LaunchPlan:
        attempt = self.hold.attempt
        project = docker.write_project(
            attempt.path / "project",
            self.environment,
            self.prepared.entry,
            label=plan.cookie,
            shut_in=plan.sandbox is not None,
        )
        gate, inherited, variables = self._shut_in(plan)
        arguments: Mapping[str, Any] = docker.launch_arguments(
            self.environment,
            project=self.prepared.project.folder,
            checkout=attempt.checkout,
            inputs=self.hold.folder.inputs if self.job.images_parameter else None,
            artifacts=tracker.local_artifacts(plan.run_id),
            cache=self.cache,
            label=plan.cookie,
            resources=replace(self.job.resources, memory_gb=plan.memory_gb),
            path_mounts=[*self.localised.mounts, *([self.hold.folder.inputs_map] if self.job.images_parameter else [])],
            progress=attempt.progress,
            gpus=plan.gpus,
            variables={**plan.variables, **variables},
            secrets=(tracking.USERNAME, tracking.PASSWORD, *inherited),  # of the gate
            gate=gate,
            cache_read_only=plan.sandbox is not None and not plan.sandbox.network,
            tracking_uri=plan.tracking_uri,
        )
        # docker-py, with which MLflow builds the image, knows no `docker context`; the container gets none of these.
        variables = {**plan.variables, **docker.client_variables()}
        return replace(plan, project=str(project), docker_args=arguments, variables=variables)

    def _shut_in(self, plan: LaunchPlan) -> tuple[tuple[Path, Path] | None, tuple[str, ...], dict[str, str]]:
        """For a container without network: what it sees of the gate, variables that it inherits, and its own."""
        if plan.sandbox is None:
            return None, (), {}
        folder = self.hold.attempt.door.parent
        folder.mkdir(exist_ok=True)
        inherited = (GATE_PORTS, *(sandbox.HTTP_PROXIES if plan.sandbox.network else ()))
        return (folder, sandbox.DOORWAY), inherited, {"HOME": plan.sandbox.home}
