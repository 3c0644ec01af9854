"""Credentials in files. They are reported redacted; what looks like a secret, `redact` alone knows."""

from __future__ import annotations

from collections.abc import Iterator

from segserve import redact
from segserve.check.repository import Repository, point
from segserve.findings import Finding, Rule, Severity

CREDENTIAL = Rule(
    "credential",
    Severity.ERROR,
    "A password or token stands in a file: everybody who can read the repository has it.",
    "Revoke it, then remove it; removing alone leaves it in the history.",
)
PRIVATE_KEY = Rule(
    "private-key",
    Severity.ERROR,
    "A private key is in the repository.",
    "Revoke it, then remove the file; removing alone leaves it in the history.",
)
RULES = (CREDENTIAL, PRIVATE_KEY)
_PER_FILE = 5


def find(repository: Repository) -> Iterator[Finding]:
    """At most five of each file."""
    for path, text in repository.texts():
        for position, shown in redact.certain(text)[:_PER_FILE]:
            yield CREDENTIAL.at(f"This looks like a secret: {shown}", point(path, text, position))
        key = redact.PRIVATE_KEY.search(text)
        if key is not None:
            yield PRIVATE_KEY.at("Here a private key begins.", point(path, text, key.start()))
