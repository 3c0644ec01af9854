"""The tree of errors. They divide by who can fix it; the class carries exit code and HTTP status.

SegserveError
├── UsageError             2   the caller's arguments or images
│   ├── InvalidRef, UnknownEntryPoint, InvalidParameters, UnreadableImage, NotFound, TooLarge
├── ExecutorError          3   the executor's repository
│   ├── RevisionNotFound, InvalidProject, EnvironmentBuildFailed, EnvironmentUnfit
├── RunError               4   the executor, while it ran
│   ├── ExecutorFailed, RunTimedOut, RunCancelled
├── OutputError            5   what the executor left
│   ├── OutputMissing, OutputInvalid
├── BackendError           6   the machine, the network, the remote
│   ├── RepositoryUnreachable, TrackingUnreachable, NoSlot, DiskFull, AttemptLost, QuotaExceeded,
│       AccessDenied, LoginNeeded
└── Verdict                7   the tool worked, the answer is no

Anything else that escapes is a defect of ours (exit code 1); an interrupt is 130.
"""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from segserve import redact
from segserve.findings import Finding

EXIT_DEFECT = 1
EXIT_INTERRUPTED = 130


class SegserveError(Exception):
    """What happened (`message`), what to do (`hint`), the deciding lines of a log (`quote`), where it lies (`log`).

    All texts are redacted here, so that no caller can forget it.
    """

    exit_code = EXIT_DEFECT
    http_status = 500
    retryable = False  # the queue tries the same request again, after a while

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        quote: str = "",
        log: Path | None = None,
        findings: Iterable[Finding] = (),
    ) -> None:
        self.message = redact.text(message)
        self.hint = redact.text(hint)
        self.quote = redact.text(quote)
        self.log = log
        self.findings = tuple(findings)
        super().__init__(self.message)

    @property
    def code(self) -> str:
        """The stable name of this kind of error, for JSON: `RevisionNotFound`."""
        return type(self).__name__


class UsageError(SegserveError):
    """The caller can fix it."""

    exit_code, http_status = 2, 400


class InvalidRef(UsageError):
    """The text does not name an executor."""


class UnknownEntryPoint(UsageError):
    """The project has no such entry point."""

    http_status = 404


class InvalidParameters(UsageError):
    """A parameter is unknown, missing or of the wrong type."""


class UnreadableImage(UsageError):
    """Inputs that cannot be read as images; `findings` names each of them."""


class NotFound(UsageError):
    """A job, file or name that does not exist."""

    http_status = 404


class TooLarge(UsageError):
    """An input over a limit."""

    http_status = 413


class ExecutorError(SegserveError):
    """The author of the executor can fix it."""

    exit_code, http_status = 3, 422


class RevisionNotFound(ExecutorError):
    """The repository has no such branch, tag or commit, or it is ambiguous."""


class InvalidProject(ExecutorError):
    """MLProject is missing, malformed or dangerous; `findings` has line and column."""


class EnvironmentBuildFailed(ExecutorError):
    """The environment cannot be built; `quote` has the deciding lines."""


class EnvironmentUnfit(ExecutorError):
    """It was built, but not for the cards of this machine."""


class RunError(SegserveError):
    """The executor started and did not finish well."""

    exit_code, http_status = 4, 502


class ExecutorFailed(RunError):
    """It exited with an error; the message names the cause where we know it."""


class RunTimedOut(RunError):
    """It ran past its time limit."""

    http_status = 504


class RunCancelled(RunError):
    """Somebody stopped it."""

    http_status = 409


class OutputError(SegserveError):
    """The executor finished, but what it left is no result."""

    exit_code, http_status = 5, 502


class OutputMissing(OutputError):
    """No output.json, neither logged nor left in the working directory."""


class OutputInvalid(OutputError):
    """output.json is not what the format allows; `findings` says where."""


class BackendError(SegserveError):
    """The machine, the network or a remote service."""

    exit_code, http_status = 6, 503
    retryable = True


class RepositoryUnreachable(BackendError):
    """The remote does not answer or refuses us."""


class TrackingUnreachable(BackendError):
    """The MLflow tracking server does not start, does not answer, or is none."""


class NoSlot(BackendError):
    """No GPU (or other resource) is free."""


class DiskFull(BackendError):
    """No space left."""


class AttemptLost(BackendError):
    """What drove or supervised the attempt was killed, or the machine was restarted; nobody knows how it would end."""


@contextmanager
def writing(place: Path, hint: str = "Choose another place.") -> Iterator[None]:
    """What the system says while something is written where the user wants it, in our words.

    Raises:
        DiskFull: no space is left.
        UsageError: `place` cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        raise disk_full(error) or UsageError(
            f"'{place}' cannot be written: {error.strerror or error}.", hint=hint
        ) from None


def of_system(error: OSError) -> BackendError | None:
    """What the system refuses wherever it happens: no space, no right. All else that it says may be a fault of ours."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return disk_full(error)
    return BackendError(
        f"'{error.filename}': {error.strerror}.", hint="Let yourself read and write there, or choose another place."
    )


_LEAST_SPACE = 1 << 20


def disk_full(error: BaseException, folder: Path | None = None) -> DiskFull | None:
    """What `error` means if it says that no space or quota is left: the system, sqlite or a copy may say so.

    Of a database, a full disk is often no more than a "disk I/O error": then the space left in `folder` decides.
    """
    code = getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0
    full = (
        (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
        or code == sqlite3.SQLITE_FULL
        or (code & 0xFF == sqlite3.SQLITE_IOERR and folder is not None and _free(folder) < _LEAST_SPACE)
        # shutil.copytree keeps only the texts of what went wrong.
        or (isinstance(error, shutil.Error) and f"[Errno {errno.ENOSPC}]" in str(error))
    )
    if not full:
        return None
    name = getattr(error, "filename", None)
    return DiskFull(
        f"The disk is full: '{name}' could not be written." if name else "The disk is full.",
        hint="`segserve env gc` removes unused environments; SEGSERVE_HOME moves everything to another disk.",
    )


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return _LEAST_SPACE


class AccessDenied(BackendError):
    """Not allowed."""

    http_status = 403
    retryable = False


class LoginNeeded(AccessDenied):
    """Nobody is known who could be allowed: no token, or one that is not valid (any more)."""

    http_status = 401


class QuotaExceeded(BackendError):
    """Allowed, but too much; in `after_s` seconds there may be room."""

    http_status = 429
    retryable = False

    def __init__(self, message: str, *, hint: str = "", after_s: float = 30.0) -> None:
        super().__init__(message, hint=hint)
        self.after_s = after_s


class Defect(SegserveError):
    """A defect of ours, as it is written down for a job that it has ended."""


class Verdict(SegserveError):
    """The tool worked and the answer is no: findings at or above the threshold."""

    exit_code, http_status = 7, 200


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'?`, or the list of what there is, or nothing. For hints."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"There is: {', '.join(names)}." if names else ""
