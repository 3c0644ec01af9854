"""The peer of `benchmarks/service.py`: the way services around MLflow projects are usually written.

A FastAPI handler that saves the upload, calls `mlflow.projects.run` and waits; and a bare handler that puts a row into
sqlite. Both are written for the benchmark. The handlers are no coroutines, so that Starlette runs them in threads: a
coroutine that calls `mlflow.projects.run` would answer nothing else meanwhile.

    uvicorn benchmarks.upstream_service:app        with EXECUTOR, WORK (a folder)
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import uuid
from pathlib import Path
from typing import Any

import mlflow
from fastapi import FastAPI, UploadFile
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, Counter, generate_latest

EXECUTOR, WORK = os.environ["EXECUTOR"], Path(os.environ["WORK"])
app = FastAPI()
requests = Counter("requests", "requests answered")
database = sqlite3.connect(WORK / "rows.db", isolation_level=None, check_same_thread=False)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, request TEXT)")
lock = threading.Lock()


@app.post("/batch-image-prediction/")
def predict(files: list[UploadFile]) -> dict[str, Any]:
    folder = WORK / uuid.uuid4().hex
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"i{number:03d}.png").write_bytes(file.file.read())
    run = mlflow.projects.run(EXECUTOR, parameters={"input_images": str(folder)}, env_manager="local")
    path = mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path="output.json", dst_path=str(folder))
    return dict(json.loads(Path(path).read_bytes()))


@app.post("/rows", status_code=202)
def insert(request: dict[str, Any]) -> dict[str, str]:
    name = uuid.uuid4().hex
    with lock:
        database.execute("INSERT INTO jobs VALUES (?, ?)", (name, json.dumps(request)))
    return {"job": name}


@app.get("/livez")
def livez() -> dict[str, bool]:
    requests.inc()
    return {"status": True}


@app.get("/metrics")
def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
