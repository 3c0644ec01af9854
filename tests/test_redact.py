"""What looks like a secret never survives; what does not stays as it is."""

from __future__ import annotations

import pytest

from segserve import redact
from segserve.errors import RepositoryUnreachable


@pytest.mark.parametrize(
    "text",
    [
        "https://user:CANARY@host/repo",
        "https://CANARY@host/repo.git",
        "fatal: unable to access 'https://oauth2:CANARY@gitlab.example.org/a/b.git/'",
        "docker run -e MLFLOW_TRACKING_PASSWORD=CANARY -e X=1",
        "Authorization: Bearer CANARY",
        '{"token": "CANARY"}',
        "MY_API_KEY: CANARY",
        "mysql://root:CANARY@db/x",
    ],
)
def test_secrets_go(text: str) -> None:
    assert "CANARY" not in redact.text(text)


@pytest.mark.parametrize("token", ["ghp_" + "a1" * 18, "glpat-" + "x" * 20, "hf_" + "Q" * 30, "AKIA" + "A" * 16])
def test_tokens_with_a_known_prefix_go(token: str) -> None:
    assert token not in redact.text(f"using {token} for login")


@pytest.mark.parametrize(
    "text",
    [
        "git@github.com:org/repo.git",
        "ssh://git@host/repo",
        "https://host/org/repo@v1#main",
        "tokens are counted in the tokenizer",
        "size=10 label=Cell",
    ],
)
def test_prose_and_plain_addresses_stay(text: str) -> None:
    assert redact.text(text) == text


def test_errors_redact_themselves() -> None:
    error = RepositoryUnreachable("at https://u:CANARY@h/r", hint="https://u:CANARY@h", quote="token=CANARY")
    assert "CANARY" not in f"{error} {error.message} {error.hint} {error.quote}"
