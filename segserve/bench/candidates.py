"""What is compared: every executor with every combination of the parameter values that it knows."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from segserve.errors import InvalidParameters, UsageError, did_you_mean
from segserve.pipeline import Request
from segserve.refs import DEFAULT_ENTRY, ExecutorRef

MOST = 200  # candidates; more is a slip of the keyboard


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the table to be: `name` is for people and unique, `request` is what runs."""

    name: str
    request: Request


def split_values(text: str) -> tuple[str, ...]:
    r"""`a,b,c` → a, b, c. A comma within a value is written `\,`; blanks around values do not count.

    Raises:
        InvalidParameters: a value is empty.
    """
    values = tuple(part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", text))
    if len(values) > 1 and not all(values):
        raise InvalidParameters(f"'{text}' has an empty value.", hint=r"Values are parted by commas; one within is \,")
    return tuple(dict.fromkeys(values))


def expand(
    requests: Sequence[Request], declared: Sequence[Collection[str] | None], grid: Mapping[str, Sequence[str]]
) -> tuple[Candidate, ...]:
    """All candidates, executor by executor. A parameter goes to the executors that declare it.

    declared: names of the parameters per request; None where that could not be read (one candidate, whose row will
    say why).

    Raises:
        InvalidParameters: a parameter is declared by none of them.
        UsageError: there would be too many, or two are the same.
    """
    known = {name for names in declared if names is not None for name in names}
    unknown = sorted(set(grid) - known)
    if unknown and all(names is not None for names in declared):
        raise InvalidParameters(
            f"No executor has a parameter '{unknown[0]}'.", hint=did_you_mean(unknown[0], sorted(known))
        )
    chosen = [
        replace(request, parameters=dict(zip(own, values, strict=True)))
        for request, names in zip(requests, declared, strict=True)
        for own in [[name for name in grid if names is not None and name in names]]
        for values in product(*(grid[name] for name in own))
    ]
    if len(chosen) > MOST:
        raise UsageError(f"These are {len(chosen)} candidates; {MOST} is the limit.", hint="Give fewer values.")
    varied = {name for name, values in grid.items() if len(values) > 1}
    names = _names(chosen, varied)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"The candidate '{twice}' is there twice.", hint="Leave one of them out.")
    return tuple(Candidate(name, request) for name, request in zip(names, chosen, strict=True))


def _names(requests: Sequence[Request], varied: Collection[str]) -> list[str]:
    """Executor, revision, entry point unless it is main, and the values that differ; longer where that is unclear."""
    refs = {request.ref for request in requests}
    short = [_short(request.ref) for request in requests]
    unclear = {name for name in short if len({ref for ref in refs if _short(ref) == name}) > 1}
    return [
        " ".join(
            [
                str(request.ref) if name in unclear else name,
                *(f"{key}={value}" for key, value in request.parameters.items() if key in varied),
            ]
        )
        for name, request in zip(short, requests, strict=True)
    ]


def _short(ref: ExecutorRef) -> str:
    revision = f"@{ref.rev}" if ref.rev else ""
    entry = f"#{ref.entry}" if ref.entry != DEFAULT_ENTRY else ""
    return f"{ref.name}{revision}{entry}"
