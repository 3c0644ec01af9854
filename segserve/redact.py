"""The only place that knows what a secret looks like. All that is logged, tagged or stored passes through here."""

from __future__ import annotations

import logging
import re

MASK = "***"

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # user:password@ in any URL; the user name of an ssh URL (git@) is no secret and stays, as does our own example.
    (
        re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?!(?-i:USER:TOKEN)@)[^\s/@:'\"]*:[^\s/@'\"]*@", re.I),
        rf"\g<scheme>{MASK}@",
    ),
    # https://TOKEN@host: a bare user part in http(s) is a token more often than a name.
    (re.compile(r"(?P<scheme>\bhttps?://)[^\s/@:'\"]+@", re.I), rf"\g<scheme>{MASK}@"),
    # Tokens with a well-known prefix (GitHub, GitLab, Slack, AWS, Hugging Face, PyPI), and our own (`segserve.tokens`).
    (
        re.compile(
            r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}"
            r"|AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|pypi-[\w-]{20,}|sgs_\w{20,})"
        ),
        MASK,
    ),
    # Authorization: Bearer …, "token": "…", PASSWORD=…, --password … . Names only, so that prose survives.
    (re.compile(r"(?P<head>\bauthorization:\s*(?:basic|bearer|token)\s+)\S+", re.I), rf"\g<head>{MASK}"),
    (
        re.compile(
            r"(?P<head>\b[\w-]*(?:password|passwd|secret|api[_-]?key|access[_-]?key|token)[\"']?\s*[=:]\s*[\"']?)"
            r"(?P<value>[^\s\"'&,;]+)",
            re.I,
        ),
        rf"\g<head>{MASK}",
    ),
)

SECRET_NAME = re.compile(r"(password|passwd|secret|token|api_?key|access_?key|credential|private_?key)", re.I)


# What is a secret wherever it stands; the other patterns also take `token = next(tokens)` for one.
_CERTAIN = _PATTERNS[:3]
PRIVATE_KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")
_PLACEHOLDER = re.compile(r"x{4,}|\.\.\.|[<${%*\\[]|user:pass|example|your|(.)\1{7}", re.I)
_RANDOM = re.compile(r"(?=[^@]*[0-9])(?=[^@]*[A-Za-z])[^\s/@:'\"]{12,}@$")


# One of these is in everything that a pattern can match; looking for them first makes logs 50 times cheaper.
_HINTS = (
    *("://", "authorization", "password", "passwd", "secret", "token", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    *("github_pat_", "glpat-", "xox", "akia", "hf_", "pypi-", "sgs_", "apikey", "api_key", "api-key", "accesskey"),
    *("access_key", "access-key"),
)


def text(value: str) -> str:
    """`value` with everything that looks like a secret replaced by `***`."""
    if not suspicious(value):
        return value
    for pattern, replacement in _PATTERNS:
        value = pattern.sub(replacement, value)
    return value


def certain(value: str) -> list[tuple[int, str]]:
    """(position, redacted text) of what is surely a secret: for those who look for secrets, not to hide them.

    Placeholders (`https://user:pass@host`, `ghp_xxxx…`) are none, nor is in a URL what is short or all letters.
    """
    if not suspicious(value):
        return []
    found = [match for pattern, _ in _CERTAIN for match in pattern.finditer(value)]
    real = [
        match
        for match in found
        if not _PLACEHOLDER.search(match.group()) and (match.group()[-1] != "@" or _RANDOM.search(match.group()))
    ]
    return sorted({match.start(): text(match.group()) for match in real}.items())


def value(name: str, text_of_it: str) -> str:
    """The value of a parameter or tag: redacted, and all of it when the name says what it is, as in `name=value`."""
    return MASK if text(f"{name}=x") != f"{name}=x" else text(text_of_it)


def suspicious(value: str) -> bool:
    """Whether `text` could find anything at all in it: cheap, for streams."""
    lower = value.lower()
    return any(hint in lower for hint in _HINTS)


def url(value: str) -> str:
    """A URL without user, password, query and fragment secrets; other text as it is."""
    return text(value)


class LogFormatter(logging.Formatter):
    """Log lines and tracebacks without secrets: libraries quote URLs, statements and values."""

    def format(self, entry: logging.LogRecord) -> str:
        """As the standard one, redacted."""
        return text(super().format(entry))
