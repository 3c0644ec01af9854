"""Where a model comes from, in one text: a name that the method knows, a file, a URL, an MLflow run or registry.

runs:/<id>/model · models:/cells/3 · https://host/file#sha256=<64 hex digits> · /data/model.pt · a name
"""

import re
import tempfile
from pathlib import Path
from typing import Callable, Iterable, Optional, Union

from segserve_sdk import weights

MLFLOW = ("runs:/", "models:/", "mlflow-artifacts:/")
_URL = re.compile(r"(?P<url>https://[^#]+)(?:#sha256=(?P<digest>[0-9a-fA-F]{64}))?")
_BESIDE = (".json", ".yaml", ".yml", ".txt", ".md")  # what lies beside weights in a logged model


class NoModel(ValueError):
    """A model that cannot be had; the message says why, and what can be given instead."""


def problem(model: str, names: Iterable[str] = (), *, base: Union[str, Path] = ".") -> str:
    """Why `model` can be none, as far as it can be told without a network; empty when it may be one.

    `names` are those that the method knows itself; relative files begin at `base` (the executor's own folder).
    """
    known = list(names)
    if model in known or model.startswith(MLFLOW):
        return ""
    if "://" in model:
        if _URL.fullmatch(model):
            return ""
        return f"model is '{model}'; a URL begins with https:// and may end with #sha256=<64 hex digits>."
    if (Path(base) / Path(model).expanduser()).is_file():
        return ""
    own = f"a name ({', '.join(known)}), " if known else ""
    return (
        f"There is no model '{model}'. It can be {own}a file (absolute, or relative to the executor), https://…, "
        "runs:/<id>/<path> or models:/<name>/<version>."
    )


def find(
    model: str,
    names: Iterable[str] = (),
    by_name: Optional[Callable[[str], Path]] = None,
    *,
    base: Union[str, Path] = ".",
) -> Path:
    """The file with the weights, downloaded if need be. `by_name` gets one of `names` and returns its file.

    Raises:
        NoModel: there is none, or MLflow does not give it.
        weights.WeightsError: it could not be downloaded.
    """
    known = list(names)
    wrong = problem(model, known, base=base)
    if wrong:
        raise NoModel(wrong)
    if model.startswith(MLFLOW):
        return _from_mlflow(model)
    url = _URL.fullmatch(model)
    if model in known and by_name is not None:
        return by_name(model)
    if url is not None:
        return weights.fetch(url["url"], sha256=url["digest"].lower() if url["digest"] else None)
    return Path(base) / Path(model).expanduser()  # an absolute path stays what it is


def _from_mlflow(uri: str) -> Path:
    """An artifact that is one file, or a folder with one: what a training has logged."""
    import mlflow

    folder = tempfile.mkdtemp(prefix="model-", dir=".")  # the job's own checkout, which goes with the job
    try:
        got = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
    except Exception as error:  # whatever the store behind MLflow raises
        raise NoModel(f"'{uri}' could not be had from MLflow: {error}") from error
    if got.is_file():
        return got
    files = [path for path in sorted(got.rglob("*")) if path.is_file() and path.suffix not in _BESIDE]
    named = [path for path in files if path.name == "weights"] or files
    if len(named) != 1:
        raise NoModel(f"'{uri}' holds {len(named)} files that could be the weights; name one: {uri}/<file>.")
    return named[0]
