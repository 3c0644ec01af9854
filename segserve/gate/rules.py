"""Which calls of MLflow's REST interface an attempt may make. No I/O: a request comes in, what is to be sent comes out.

A call passes when its path and method are listed here *and* every id that it names is the attempt's own: its run, its
experiment, runs and models that it has created through the gate. What the person has named in a parameter
(`runs:/<id>/model`, `models:/cells/3`) may be read besides. What is sent is written anew from what was understood,
so that no second spelling of a field (`runId`, a key twice, JSON within JSON) means one thing here and another there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_API = "/api/2.0/mlflow/"
_PROXIED = "/api/2.0/mlflow-artifacts/"
_INFO = "/api/3.0/mlflow/server-info"
_OPEN = frozenset({"/health", "/version", _INFO})  # nothing about any run
# What a server says of itself there that does not hold behind the gate: files go through it, and in one piece.
_PARTS = ("multipart_uploads_enabled", "multipart_downloads_enabled")
_PROTECTED = "segserve."  # tags of ours: commit, job … are no business of the executor
_PARENT = "mlflow.parentRunId"
_JOB = "segserve.job"
MOST_CHILDREN = 1000

# Calls that name their run in `run_id` (older clients: `run_uuid`).
_ON_A_RUN = frozenset(
    {("GET", name) for name in ("runs/get", "artifacts/list", "metrics/get-history")}
    | {
        ("POST", f"runs/{name}")
        for name in ("update", "log-metric", "log-parameter", "log-batch", "log-inputs", "outputs", "log-model")
    }
    | {("POST", "runs/set-tag"), ("POST", "runs/delete-tag")}
)
# Calls on a logged model: method, and what follows its id.
_ON_A_MODEL = frozenset(
    {("GET", ""), ("PATCH", ""), ("PATCH", "/tags"), ("POST", "/params"), ("GET", "/artifacts/directories")}
)
_MODEL = re.compile(r"logged-models/(m-[0-9a-f]{32})(/[a-z/]+)?")
# Calls on a registered model that a parameter names, all of them GET.
_ON_A_VERSION = frozenset({"model-versions/get", "model-versions/get-download-uri", "registered-models/alias"})
_NAMED = re.compile(r"(?P<kind>runs|models):/(?P<name>[^/@]+)(?:[/@].*)?", re.DOTALL)
_LOGGED = re.compile(r"m-[0-9a-f]{32}")

_IDS = {  # a field by its name without underscores and case, as protobuf reads it → which ids it may hold
    "runid": "runs",
    "runuuid": "runs",
    "runids": "runs",
    "sourcerunid": "runs",
    "modelid": "models",
    "experimentid": "experiments",
    "experimentids": "experiments",
}


class Refused(Exception):
    """The call does not pass; the text is for the executor's author."""


class Unsupported(Exception):
    """The call is one without which clients know how to go on. The text is the one from which they see that."""


@dataclass(frozen=True, slots=True)
class Passed:
    """What is sent to the server: `target` is path and query; `body` None means that of the request, as it comes."""

    method: str
    target: str
    body: bytes | None
    creates: str = ""  # `run` or `model`: `Rules.learn` wants the answer
    names: str = ""  # an experiment asked for by name: `Rules.check_experiment` wants the answer
    says: bool = False  # what the server is able to: `Rules.here` wants the answer
    finds: str = ""  # `run`, `model` or `version` that a parameter names: `Rules.found` wants the answer


@dataclass
class Rules:
    """What one attempt may do. `artifact_uri` is where its run keeps artifacts; `job` tags the runs that it creates;
    `parameters` are the values that it was started with.
    """

    experiment_id: str
    run_id: str
    artifact_uri: str = ""
    job: str = ""
    parameters: Iterable[str] = ()
    _owned: dict[str, set[str]] = field(init=False)
    _named: dict[str, set[str]] = field(init=False)  # may be read; `versions` are names of registered models
    _roots: list[str] = field(init=False)  # of proxied artifacts, with a slash at the end
    _read_roots: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._owned = {"runs": {self.run_id}, "models": set(), "experiments": {self.experiment_id}}
        self._named = {"runs": set(), "models": set(), "versions": set(), "experiments": set()}
        self._roots, self._read_roots = [*_proxied_root(self.artifact_uri)], []
        for value in self.parameters:
            self._name(value)

    def judge(self, method: str, target: str, body: bytes | None) -> Passed:
        """What to send for a request. `body` is None for an upload, whose bytes are not looked at.

        Raises:
            Refused: it does not pass.
            Unsupported: it does not, and need not.
        """
        path, _, query = target.partition("?")
        if method == "GET" and path in _OPEN:
            return Passed(method, path, b"", says=path == _INFO)
        if path.startswith(_PROXIED):
            return self._artifacts(method, path.removeprefix(_PROXIED), query)
        if not path.startswith(_API):
            raise Refused(f"{method} {path} is no call that an executor needs")
        return self._call(method, path.removeprefix(_API), query, body or b"")

    @staticmethod
    def is_upload(method: str, target: str) -> bool:
        """Whether the body of this request is a file."""
        return method == "PUT" and target.startswith(f"{_PROXIED}artifacts/")

    def learn(self, passed: Passed, answer: bytes) -> bool:
        """Take note of the run or model that a call has created; true if its files belong into a folder."""
        if passed.creates == "run":
            info = json.loads(answer)["run"]["info"]
            self._owned["runs"].add(str(info["run_id"]))
        else:
            info = json.loads(answer)["model"]["info"]
            self._owned["models"].add(str(info["model_id"]))
        place = str(info.get("artifact_uri", ""))
        self._roots += _proxied_root(place)
        return urlsplit(place).scheme in ("", "file")

    def found(self, passed: Passed, answer: bytes) -> None:
        """Take note of where something lies that a parameter names."""
        message = json.loads(answer)
        if passed.finds == "run":
            places = [message["run"]["info"].get("artifact_uri", "")]
            self._named["models"] |= {
                str(one.get("model_id", "")) for one in message["run"].get("outputs", {}).get("model_outputs", [])
            }
        elif passed.finds == "model":
            places = [message["model"]["info"].get("artifact_uri", "")]
        else:
            places = [message.get("artifact_uri", ""), message.get("model_version", {}).get("source", "")]
        for place in map(str, places):
            self._read_roots += _proxied_root(place)
            self._name(place)

    @staticmethod
    def here(answer: bytes) -> bytes:
        """What the server says of itself, as it holds behind the gate."""
        return _json({**json.loads(answer), **dict.fromkeys(_PARTS, False)})

    def check_experiment(self, passed: Passed, answer: bytes) -> None:
        """Refuse the answer when the name belongs to another experiment."""
        if str(json.loads(answer)["experiment"]["experiment_id"]) != self.experiment_id:
            raise Refused(f"the experiment '{passed.names}' is not the one of this run")

    def _call(self, method: str, name: str, query: str, body: bytes) -> Passed:
        reading = method == "GET"
        message = _from_query(query) if reading else _from_body(body)
        self._require_own(message, reading=reading)
        model = _MODEL.fullmatch(name)
        finds = ""
        if (method, name) in _ON_A_RUN:
            self._on_a_run(name, message)
            finds = "run" if name == "runs/get" else ""
        elif model and (method, model[2] or "") in _ON_A_MODEL:
            self._require("models", model[1], reading=reading)
            finds = "" if model[2] else "model"
        elif reading and name in _ON_A_VERSION:
            self._require("versions", message.get("name"), reading=True)
            finds = "version"
        elif (method, name) == ("POST", "runs/create"):
            return self._create_run(message)
        elif (method, name) == ("POST", "logged-models"):
            message |= {"experiment_id": self.experiment_id}
            message.setdefault("source_run_id", self.run_id)
            return Passed(method, f"{_API}{name}", _json(message), creates="model")
        elif (method, name) == ("GET", "experiments/get-by-name"):
            wanted = str(message.get("experiment_name", ""))
            return Passed(method, f"{_API}{name}?{urlencode({'experiment_name': wanted})}", b"", names=wanted)
        elif (method, name) != ("GET", "experiments/get"):
            raise Refused(f"{method} {name} is no call on its own run")
        if reading:
            return Passed(method, f"{_API}{name}?{urlencode(message, doseq=True)}", b"", finds=finds)
        return Passed(method, f"{_API}{name}", _json(message))

    def _on_a_run(self, name: str, message: Mapping[str, Any]) -> None:
        if not ("run_id" in message or "run_uuid" in message):
            raise Refused(f"{name} names no run")
        if name in ("runs/set-tag", "runs/delete-tag", "runs/log-batch"):
            for key in _tags(name, message):
                if key.startswith(_PROTECTED) or key == _PARENT:
                    raise Refused(f"the tag '{key}' is not the executor's to change")

    def _create_run(self, message: dict[str, Any]) -> Passed:
        if len(self._owned["runs"]) > MOST_CHILDREN:
            raise Refused(f"it has created {MOST_CHILDREN} runs already")
        tags = [tag for tag in _dicts(message.get("tags")) if not str(tag.get("key", "")).startswith(_PROTECTED)]
        parents = [str(tag.get("value")) for tag in tags if tag.get("key") == _PARENT]
        for parent in parents:
            self._require("runs", parent, reading=False)
        if not parents:
            tags.append({"key": _PARENT, "value": self.run_id})
        if self.job:
            tags.append({"key": _JOB, "value": self.job})
        message |= {"experiment_id": self.experiment_id, "tags": tags}
        return Passed("POST", f"{_API}runs/create", _json(message), creates="run")

    def _artifacts(self, method: str, rest: str, query: str) -> Passed:
        # In parts, to and from a store elsewhere, past the gate. MLflow's client takes these sentences of its own
        # (`_UnsupportedMultipartUploadException`, …) or their status to mean that files go in one piece.
        if (method, rest[:11]) == ("POST", "mpu/create/"):
            raise Unsupported("Multipart upload is not supported for the current artifact repository")
        if (method, rest[:10]) == ("GET", "presigned/"):
            raise Unsupported("Multipart download is not supported for the current artifact repository")
        if rest == "artifacts" and method == "GET":
            asked = [value for name, value in parse_qsl(query) if name == "path"]
            path = self._own_path(asked[0] if len(asked) == 1 else "", reading=True, folder=True)
            return Passed(method, f"{_PROXIED}artifacts?{urlencode({'path': path})}", b"")
        if rest.startswith("artifacts/") and method in ("GET", "PUT", "DELETE"):
            path = self._own_path(unquote(rest.removeprefix("artifacts/")), reading=method == "GET")
            return Passed(method, f"{_PROXIED}artifacts/{quote(path)}", None if method == "PUT" else b"")
        raise Refused(f"{method} mlflow-artifacts/{rest} is no call on artifacts of its own run")

    def _own_path(self, path: str, *, reading: bool, folder: bool = False) -> str:
        roots = [*self._roots, *(self._read_roots if reading else ())]
        plain = "/".join(part for part in path.split("/") if part)
        odd = any(part in (".", "..") for part in plain.split("/")) or re.search(r"[\x00-\x1f\x7f\\%]", plain)
        if odd or not any(plain.startswith(root) or (folder and f"{plain}/" == root) for root in roots):
            raise Refused(f"the artifact '{path}' is not one of its own run")
        return plain

    def _require_own(self, message: Any, *, reading: bool) -> None:
        for name, value in _fields(message):
            kind = _IDS.get(name.replace("_", "").lower())
            if kind is not None:
                self._require(kind, value, reading=reading)

    def _name(self, text: str) -> None:
        """Let what a text names be read."""
        found = _NAMED.fullmatch(text)
        if found is not None:
            kind = "runs" if found["kind"] == "runs" else "models" if _LOGGED.fullmatch(found["name"]) else "versions"
            self._named[kind].add(found["name"])

    def _require(self, kind: str, value: Any, *, reading: bool) -> None:
        known = self._owned.get(kind, set()) | (self._named[kind] if reading else set())
        if not isinstance(value, str) or value not in known:
            raise Refused(f"it names the {kind.removesuffix('s')} '{value}', which is not its own")


def runs_named(values: Iterable[str]) -> list[str]:
    """The runs that values of parameters name: `runs:/<id>/model`."""
    found = (_NAMED.fullmatch(value) for value in values)
    return [one["name"] for one in found if one is not None and one["kind"] == "runs"]


def _proxied_root(artifact_uri: str) -> Iterator[str]:
    parts = urlsplit(artifact_uri)
    if parts.scheme == "mlflow-artifacts" and parts.path.strip("/"):
        yield f"{parts.path.strip('/')}/"


def _from_query(query: str) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in message:
            raise Refused(f"'{name}' stands twice in its query")
        message[name] = value
    return message


def _from_body(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body or b"{}")
        if isinstance(message, str):  # clients before 1.0 send JSON within JSON, and the server takes it
            message = json.loads(message)
    except (ValueError, RecursionError):
        raise Refused("its body is no JSON") from None
    if not isinstance(message, dict):
        raise Refused("its body is no JSON object")
    return message


def _fields(message: Any) -> Iterator[tuple[str, Any]]:
    """Every field of a message, however deep. Names that people choose are values in MLflow's messages, not fields."""
    waiting = [message]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one.items()
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _tags(name: str, message: Mapping[str, Any]) -> Iterable[str]:
    if name == "runs/log-batch":
        return [str(tag.get("key", "")) for tag in _dicts(message.get("tags"))]
    return [str(message.get("key", ""))]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _json(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode()
