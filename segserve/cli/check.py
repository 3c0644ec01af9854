"""`segserve check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segserve import findings
from segserve.cli import options, render
from segserve.errors import UsageError, Verdict, writing
from segserve.findings import Finding, Severity

if TYPE_CHECKING:
    from segserve.check.whole import Checked

FORMATS = ("text", "json", "junit", "sarif", "github")


@click.command("check", cls=options.SectionedCommand)
@click.argument("ref", default=".")
@click.option("--run", "run_it", is_flag=True, help="Also build the environment and run the executor on small images.")
@click.option("--probes", type=click.Choice(["quick", "full"]), default="quick", show_default=True, help="With --run.")
@click.option("--budget", type=options.Number(min=0), metavar="SECONDS", help="Begin no probe after this long.")
@click.option("--rot", is_flag=True, help="Also solve the environment anew, without its lock, and say what changed.")
@click.option("--format", "style", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option("--report", "reports", multiple=True, metavar="FORMAT=FILE", help="Also write this file (repeatable).")
@click.option("--badge", type=click.Path(path_type=Path), help="Write an SVG badge to this file.")
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave out a rule (repeatable).")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "never"]),
    default="error",
    show_default=True,
    help="From what severity on the exit code is 7.",
)
@click.option("--rules", "list_rules", is_flag=True, help="List all rules and end.")
@click.option("-v", "--verbose", is_flag=True, help="Show what builds and executors print, and what is ignored.")
@options.reference
@options.environment
@options.CONFIG
@options.JSON
def check_command(
    ref: str,
    *,
    run_it: bool,
    probes: str,
    budget: float | None,
    rot: bool,
    style: str,
    reports: tuple[str, ...],
    badge: Path | None,
    ignore: tuple[str, ...],
    fail_on: str,
    list_rules: bool,
    verbose: bool,
    config: Path | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Is REF (default: this folder) a good executor? Exit code 7 when it is not.

    Static rules only read files and take seconds; --run tries it on a few small images too. docs/rules/ explains each
    rule; the executor's segserve.toml ignores them by name.
    """
    from segserve import api
    from segserve.check import whole as checking
    from segserve.refs import DEFAULT_ENTRY

    if list_rules:
        _list_rules()
        return
    style = "json" if as_json else style
    files = [_target(report) for report in reports]
    verbosity = 1 if verbose else 0 if run_it else -1
    with api.session(config=config, reporter=render.TerminalReporter(verbosity)) as session:
        request = session.request(ref, (), **chosen)
        only = chosen["entry"] or (request.ref.entry if request.ref.entry != DEFAULT_ENTRY else None)
        probing = checking.Probing(probes, only, budget) if run_it else None
        checked = session.check(request, ignore=ignore, probing=probing, anew=rot)
    threshold = Severity.ERROR if fail_on == "never" else Severity(fail_on)
    click.echo(_rendered(checked, style, threshold))
    for form, path in files:
        with writing(path):
            path.write_text(_rendered(checked, form, threshold) + "\n", encoding="utf-8")
    if style == "github":
        _summarise(checked)
    if style == "text" and verbose and checked.ignored:
        render.say(f"ignored: {', '.join(sorted({finding.rule for finding in checked.ignored}))}")
    bad = findings.at_least(checked.findings, threshold)
    if badge is not None:
        with writing(badge):
            badge.write_text(_badge(checked.findings), encoding="utf-8")
    if bad and fail_on != "never":
        raise Verdict(f"{checked.name} does not pass: {_counts(checked.findings)}.")


def _target(report: str) -> tuple[str, Path]:
    form, equals, name = report.partition("=")
    if not equals or not name or form not in FORMATS:
        raise UsageError(f"--report {report} is no FORMAT=FILE.", hint=f"Formats: {', '.join(FORMATS)}.")
    return form, Path(name)


def _rendered(checked: Checked, style: str, threshold: Severity) -> str:
    from segserve import __version__
    from segserve.check import RULES

    found = checked.findings
    if style == "json":
        return checked.as_json()
    if style == "junit":
        return findings.as_junit(found, "segserve check", threshold=threshold)
    if style == "sarif":
        return findings.as_sarif(found, RULES, tool="segserve", version=__version__)
    if style == "github":
        return findings.as_annotations(found)
    return render.plain(_text(checked))


def _text(checked: Any) -> str:
    lines = [str(finding) for finding in checked.findings]
    if checked.probes:
        rows = [
            (
                one.entry,
                one.probe,
                one.state,
                f"{one.seconds:.1f}",
                f"{one.memory_bytes / 1e6:.0f}",
                _objects(one.objects),
            )
            for one in checked.probes
        ]
        lines += ["", render.table(("entry", "probe", "state", "s", "MB", "objects"), rows, right=(3, 4)), ""]
    return "\n".join([*lines, f"{checked.name}: {_counts(checked.findings)}"])


def _objects(counts: tuple[int, ...]) -> str:
    return f"{sum(counts)} in {len(counts)}" if len(counts) > 6 else " ".join(map(str, counts))


def _counts(found: tuple[Finding, ...]) -> str:
    counts = [(sum(one.severity is severity for one in found), str(severity)) for severity in Severity]
    return ", ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in counts if count) or "no findings"


def _summarise(checked: Any) -> None:
    """The whole list, where GitHub shows it below the job."""
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file:
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(findings.as_summary(checked.findings, f"segserve check: {checked.name}"))


def _badge(found: tuple[Finding, ...]) -> str:
    from segserve.check.badge import badge

    return badge(found)


def _list_rules() -> None:
    from segserve.check import RULES

    render.echo(render.table(("rule", "severity", "what"), [(r.name, r.severity, r.summary) for r in RULES.values()]))
