"""Verbs that look after the tokens of the service."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from segserve.api.verbs import Verbs
from segserve.errors import UsageError
from segserve.tokens import Scope, Token, Tokens

_PERIOD = re.compile(r"(\d{1,5})([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


class Access(Verbs):
    """Tokens: list, add, remove."""

    def tokens(self) -> list[dict[str, Any]]:
        """Every token: id, name, user, scopes, when it was made, until when it holds. None of them has its text."""
        return [_row(token) for token in Tokens(self.ctx.home.tokens).all()]

    def add_token(
        self, name: str, *, user: str = "", scopes: Iterable[str] = ("submit", "read"), expires: str = ""
    ) -> dict[str, Any]:
        """Make a token; its text is under `token`, now and never again. `expires`: 90d, 12h, 4w or an ISO day.

        Raises:
            UsageError: the name is taken, or something is not what it should be.
        """
        try:
            wanted = [Scope(scope) for scope in scopes]
        except ValueError as error:
            raise UsageError(f"{error}.".capitalize(), hint=f"Scopes are {', '.join(Scope)}.") from None
        tokens = Tokens(self.ctx.home.tokens)
        token, text = tokens.add(name, user=user, scopes=wanted, expires=moment(expires))
        return {**_row(token), "token": text}

    def remove_token(self, name: str) -> dict[str, Any]:
        """Take a token away, by name or id. A server that runs refuses it from now on.

        Raises:
            NotFound: there is none.
        """
        return _row(Tokens(self.ctx.home.tokens).remove(name))


def moment(text: str) -> float:
    """`90d`, `12h`, `4w` from now or an ISO day or time (UTC, if it names no zone) in seconds since the epoch; "" is 0.

    Raises:
        UsageError: it is none of these.
    """
    if not text:
        return 0.0
    period = _PERIOD.fullmatch(text)
    if period:
        return time.time() + int(period[1]) * _SECONDS[period[2]]
    try:
        day = datetime.fromisoformat(text)
        return (day if day.tzinfo else day.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f"'{text}' is no time.", hint="90d, 12h, 4w, or a day: 2027-03-31") from None


def _row(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "user": token.user,
        "scopes": [str(scope) for scope in token.scopes],
        "created": _iso(token.created),
        "expires": _iso(token.expires) if token.expires else "",
        "valid": token.valid,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
