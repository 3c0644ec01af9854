"""`segserve info`."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from segserve import api, redact
from segserve.cli import options, render

_WIDTH = 100
_MOST_MEANING = 70
_NETWORK = {"never": "no network", "first-run": "network in its first run", "always": "network in every run"}
_DETERMINISTIC = {True: "deterministic", False: "not deterministic", None: ""}


@click.command("info")
@click.argument("ref")
@options.reference
@options.CONFIG
@options.JSON
def info_command(ref: str, *, as_json: bool, **chosen: Any) -> None:
    """Show entry points, parameters, environment and commit of REF.

    Nothing is built. With an entry point (REF#NAME), only that one is shown.
    """
    with api.session(config=chosen.pop("config")) as session:
        info = session.info(session.request(ref, (), **chosen))
    if as_json:
        render.document(info)
    else:
        render.echo(_info_text(ref, info))


def _info_text(ref: str, info: dict[str, Any]) -> str:
    source = info["environment"]["source"]
    lines = [
        info["name"] or "(a project without a name)",
        f"  repository   {info['repository']}" + (f"  (folder {info['subdir']})" if info["subdir"] else ""),
        f"  commit       {info['commit']}" + (f"  ({info['branch']})" if info["branch"] else ""),
        f"  environment  {info['environment']['kind']}" + (f" ({source})" if source else ""),
        *(f"  note         {note}" for note in info["notes"]),
    ]
    lines += [*_module(info.get("module", {})), *_about(info["manifest"])]
    described = info["manifest"].get("entry_points", {})
    for entry in info["entry_points"]:
        lines += ["", f"#{entry['name']}" + ("" if entry["images_parameter"] else "   (takes no images)")]
        lines += _wrapped("  ", described.get(entry["name"], {}).get("description", ""))
        lines += [f"  problem: {problem}" for problem in entry["problems"]]
        rows = [
            (f"  {p['name']}", p["type"], _default(p), _limits(p), _meaning(p, entry["images_parameter"]))
            for p in entry["parameters"]
        ]
        lines.append(render.table(("  parameter", "type", "default", "", ""), rows) if rows else "  no parameters")
    entries = info["entry_points"]
    if entries:
        first = next((entry for entry in entries if entry["name"] == "main"), entries[0])
        images = " IMAGES" if first["images_parameter"] else ""
        bare = ref.partition("#")[0]
        folder = f"{info['subdir']}:" if info["subdir"] else ""
        lines += ["", f"Next    segserve run {redact.url(bare)}#{folder}{first['name']}{images}"]
    return render.plain("\n".join(lines))


def _module(module: dict[str, Any]) -> list[str]:
    """What an algorithm module says of itself."""
    if not module:
        return []
    devices = ", ".join(name + (" (default)" if name == module["default_device"] else "")
                        for name in module["supported_devices"])  # fmt: skip
    facts = {
        "module": f"{module['dialect']} {module['algorithm_type']} {module['version']}".strip(),
        "tags": ", ".join(module["tags"]),
        "about": module["description"],
        "devices": devices,
        "packages": f"{module['requirements_from']}: {', '.join(module['requirements'])}",
        "code": module["module_sha256"][:12],
        "assets": module["assets_sha256"][:12],
    }
    return [line for name, text in facts.items() for line in _wrapped(f"  {name:<12} ", text)]


def _limits(parameter: dict[str, Any]) -> str:
    """`0 … 1`, `otsu | li`: what a value may be."""
    if parameter["options"]:
        return " | ".join(parameter["options"])
    low, high = parameter["min"], parameter["max"]
    return "" if low is None and high is None else f"{'' if low is None else low} … {'' if high is None else high}"


def _meaning(parameter: dict[str, Any], images: str | None) -> str:
    text = "images" if parameter["name"] == images else str(parameter["description"])
    return textwrap.shorten(text, _MOST_MEANING, placeholder=" …")


def _about(manifest: dict[str, Any]) -> list[str]:
    """What the manifest says, in the words of people."""
    run = manifest.get("run", {})
    behaviour = (
        _DETERMINISTIC[run.get("deterministic")],
        _NETWORK.get(run.get("network"), ""),
        "needs the whole set" if run.get("whole_set") else "",
    )
    facts = {
        "title": manifest.get("title", ""),
        "about": manifest.get("description", ""),
        "cite": _citation(manifest.get("citation", {})),
        "licence": manifest.get("licence", ""),
        "contact": manifest.get("contact", ""),
        "images": _expected(manifest.get("input", {})),
        "behaviour": ", ".join(part for part in behaviour if part),
    }
    rows = [line for name, text in facts.items() for line in _wrapped(f"  {name:<12} ", text)]
    for weights in manifest.get("weights", []):
        size = f", {weights['size'] / 1e6:.0f} MB" if "size" in weights else ""
        unchecked = "" if "sha256" in weights else ", without SHA-256"
        rows.append(f"  weights      {weights['name']}: {redact.url(weights['url'])}{size}{unchecked}")
    return rows


def _citation(citation: dict[str, str]) -> str:
    text, doi = citation.get("text", ""), citation.get("doi", "")
    return text if not doi or doi in text else f"{text} https://doi.org/{doi}".strip()


def _expected(images: dict[str, Any]) -> str:
    channels, depths = (" or ".join(map(str, images.get(name, ()))) for name in ("channels", "bit_depth"))
    parts = (
        f"{channels} channel(s)" if channels else "",
        f"{depths} bit" if depths else "",
        f"{images['dimensions']}-D" if "dimensions" in images else "",
    )
    return ", ".join(part for part in parts if part)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def _default(parameter: dict[str, Any]) -> str:
    return "required" if parameter["default"] is None else str(parameter["default"])
