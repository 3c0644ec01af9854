"""What an executor says that it expects (`[input]` of its manifest) against the images of a job, before it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from segserve.inputs import InputPlan
from segserve.inputs.selection import Request
from segserve.manifest import Manifest

_EIGHT = ("bool", "int8", "uint8")  # staged with 8 bits; everything else with 16, unless somebody says otherwise
_CHANNELS = {1: "grey", 3: "colour"}
_DEPTHS = {8: "8-bit", 16: "16-bit"}
_ADVICE = {3: " --channel takes one channel of each.", 16: " --depth 8 scales them."}


def mismatches(manifest: Manifest, plan: InputPlan) -> tuple[str, ...]:
    """One sentence for each way in which images differ from what is expected, with what can be done.

    Images count as they will be staged: one channel of a stack is grey, float values become 16 bits.
    """
    name, expected = manifest.title or "This executor", manifest.input
    found = [f"{name} is made for volumes; it gets one plane at a time."] if expected.dimensions == 3 else []
    found += _unlike(name, expected.channels, _CHANNELS, plan, lambda request: _channels(plan, request))
    found += _unlike(name, expected.bit_depth, _DEPTHS, plan, lambda request: _depth(plan, request))
    return tuple(found)


def _unlike(
    name: str, allowed: Sequence[int], words: Mapping[int, str], plan: InputPlan, kind: Callable[[Request], int]
) -> list[str]:
    if not allowed:
        return []
    others: dict[int, list[str]] = {}
    for request in plan.requests:
        if (found := kind(request)) not in allowed:
            others.setdefault(found, []).append(plan.sources[request.source].given)
    wanted = " or ".join(words.get(one, f"{one}-channel") for one in allowed)
    return [
        f"{name} expects {wanted} images; {len(files)} of {plan.count} are {words[one]}, {files[0]} for one."
        + _ADVICE.get(one, "")
        for one, files in others.items()
    ]


def _channels(plan: InputPlan, request: Request) -> int:
    """As staged: 8-bit colour stays colour, unless a channel of it is chosen."""
    series = plan.sources[request.source].series[request.series]
    return 3 if series.rgb and request.sample is None and request.c is None else 1


def _depth(plan: InputPlan, request: Request) -> int:
    series = plan.sources[request.source].series[request.series]
    return 8 if plan.selection.depth == 8 or series.dtype in _EIGHT else 16
