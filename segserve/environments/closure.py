"""The closure of pip requirements: every -r and -c file, local path and git revision. Hostile until checked."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from segserve import process, redact
from segserve.environments.base import inside
from segserve.environments.indexes import Indexes, host_settings
from segserve.environments.requirements import LocalPath, Requirements
from segserve.errors import InvalidProject
from segserve.findings import Finding, Place, Severity

LIMIT_BYTES = 1_000_000
LIMIT_FILES = 100


def read(
    lines: Iterable[str],
    folder: Path,
    root: Path,
    *,
    source: str,
    offline: bool = False,
    revisions: Mapping[str, str] | None = None,
) -> Requirements:
    """Follow requirement lines (as in a pip requirements file) through everything that they name.

    `folder` is the project's folder (relative paths start there), `root` the checkout that nothing may leave, `source`
    how messages call the file that holds the lines. `offline` asks no git remote; `revisions` (of an
    earlier `read`) asks none either and takes these.

    Raises:
        InvalidProject: all that is wrong or refused, each with file and line.
    """
    reader = _Reader(folder, root, offline, revisions)
    for _, line in _logical(lines):
        reader.take(line, Place(source), folder, constraint=False)
    if reader.findings:
        text = "\n".join(str(finding) for finding in reader.findings)
        raise InvalidProject(
            text, hint="The author of the executor has to correct its requirements.", findings=reader.findings
        )
    trusted = {urlsplit(url).hostname for url in (reader.index, *reader.extra, *reader.find_links) if url}
    for name in reader.trusted:
        if name.split(":")[0] not in trusted:
            reader.warnings.append(f"{source}: '--trusted-host {name}' is ignored: no index of this file is there.")
    return Requirements(
        tuple(dict.fromkeys(reader.lines)),
        tuple(dict.fromkeys(reader.constraints)),
        tuple(dict.fromkeys(reader.local)),
        Indexes(
            reader.index,
            tuple(dict.fromkeys(reader.extra)),
            tuple(dict.fromkeys(reader.find_links)),
            reader.no_index,
            tuple(name for name in dict.fromkeys(reader.trusted) if name.split(":")[0] in trusted),
        ),
        tuple(dict.fromkeys(reader.arguments)),
        reader.revisions,
        tuple(dict.fromkeys(reader.warnings)),
    )


_REQUIREMENT_OPTION = re.compile(r"\s--?[a-zA-Z]")
_DIRECT = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(?P<extras>\[[^\]]*\])?\s*@\s*(?P<target>\S.*)")
_MARKER = re.compile(r"\s;\s*|;\s+")
_TARGET = re.compile(r"(?P<path>.*?)(?P<extras>\[[\w\s,.-]*\])?")
_GIT = re.compile(
    r"git\+(?P<url>(?P<scheme>[a-z]+)://[^\s#]+?)(?:@(?P<rev>[^@/:\s#][^@:\s#]*))?(?:\#(?P<fragment>\S*))?", re.I
)
_VARIABLE = re.compile(r"\$\{[A-Za-z0-9_]+\}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]*")
_NO_VALUE = {
    "--pre": "--prerelease=allow",
    "--no-deps": "--no-deps",
    "--require-hashes": "--require-hashes",
    "--no-build-isolation": "--no-build-isolation",
}
# Options that change nothing about what is installed here.
_WITHOUT_EFFECT = {
    *("--prefer-binary", "-U", "--upgrade", "-q", "--quiet", "-v", "--verbose", "--no-cache-dir", "--user"),
    *("--use-pep517", "--ignore-installed", "-I", "--disable-pip-version-check", "--no-warn-script-location"),
}
_WITH_VALUE = {
    **dict.fromkeys(("-r", "--requirement"), "requirement"),
    **dict.fromkeys(("-c", "--constraint"), "constraint"),
    **dict.fromkeys(("-e", "--editable"), "editable"),
    **dict.fromkeys(("-i", "--index-url", "--pypi-url"), "index"),
    **dict.fromkeys(("-f", "--find-links"), "find_links"),
    "--extra-index-url": "extra",
    "--trusted-host": "trusted",
    "--no-binary": "no_binary",
    "--only-binary": "only_binary",
    "--use-feature": "ignored",
    "--upgrade-strategy": "ignored",
    "--timeout": "ignored",
    "--retries": "ignored",
}


class _Reader:
    """Collects what lines ask for, and everything that is wrong with them."""

    def __init__(self, folder: Path, root: Path, offline: bool, revisions: Mapping[str, str] | None) -> None:
        self.folder, self.root, self.offline = folder, root, offline
        self.lines: list[str] = []
        self.constraints: list[str] = []
        self.local: list[LocalPath] = []
        self.index: str | None = None
        self.extra: list[str] = []
        self.find_links: list[str] = []
        self.trusted: list[str] = []
        self.no_index = False
        self.arguments: list[str] = []
        self.known = revisions  # None: ask the remotes
        self.revisions: dict[str, str] = {}
        self.warnings: list[str] = []
        self.findings: list[Finding] = []
        self.seen: set[tuple[Path, bool]] = set()

    def take(self, line: str, place: Place, folder: Path, *, constraint: bool) -> None:
        """One logical line; `folder` is where the file that holds it lies."""
        if any(ord(sign) < 32 and sign != "\t" for sign in line):
            self._wrong(place, "control characters are not allowed")
        elif _VARIABLE.search(line):
            # pip would put the value in, and with it a secret of this machine into a request to any server.
            self._wrong(place, f"'{line}' reads a variable of this machine", "Write the value out.")
        elif line.startswith("-"):
            self._option(line, place, folder, constraint=constraint)
        else:
            self._requirement(line, place, folder, constraint=constraint)

    def _wrong(self, place: Place, message: str, fix: str = "") -> None:
        self.findings.append(Finding("requirements", Severity.ERROR, redact.text(message), place, fix))

    # ------------------------------------------------------------------------------------------------------- options

    def _option(self, line: str, place: Place, folder: Path, *, constraint: bool) -> None:
        try:
            words = shlex.split(line)
        except ValueError:
            self._wrong(place, f"'{line}': a quotation mark is not closed")
            return
        while words:
            option, value = _split_option(words.pop(0))
            if option in _WITHOUT_EFFECT:
                continue
            if option == "--no-index":
                self.no_index = True
            elif option in _NO_VALUE:
                self.arguments.append(_NO_VALUE[option])
            elif option in _WITH_VALUE:
                if value is None:
                    value = words.pop(0) if words else ""
                if _WITH_VALUE[option] == "editable":
                    value, words = " ".join([value, *words]), []
                self._valued(_WITH_VALUE[option], value, place, folder, constraint=constraint)
            else:
                self._wrong(place, f"the option '{option}' is not supported", "Remove it.")
                return

    def _valued(self, kind: str, value: str, place: Place, folder: Path, *, constraint: bool) -> None:
        if not value:
            self._wrong(place, f"an option lacks its value ({kind})")
        elif kind in ("requirement", "constraint"):
            self._file(value, place, folder, constraint=constraint or kind == "constraint")
        elif kind == "editable":
            self._requirement(value, place, folder, constraint=constraint)
        elif kind == "trusted":
            self.trusted.append(value)
        elif kind in ("no_binary", "only_binary"):
            self._binary(kind, value, place)
        elif kind != "ignored":
            self._index(kind, value, place, folder)

    def _binary(self, kind: str, value: str, place: Place) -> None:
        for name in value.split(","):
            if re.fullmatch(r":(all|none):|[A-Za-z0-9][\w.-]*", name):
                self.arguments.append(f"--{kind.replace('_', '-')}={name}")
            else:
                self._wrong(place, f"'{name}' is no package name")

    def _index(self, kind: str, value: str, place: Place, folder: Path) -> None:
        if re.match(r"https?://", value, re.I):
            location = value
        elif "://" in value and not value.lower().startswith("file:"):
            self._wrong(place, f"'{value}': packages come from https, http or a folder of the repository")
            return
        else:
            path = self._path(value, place, folder)
            if path is None:
                return
            location = str(path) if kind == "find_links" else path.as_uri()
        if kind == "index":
            self.index = location
        else:
            (self.extra if kind == "extra" else self.find_links).append(location)

    # --------------------------------------------------------------------------------------------------------- files

    def _file(self, value: str, place: Place, folder: Path, *, constraint: bool) -> None:
        if re.match(r"[a-z]+://", value, re.I):
            self._wrong(place, f"'{value}': requirements of another server", "Put the file into the repository.")
            return
        path = (folder / value).resolve()
        if not self._allowed(path, value, place):
            return
        if (path, constraint) in self.seen:
            return
        self.seen.add((path, constraint))
        if len(self.seen) > LIMIT_FILES:
            self._wrong(place, f"more than {LIMIT_FILES} requirements files")
            return
        if not path.is_file():
            self._wrong(place, f"'{value}' does not exist (searched at {self._shown(path)})")
            return
        if path.stat().st_size > LIMIT_BYTES:
            self._wrong(place, f"'{value}' is larger than {LIMIT_BYTES // 1000} kB")
            return
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            self._wrong(place, f"'{value}' is not UTF-8")
            return
        for number, line in _logical(text.splitlines()):
            self.take(line, Place(self._shown(path), number), path.parent, constraint=constraint)

    def _path(self, value: str, place: Place, folder: Path) -> Path | None:
        text = value
        if value.lower().startswith("file:"):
            parts = urlsplit(value)
            if parts.netloc not in ("", "localhost"):
                self._wrong(place, f"'{value}' is on another machine")
                return None
            text = unquote(parts.path)
        # pip reads a relative path from where it is called: the project. Files that were written to be read from
        # their own place are common too.
        candidates = [(base / text).resolve() for base in dict.fromkeys((self.folder, folder))]
        path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
        if not self._allowed(path, value, place):
            return None
        if not path.exists():
            self._wrong(place, f"'{value}' does not exist (searched at {self._shown(path)})")
            return None
        return path

    def _allowed(self, path: Path, value: str, place: Place) -> bool:
        if inside(path, self.root):
            return True
        self._wrong(place, f"'{value}' leaves the repository", "Refer to files of the repository only.")
        return False

    def _shown(self, path: Path) -> str:
        root = self.root.resolve()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

    # -------------------------------------------------------------------------------------------------- requirements

    def _requirement(self, line: str, place: Place, folder: Path, *, constraint: bool) -> None:
        line, hashes = self._without_options(line, place)
        direct = _DIRECT.fullmatch(line)
        name = f"{direct['name']}{direct['extras'] or ''}" if direct else ""
        target = direct["target"] if direct else line
        scheme = re.match(r"[a-z][a-z0-9+.-]*(?=:)", target, re.I)
        if scheme and scheme.group().lower().startswith("git+"):
            self._git(name, target, place, constraint=constraint)
        elif scheme and scheme.group().lower() == "file":
            self._local(name, target, place, folder, constraint=constraint)
        elif scheme and scheme.group().lower() not in ("http", "https"):
            self._wrong(place, f"'{line}': only git, https and local paths are supported")
        elif not scheme and (direct or _looks_like_path(target)):
            self._local(name, target, place, folder, constraint=constraint)
        else:
            (self.constraints if constraint else self.lines).append(line + hashes)

    def _without_options(self, line: str, place: Place) -> tuple[str, str]:
        found = _REQUIREMENT_OPTION.search(line)
        if found is None:
            return line.strip(), ""
        head, tail = line[: found.start()], line[found.start() :]
        words = tail.replace("--hash ", "--hash=").split()
        for word in words:
            if not re.fullmatch(r"--hash=(sha256|sha384|sha512):[0-9a-fA-F]+", word):
                self._wrong(place, f"the option '{word}' of a requirement is not supported", "Remove it.")
        return head.strip(), "".join(f" {word}" for word in words)

    def _local(self, name: str, target: str, place: Place, folder: Path, *, constraint: bool) -> None:
        if constraint:
            self._wrong(place, f"'{target}': a constraint names versions, not paths")
            return
        written, _, marker = _partition(_MARKER, target)
        written = written.split("#", 1)[0]
        parts = _TARGET.fullmatch(written)
        text, extras = (parts["path"], parts["extras"] or "") if parts else (written, "")
        path = self._path(text.strip(), place, folder)
        if path is None:
            return
        if not path.is_dir() and not re.search(r"\.(whl|zip|tar\.gz|tgz|tar\.bz2|tar\.xz)$", path.name):
            self._wrong(place, f"'{text}' is neither a project folder nor a wheel or archive")
            return
        in_name = re.search(r"\[.*\]", name)
        self.local.append(LocalPath(path, (in_name.group() if in_name else extras).replace(" ", ""), marker.strip()))

    def _git(self, name: str, target: str, place: Place, *, constraint: bool) -> None:
        written, _, marker = _partition(_MARKER, target)
        match = _GIT.fullmatch(written.strip())
        if match is None or match["scheme"].lower() not in ("https", "http", "ssh", "file"):
            self._wrong(place, f"'{target}' is no git requirement that is understood", "git+https://…@revision")
            return
        revision = match["rev"] or ""
        if match["scheme"].lower() == "file" and self._path(match["url"], place, self.folder) is None:
            return
        if revision and not _REVISION.fullmatch(revision):
            self._wrong(place, f"'{revision}' is no git revision")
            return
        fragment = dict(part.partition("=")[::2] for part in (match["fragment"] or "").split("&") if part)
        sha = self._revision(match["url"], revision)
        pinned = f"git+{match['url']}" + (f"@{sha or revision}" if sha or revision else "")
        pinned += f"#subdirectory={fragment['subdirectory']}" if fragment.get("subdirectory") else ""
        egg = re.fullmatch(r"[A-Za-z0-9][\w.-]*(\[[\w,.-]*\])?", fragment.get("egg", ""))
        name = name or (egg.group() if egg else "")
        line = f"{name} @ {pinned}" if name else pinned
        (self.constraints if constraint else self.lines).append(line + (f" ; {marker}" if marker else ""))

    def _revision(self, url: str, revision: str) -> str:
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        label = f"{redact.url(url)}@{revision or 'HEAD'}"
        if self.known is not None:
            sha = self.known.get(label, "")
        else:
            sha = "" if self.offline else remote_revision(url, revision)
        if sha:
            self.revisions[label] = sha
        else:
            self.warnings.append(f"{label} could not be resolved to a commit: the environment is keyed by this text.")
        return sha


def remote_revision(url: str, revision: str, *, timeout: float = 30) -> str:
    """The commit that a branch, tag or HEAD ('') of a remote is at, or '' when it does not answer or has no such."""
    patterns = (
        [f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}", f"refs/heads/{revision}"] if revision else ["HEAD"]
    )
    try:
        # Not in the caller's folder: its .git/config would have a say in where we connect to, and how.
        argv = ["git", "ls-remote", "--", url, *patterns]
        done = process.run(argv, cwd=Path(os.sep), env=host_settings().environment(), timeout=timeout)
    except (process.CommandFailed, FileNotFoundError):
        return ""
    pairs = (line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    found = {name: sha for sha, name in pairs if re.fullmatch(r"[0-9a-f]{40}", sha)}
    return next((found[pattern] for pattern in patterns if pattern in found), "")


def _split_option(word: str) -> tuple[str, str | None]:
    if word.startswith("--"):
        option, equals, value = word.partition("=")
        return option, value if equals else None
    return word[:2], word[2:].removeprefix("=") or None


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or "/" in _partition(_MARKER, text)[0] or text.endswith((".whl", ".tar.gz"))


def _partition(pattern: re.Pattern[str], text: str) -> tuple[str, str, str]:
    found = pattern.search(text)
    return (text, "", "") if found is None else (text[: found.start()], found.group(), text[found.end() :])


def _logical(lines: Iterable[str]) -> list[tuple[int, str]]:
    """(number of its first line, line), continuation lines joined, comments and blank lines removed, as pip does."""
    joined: list[tuple[int, str]] = []
    pending, start = "", 0
    for number, line in enumerate(lines, start=1):
        start = start or number
        comment = re.match(r"\s*#", line)
        if line.endswith("\\") and not comment:
            pending += line[:-1]
            continue
        joined.append((start, pending + ("" if comment and pending else line)))
        pending, start = "", 0
    if pending:
        joined.append((start, pending))
    stripped = ((number, re.sub(r"(^|\s+)#.*$", "", line).strip()) for number, line in joined)
    return [(number, line) for number, line in stripped if line]
