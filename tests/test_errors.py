"""The table of errors: who can fix it decides exit code and HTTP status."""

from __future__ import annotations

import pytest

from segserve import errors


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ("UsageError InvalidRef UnknownEntryPoint InvalidParameters UnreadableImage NotFound TooLarge", 2),
        ("ExecutorError RevisionNotFound InvalidProject EnvironmentBuildFailed EnvironmentUnfit", 3),
        ("RunError ExecutorFailed RunTimedOut RunCancelled", 4),
        ("OutputError OutputMissing OutputInvalid", 5),
        ("BackendError RepositoryUnreachable NoSlot DiskFull AttemptLost AccessDenied QuotaExceeded", 6),
        ("Defect", 1),
        ("Verdict", 7),
    ],
)
def test_exit_codes(names: str, code: int) -> None:
    assert {getattr(errors, name).exit_code for name in names.split()} == {code}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("UsageError", 400), ("NotFound", 404), ("UnknownEntryPoint", 404), ("TooLarge", 413), ("InvalidProject", 422),
        ("ExecutorFailed", 502), ("RunTimedOut", 504), ("RunCancelled", 409), ("OutputInvalid", 502), ("NoSlot", 503),
        ("AccessDenied", 403), ("LoginNeeded", 401), ("QuotaExceeded", 429), ("Verdict", 200), ("SegserveError", 500),
    ],
)  # fmt: skip
def test_http_status(name: str, status: int) -> None:
    assert getattr(errors, name).http_status == status


def test_only_what_machine_and_network_did_is_tried_again() -> None:
    kinds = {name for name, kind in vars(errors).items() if getattr(kind, "retryable", False)}
    assert kinds == {
        *("BackendError", "RepositoryUnreachable", "TrackingUnreachable", "NoSlot", "DiskFull", "AttemptLost"),
    }


def test_nearest_name() -> None:
    assert errors.did_you_mean("mian", ["main", "info"]) == "Did you mean 'main'?"
    assert errors.did_you_mean("zzz", ["main", "info"]) == "There is: info, main."
    assert errors.did_you_mean("zzz", []) == ""
