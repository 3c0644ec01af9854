"""How much one account may have in the queue, and bring along in a day. Counted where a job is written down."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from segserve.errors import QuotaExceeded

HOURS = 24
_SOON = 30.0  # until a job of a full queue may have ended
_OF_INDEX = (
    "SELECT 1 FROM jobs INDEXED BY jobs_open_of_user"
    " WHERE state IN ('queued', 'preparing', 'waiting', 'running', 'collecting') AND user"
)
# A user and its shares, as two ranges of the index: '0' is what follows '/'.
_OPEN_JOBS = f"""
SELECT count(*) FROM (
    {_OF_INDEX} = :account
    UNION ALL {_OF_INDEX} > :account || '/' AND user < :account || '0' LIMIT :most
)
"""


@dataclass(frozen=True, slots=True)
class Quota:
    """What the jobs of one account may use; 0 = no limit.

    An account is a user with all its shares: the users `account` and `account/…` of the journal. `open_jobs` may be
    open at a time; `day_bytes` may be uploaded in 24 hours (counted by hours), of which this request has `bytes`.
    """

    account: str
    open_jobs: int = 0
    day_bytes: int = 0
    bytes: int = 0


def count(connection: sqlite3.Connection, quota: Quota | None, now: float) -> None:
    """Take a new job into account.

    Raises:
        QuotaExceeded: it is one too many; `after_s` says when to come again.
    """
    if quota is None:
        return
    if quota.open_jobs and _open_jobs(connection, quota) >= quota.open_jobs:
        raise QuotaExceeded(
            f"{quota.open_jobs} jobs of '{quota.account}' are open, which is the limit.",
            hint="Wait until some have ended, or stop them. (config.toml: quotas.open_jobs)",
            after_s=_SOON,
        )
    if quota.day_bytes:
        _count_bytes(connection, quota, int(now // 3600), now)


def _open_jobs(connection: sqlite3.Connection, quota: Quota) -> int:
    (number,) = connection.execute(_OPEN_JOBS, {"account": quota.account, "most": quota.open_jobs}).fetchone()
    return int(number)


def _count_bytes(connection: sqlite3.Connection, quota: Quota, hour: int, now: float) -> None:
    connection.execute("DELETE FROM uploads WHERE hour <= ?", (hour - HOURS,))
    used, oldest = connection.execute(
        "SELECT coalesce(sum(bytes), 0), coalesce(min(hour), ?) FROM uploads WHERE user = ?", (hour, quota.account)
    ).fetchone()
    if used + quota.bytes > quota.day_bytes:
        raise QuotaExceeded(
            f"'{quota.account}' has uploaded {used / 2**30:.3g} GiB in 24 hours; {quota.bytes / 2**30:.3g} GiB more"
            f" would be over {quota.day_bytes / 2**30:.3g} GiB, which is the limit.",
            hint="Wait, or send less. (config.toml: quotas.upload_gb_per_day)",
            after_s=max(_SOON, (oldest + HOURS) * 3600 - now),
        )
    connection.execute(
        "INSERT INTO uploads (user, hour, bytes) VALUES (?, ?, ?)"
        " ON CONFLICT (user, hour) DO UPDATE SET bytes = bytes + excluded.bytes",
        (quota.account, hour, quota.bytes),
    )
