"""Hand files and numbers to the MLflow run that this executor is part of; short failures are survived.

mlflow is imported when something is logged, not before, and only inside a run (`MLFLOW_RUN_ID` or an address is set).
Without a run, files stay where they are: `python main.py images/` works on any machine.
"""

import os
import random
import time
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Union

TRIES = 5
_RUN_VARIABLES = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI")


def active() -> bool:
    """Whether there is an MLflow run to log to."""
    return any(os.environ.get(name) for name in _RUN_VARIABLES)


def log_file(path: Union[str, Path], folder: str = "", *, tries: int = TRIES) -> bool:
    """Log a file as an artifact; False when there is no run, and the file stays where it is.

    Raises:
        OSError, mlflow.exceptions.MlflowException: it could not be logged, after `tries`.
    """
    return _call("log_artifact", str(path), folder or None, tries=tries)


def log_folder(path: Union[str, Path], folder: str = "", *, tries: int = TRIES) -> bool:
    """Log everything in a folder, as `log_file` does."""
    return _call("log_artifacts", str(path), folder or None, tries=tries)


def log_metrics(values: Dict[str, float], step: Optional[int] = None, *, tries: int = TRIES) -> bool:
    """Log numbers, as `log_file` does."""
    return _call("log_metrics", values, step=step, tries=tries)


def log_params(values: Dict[str, Any], *, tries: int = TRIES) -> bool:
    """Log parameters that the entry point itself does not have, as `log_file` does."""
    return _call("log_params", values, tries=tries)


def retried(call: Callable[[], Any], tries: int = TRIES, pause: float = 1.0) -> Any:
    """The answer of `call`, which is tried again when the server or the network is in trouble, with growing pauses.

    Raises:
        whatever `call` raises: at once when it would fail again (a wrong name), else after `tries`.
    """
    for attempt in range(1, tries + 1):
        try:
            return call()
        except Exception as error:
            if attempt == tries or not _may_pass(error):
                raise
            wait = pause * 2.0 ** (attempt - 1) * random.uniform(0.8, 1.2)  # noqa: S311 - so that many do not come at once
            print(f"MLflow does not answer ({type(error).__name__}: {error}); again in {wait:.0f} s", flush=True)
            time.sleep(wait)
    raise ValueError("tries must be at least 1")


def _call(name: str, *arguments: Any, tries: int, **options: Any) -> bool:
    if not active():
        return False
    import mlflow

    run_id = os.environ.get("MLFLOW_RUN_ID")

    def call() -> None:
        if run_id and mlflow.active_run() is None:
            # mlflow removes the variable when it begins, even if that fails, and would make a new run the next time.
            os.environ["MLFLOW_RUN_ID"] = run_id
        getattr(mlflow, name)(*arguments, **options)

    retried(call, tries)
    return True


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "get_http_status_code", None)
    if status is not None:  # an MlflowException; what the server refuses (4xx), it will refuse again
        return int(status()) >= 500
    # requests' exceptions are OSErrors, too; a file that is not there will not appear.
    return isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError))
