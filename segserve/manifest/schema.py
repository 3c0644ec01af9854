"""What `segserve.toml` may say: one pydantic model for everything. `docs/manifest.md` lists every key."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

_DOI = re.compile(r"(?:https?://(?:dx\.)?doi\.org/|doi:)?(10\.\d{4,9}/[^\s\"<>]+)", re.IGNORECASE)
_RULE = r"^[a-z0-9]+(-[a-z0-9]+)*$"


def _plain(text: str) -> str:
    """One paragraph: the texts go to terminals, tables and tags."""
    line = " ".join(text.split())
    if not line.isprintable():
        raise ValueError("holds a control character")
    return line


def _doi(text: str) -> str:
    found = _DOI.fullmatch(text.strip())
    if found is None:
        raise ValueError("is no DOI (10.1234/abc)")
    return found.group(1)


def _licence(text: str) -> str:
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression as error:
        raise ValueError(f"is no SPDX expression such as BSD-3-Clause ({error})") from None


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Line = Annotated[str, AfterValidator(_plain), Field(max_length=200)]
Text = Annotated[str, AfterValidator(_plain), Field(max_length=4000)]
Licence = Annotated[str, Field(max_length=200), AfterValidator(_licence)]


class _Table(BaseModel):
    # Unknown keys are looked for before (`read`); strict: 1 is no text, "true" no truth value.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Citation(_Table):
    """`[citation]`: what somebody who publishes a result should cite."""

    text: Annotated[str, AfterValidator(_plain), Field(max_length=2000, description="as it stands in a list")] = ""
    doi: Annotated[
        Annotated[str, AfterValidator(_doi)] | None, Field(max_length=200, description="10.1234/abc, or its URL")
    ] = None

    def __str__(self) -> str:
        link = f"https://doi.org/{self.doi}" if self.doi else ""
        return self.text if not link or (self.doi or "") in self.text else f"{self.text} {link}".strip()


class Input(_Table):
    """`[input]`: the images that it is made for."""

    channels: Annotated[
        Annotated[list[Annotated[int, Field(ge=1, le=64)]], BeforeValidator(_listed)],
        Field(max_length=64, description="1 = grey, 3 = colour; a list if several are fine"),
    ] = []
    bit_depth: Annotated[
        Annotated[list[Literal[8, 16]], BeforeValidator(_listed)],
        Field(max_length=2, description="8, 16 or both"),
    ] = []
    dimensions: Annotated[Literal[2, 3], Field(description="2: each plane by itself")] = 2


class Run(_Table):
    """`[run]`: how it behaves."""

    deterministic: Annotated[bool | None, Field(description="the same input gives the same output")] = None
    network: Annotated[
        Literal["never", "first-run", "always"] | None, Field(description="when it needs one; first-run: for weights")
    ] = None
    whole_set: Annotated[bool, Field(description="it has to see all images at once (tracking, normalisation)")] = False
    resident: Annotated[bool, Field(description="it can stay loaded between requests (a Runner of segserve_sdk)")] = (
        False
    )


class Weights(_Table):
    """`[[weights]]`: a file that it downloads."""

    name: Annotated[Line, Field(min_length=1, description="what people call it")]
    url: Annotated[str, Field(max_length=2000, pattern=r"^https://[^\s@]+$", description="https://…")]
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", description="64 hex digits")] = None
    size: Annotated[int | None, Field(ge=0, description="bytes")] = None


Task = Literal["localization", "detection", "classification"]
Key = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100)]


class Algorithm(_Table):
    """`[algorithm]`: what it is as a stage of a pipeline."""

    task: Annotated[Task, Field(description="where objects are; where and which; or which a crop shows")] = (
        "localization"
    )
    classes: Annotated[
        list[Annotated[Line, Field(min_length=1)]],
        Field(max_length=10_000, description="what it tells apart, in order"),
    ] = []
    version: Annotated[int, Field(ge=0, description="counts up whenever its answers change")] = 1
    uri: Annotated[Line, Field(description="where to read more")] = ""


class ChainAlgorithm(Algorithm):
    """`[[pipelines.algorithms]]`: a stage of a pipeline that is written in Python."""

    key: Annotated[Key, Field(description="its name for programs")]
    name: Annotated[Line, Field(min_length=1, description="its name for people")]
    description: Annotated[Text, Field(description="what it does")] = ""


class ChainDeclaration(_Table):
    """`[[pipelines]]`: a pipeline that is written in Python (`segserve_sdk.pipeline`)."""

    slug: Annotated[Key, Field(description="its name in requests")]
    name: Annotated[Line, Field(min_length=1, description="its name for people")]
    version: Annotated[int, Field(ge=0, description="counts up whenever its answers change")] = 1
    description: Annotated[Text, Field(description="what it does")] = ""
    entry_point: Annotated[str, Field(max_length=200, description="of MLProject, which starts it")] = "main"
    algorithms: Annotated[list[ChainAlgorithm], Field(min_length=1, max_length=20)]


class Check(_Table):
    """`[check]`: for `segserve check`."""

    ignore: Annotated[
        list[Annotated[str, Field(max_length=100, pattern=_RULE)]],
        Field(max_length=100, description="rules that are left out"),
    ] = []


class Entry(_Table):
    """`[entry_points.<name>]`."""

    description: Annotated[Text, Field(description="what this entry point does")] = ""


class Manifest(_Table):
    """The whole file. Everything is optional; a repository without one has `Manifest()`."""

    title: Annotated[Line, Field(description="what people call it")] = ""
    description: Annotated[Text, Field(description="what it segments, and how, in a few sentences")] = ""
    licence: Annotated[
        Licence | None,
        Field(validation_alias=AliasChoices("licence", "license"), description="SPDX expression"),
    ] = None
    contact: Annotated[Line, Field(description="whom to ask: a name, an address, a URL")] = ""
    citation: Citation = Citation()
    input: Input = Input()
    run: Run = Run()
    weights: Annotated[list[Weights], Field(max_length=200)] = []
    algorithm: Algorithm | None = None
    pipelines: Annotated[list[ChainDeclaration], Field(max_length=50)] = []
    check: Check = Check()
    entry_points: Annotated[dict[Annotated[str, Field(max_length=200)], Entry], Field(max_length=200)] = {}

    def texts(self) -> dict[str, str]:
        """Title, licence and citation as texts, those that there are: for reports and tags."""
        found = {"title": self.title, "licence": self.licence or "", "citation": str(self.citation)}
        return {name: text for name, text in found.items() if text}

    def as_json(self) -> dict[str, Any]:
        """What the file says, without what it leaves out; JSON values only."""
        return self.model_dump(mode="json", exclude_defaults=True)


NONE = Manifest()  # that of an executor without one
