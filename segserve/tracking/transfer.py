"""Move artifacts to or from wherever a run keeps them (object stores, a proxying server), by the mlflow library.

    python -m segserve.tracking.transfer upload RUN_ID FOLDER ARTIFACT_PATH
    python -m segserve.tracking.transfer download ARTIFACT_URI FOLDER

A process of its own: the library takes its credentials from the environment alone, and costs 2–3 s to import, which a
command that uses the embedded server never pays.
"""

from __future__ import annotations

import json
import sys


def main(arguments: list[str]) -> None:
    """Do one transfer; a download prints the local path as JSON on the last line."""
    match arguments:
        case ["upload", run_id, folder, artifact_path]:
            from mlflow.tracking import MlflowClient

            MlflowClient().log_artifacts(run_id, folder, artifact_path or None)
        case ["download", uri, folder]:
            from mlflow.artifacts import download_artifacts

            print(json.dumps(download_artifacts(artifact_uri=uri, dst_path=folder)))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
