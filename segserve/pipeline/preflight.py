"""Before a card is taken: does the environment's torch run on it? An hour on the CPU by mistake is found out now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segserve import devices
from segserve.devices import Gpu
from segserve.environments import torchbuild
from segserve.environments.torchbuild import TorchBuild
from segserve.errors import EnvironmentUnfit
from segserve.model import Environment


@dataclass(frozen=True)
class Decision:
    """What to lease: `gpus` as `devices.lease` takes it, of the cards in `uuids` (None: all). `why` it is the CPU."""

    gpus: str
    uuids: frozenset[str] | None = None
    why: str = ""
    torch: str = ""

    def fitting(self) -> Sequence[Gpu]:
        """The cards that may be taken now."""
        return [gpu for gpu in devices.gpus() if self.uuids is None or gpu.uuid in self.uuids]


def decide(
    wanted: str,
    environment: Environment,
    cards: Sequence[Gpu],
    driver: tuple[int, int] | None,
    *,
    cpu_allowed: bool,
) -> Decision:
    """What to lease for a request (`auto`, `none` or a number), on a machine with these cards.

    A build without CUDA runs on the CPU when nobody asked for a card; it could do nothing else.

    Raises:
        EnvironmentUnfit: there are cards, but torch runs on none (or too few) of them, and the CPU is not allowed.
    """
    build, count = torchbuild.find(environment), devices.parse(wanted)
    told = f"torch {build.version}" if build else ""
    if build is None or count == 0 or not cards:
        return Decision(wanted, torch=told)
    problems = {gpu: build.problem(gpu.capability, driver) for gpu in cards}
    fit = frozenset(gpu.uuid for gpu, problem in problems.items() if not problem)
    if len(fit) >= (count or 1):
        return Decision(wanted, fit, torch=told)
    why = next(problem for problem in problems.values() if problem)
    if count is None and (build.cuda is None or cpu_allowed):
        return Decision("none", why=why, torch=told)
    raise EnvironmentUnfit(f"The executor cannot use {_shown(cards)}: {why}.", hint=_hint(build))


def _shown(cards: Sequence[Gpu]) -> str:
    return "the GPU of this machine" if len(cards) == 1 else f"enough of the {len(cards)} GPUs of this machine"


def _hint(build: TorchBuild) -> str:
    remedy = "Pin a build of torch for CUDA" if build.cuda is None else "Pin another build of torch"
    return f"{remedy}; or run it on the CPU: --gpus none (for all such jobs: `run.cpu_fallback` in config.toml)."
