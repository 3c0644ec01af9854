"""`segserve serve` over HTTP: a real server, a real scheduler, real workers, an executor that is a shell command."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from segserve.server.uploads import safe_name
from tests.executors import make_shell_executor
from tests.repositories import git
from tests.services import Service
from tests.uploads import files, png


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    make_shell_executor(folder / "executor")
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with Service(folder / "home", folder, server="max_body_mb = 8\nmax_images = 20") as service:
        yield service


def submit(service: Service, folder: Path, **fields: Any) -> httpx.Response:
    data = {"executor": str(folder / "executor"), "env": "local", "gpus": "0"}
    return service.http.post("/jobs", data={**data, **fields}, files=files("b.png", "a.png"))


def test_a_job_from_upload_to_result(service: Service, folder: Path) -> None:
    answer = submit(service, folder, parameters='{"nap": 0.5}')
    assert answer.status_code == 202, answer.text
    accepted = answer.json()
    assert answer.headers["Location"] == accepted["url"] == f"/jobs/{accepted['job']}"
    early = service.http.get(accepted["result"])
    assert (early.status_code, early.headers["content-type"]) == (409, "application/problem+json")
    assert accepted["job"] in [job["job"] for job in service.http.get("/jobs").json()]
    done = service.wait(accepted["job"])
    assert (done["state"], done["images"], done["parameters"]) == ("succeeded", 2, {"nap": "0.5"})
    assert str(folder) not in json.dumps({name: done[name] for name in ("error", "hint", "quote", "state")})
    document = service.http.get(accepted["result"]).json()
    assert [len(image) for image in document["segmentation_data"]] == [1, 1]
    listed = {file["name"]: file["bytes"] for file in service.http.get(f"{accepted['url']}/files").json()}
    assert {"output.json", "results.json", "report/index.html"} <= set(listed)
    results = service.http.get(f"{accepted['url']}/files/results.json")
    assert len(results.content) == listed["results.json"]
    assert "b.png" in results.text.split("a.png")[0]  # the order of the upload
    for name in ("../job.json", "..%2Fjob.json", "/etc/passwd", "nothing.txt"):
        assert service.http.get(f"{accepted['url']}/files/{name}").status_code == 404


def test_events_tell_everything_once_also_after_a_reconnect(service: Service, folder: Path) -> None:
    job = submit(service, folder, parameters='{"nap": 1, "mark": "events"}').json()["job"]
    _reads_all_by_reconnecting(service, job)
    # and once more when all was written before the first look: every event has a place of its own
    _reads_all_by_reconnecting(service, job)


def _reads_all_by_reconnecting(service: Service, job: str) -> None:
    seen: list[tuple[str, str, dict[str, Any]]] = []
    last = ""
    while not any(kind == "end" for kind, _, _ in seen):
        headers = {"Last-Event-ID": last} if last else {}
        with service.http.stream("GET", f"/jobs/{job}/events", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for kind, place, data in _events(answer):
                seen.append((kind, place, data))
                last = place
                if kind == "progress":  # the connection breaks
                    break
    states = [data["state"] for kind, _, data in seen if kind == "state"]
    assert states[-1] == "succeeded"
    texts = [data["text"] for kind, _, data in seen if kind == "progress" and data["kind"] == "phase"]
    assert len(texts) == len(set(texts)) >= 3
    lines = [line for kind, _, data in seen if kind == "log" for line in data["lines"]]
    assert sum("Running command" in line for line in lines) == 1


def _events(answer: httpx.Response) -> Iterator[tuple[str, str, dict[str, Any]]]:
    event: dict[str, str] = {}
    for line in answer.iter_lines():
        if not line and event:
            yield event["event"], event["id"], json.loads(event["data"])
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def test_the_same_request_is_the_same_job(service: Service, folder: Path) -> None:
    first = submit(service, folder, parameters='{"nap": 2, "mark": "twice"}').json()
    second = submit(service, folder, parameters='{"nap": 2, "mark": "twice"}').json()
    assert (first["new"], second["new"], second["job"]) == (True, False, first["job"])
    key = {"Idempotency-Key": "k1"}
    body = {"executor": str(folder / "executor"), "env": "local", "gpus": "0", "images": [str(folder / "nothing")]}
    one = service.http.post("/jobs", json=body, headers=key)
    two = service.http.post("/jobs", json=body, headers=key)
    assert one.json()["job"] == two.json()["job"]
    assert service.wait(first["job"])["state"] == "succeeded"
    failed = service.wait(one.json()["job"])
    assert (failed["state"], failed["attempt"]) == ("failed", 1)
    result = service.http.get(one.json()["result"])
    assert result.status_code == 502
    assert "nothing" in result.json()["detail"]


def test_cancel(service: Service, folder: Path) -> None:
    job = submit(service, folder, parameters='{"nap": 60, "mark": "cancel"}').json()["job"]
    while service.http.get(f"/jobs/{job}").json()["state"] != "running":
        time.sleep(0.1)
    assert service.http.delete(f"/jobs/{job}").status_code == 202
    assert service.wait(job)["state"] == "cancelled"


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"executor": "no executor", "parameters": "{}"}, 400, "no executor"),
        ({"executor": "--upload-pack=x"}, 400, "is no repository"),
        ({"executor": "ext::sh -c x"}, 400, "is no repository"),
        ({"parameters": "{"}, 400, "no JSON"),
        ({"parameters": "[]"}, 422, "parameters"),
        ({"wrong": "1"}, 422, "wrong"),
        ({"first": "0"}, 422, "first"),
    ],
)
def test_what_is_wrong_is_said(service: Service, folder: Path, fields: dict[str, str], status: int, words: str) -> None:
    answer = submit(service, folder, **fields)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert words in answer.json()["detail"]
    assert answer.json()["status"] == status


def test_bodies_that_are_none(service: Service) -> None:
    post = service.http.post
    assert post("/jobs", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 400
    assert post("/jobs", content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert (
        post("/jobs", content=b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n', headers=form).status_code
        == 400
    )
    assert post("/jobs", content=b"nothing of that kind", headers=form).status_code == 400
    big = [("images", ("big.png", io.BytesIO(bytes(9 << 20)), "image/png"))]
    assert post("/jobs", data={"executor": "x"}, files=big).status_code == 413
    many = files(*(f"{number}.png" for number in range(21)))
    assert post("/jobs", data={"executor": "x"}, files=many).status_code == 413
    assert service.http.get("/jobs/nothing").status_code == 404


def test_nothing_is_left_of_a_refused_upload(service: Service, folder: Path) -> None:
    before = set((folder / "home" / "jobs").iterdir())
    assert submit(service, folder, first="0").status_code == 422
    assert submit(service, folder, executor="::").status_code == 400
    assert set((folder / "home" / "jobs").iterdir()) == before


def test_pages_of_others_may_not_call(service: Service, folder: Path) -> None:
    """A page in the user's browser can send forms to loopback, and DNS can point its name there."""
    for headers in (
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        answer = service.http.get("/jobs", headers=headers)
        assert answer.status_code == 403, headers
        form = {"executor": str(folder / "executor")}
        assert service.http.post("/jobs", data=form, files=files("a.png"), headers=headers).status_code == 403
    own = {"Origin": service.url, "Sec-Fetch-Site": "same-origin"}
    assert service.http.get("/jobs", headers=own).status_code == 200


def test_credentials_in_an_address_are_nowhere(service: Service, folder: Path) -> None:
    """As the CI of executors sends them. Nobody answers there: what is tried three times leaves most behind."""
    secret = "c4n4ry-of-the-queue"
    repo = f"https://somebody:{secret}@127.0.0.1:9/group/executor"
    answer = service.http.post("/image-prediction/", params={"repo": repo}, files={"file": ("a.png", png())})
    assert answer.status_code == 502, answer.text
    job = service.http.get("/jobs", params={"limit": 1}).json()[0]["job"]
    shown = service.http.get(f"/jobs/{job}")
    assert (shown.json()["state"], shown.json()["attempt"]) == ("failed", 3)
    texts = [answer.text, shown.text, service.http.get("/metrics").text, "".join(service.said)]
    texts += [service.http.get(f"/jobs/{job}/events").text]
    assert all(secret not in text for text in texts)
    for path in (path for path in (folder / "home").rglob("*") if path.is_file()):
        assert secret.encode() not in path.read_bytes(), path


def test_health_in_the_shapes_of_antenna(service: Service) -> None:
    assert service.http.get("/livez").json() == {"status": True}
    ready = service.http.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"status": []})  # nothing is built here
    info = service.http.get("/info").json()
    assert info["name"] == "segserve"
    assert {"cellpose", "segserve-threshold"} <= {one["slug"] for one in info["pipelines"]}
    status = service.http.get("/status").json()
    assert status["working"] is True
    assert status["slots"]["cpu"] == 2
    metrics = service.http.get("/metrics").text
    for name in (
        'segserve_jobs_waiting{lane="cpu"}',
        'segserve_jobs{state="running"}',
        'segserve_jobs_ended_total{state="succeeded"}',
        'segserve_phase_seconds_sum{phase="running"}',
        "segserve_disk_free_bytes",
        'segserve_cached{kind="environments"}',
    ):
        assert name in metrics
    root = service.http.get("/")
    assert (root.status_code, root.headers["location"]) == (307, "/docs")
    assert service.http.get("/docs").status_code == 200
    assert isinstance(service.http.get("/executors").json(), list)


def test_the_description_is_complete(service: Service) -> None:
    paths = service.http.get("/openapi.json").json()["paths"]
    assert set(paths["/jobs"]["post"]["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation.get("description"), (method, path)


# ---------------------------------------------------------------------------------------------- SegUI, acia, CI


def query(folder: Path, **words: str) -> dict[str, str]:
    return {"repo": (folder / "executor").as_uri(), "entry_point": "main", "version": "main", **words}


@pytest.fixture(scope="module")
def uv_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """SegServe's routes know no `env`: the project has to bring one that is built without an index."""
    folder = tmp_path_factory.mktemp("segserve")
    make_shell_executor(folder / "executor", environment=True)
    with Service(folder / "home", folder, "--root-path", "/segService", server="sync_wait_s = 60") as service:
        yield service, folder


def test_a_batch_as_segui_and_acia_send_it(uv_service: tuple[Service, Path]) -> None:
    service, folder = uv_service
    url = f"{service.url.removesuffix('/segService')}/batch-image-prediction/"
    sent = [("files", ("image.jpg", png(1), "image/jpeg")), ("files", ("image.jpg", png(2), "image/jpeg"))]
    answer = httpx.post(url, params=query(folder, parameters="undefined"), files=sent, timeout=90)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert set(document) >= {"model", "format_version", "segmentation_data"}
    assert "filename" not in document
    assert [len(image) for image in document["segmentation_data"]] == [1, 1]
    metrics = service.http.get(f"{service.url.removesuffix('/segService')}/metrics").text
    for name in ("segmentation_cells_bucket", "segmentation_seconds_count", "segmentation_per_image_seconds_sum"):
        assert f"{name}{{" in metrics
    assert "segmenation_images_total{" in metrics
    assert 'entrypoint="main"' in metrics


def test_one_image_and_its_filename(uv_service: tuple[Service, Path]) -> None:
    service, folder = uv_service
    url = f"{service.url.removesuffix('/segService')}/image-prediction/"
    sha = git(folder / "executor", "rev-parse", "HEAD")
    sent = {"file": ("data.png", png(3))}
    answer = httpx.post(url, params=query(folder, version=sha, parameters='{"mark": "x"}'), files=sent, timeout=90)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == "data.png"
    assert httpx.post(url, params=query(folder), timeout=90).status_code == 400
    missing = httpx.post(url, files=sent, timeout=90)
    assert missing.status_code == 422
    crashed = httpx.post(url, params=query(folder, parameters='{"mark": "crash"}'), files=sent, timeout=90)
    assert crashed.status_code == 502
    assert crashed.json()["detail"] == crashed.json()["message"]
    assert "exit code 3" in crashed.json()["message"]


def test_a_client_that_gives_up_and_comes_back_gets_its_job(uv_service: tuple[Service, Path]) -> None:
    service, folder = uv_service
    root = service.url.removesuffix("/segService")
    words = {"params": query(folder, parameters='{"nap": 3, "mark": "again"}'), "files": {"files": ("a.png", png(4))}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{root}/batch-image-prediction/", timeout=1.0, **words)
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(httpx.post(f"{root}/batch-image-prediction/", timeout=90, **words))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    jobs = [job for job in service.http.get(f"{root}/jobs").json() if "again" in str(_parameters(service, root, job))]
    assert len(jobs) == 1


def _parameters(service: Service, root: str, job: dict[str, Any]) -> dict[str, str]:
    return dict(service.http.get(f"{root}/jobs/{job['job']}").json()["parameters"])


def test_come_back_later(tmp_path: Path) -> None:
    make_shell_executor(tmp_path / "executor", environment=True)
    with Service(tmp_path / "home", tmp_path, server="sync_wait_s = 0.5") as service:
        answers = []
        while not answers or answers[-1].status_code != 200:
            assert len(answers) < 200, answers[-1].text
            sent = {"files": ("a.png", png(5))}
            params = query(tmp_path, parameters='{"nap": 1}')
            answers.append(service.http.post("/batch-image-prediction/", params=params, files=sent))
        first = answers[0]
        assert (first.status_code, first.headers["Retry-After"]) == (503, "30")
        assert "the same job" in first.json()["message"]
        assert {answer.status_code for answer in answers} == {503, 200}
        assert [job["state"] for job in service.http.get("/jobs").json()] == ["succeeded"]
        # It was delivered: the same request is a new one now.
        again = service.http.post("/batch-image-prediction/", params=params, files=sent)
        assert again.status_code in (200, 503)
        assert len(service.http.get("/jobs").json()) == 2


def test_the_next_server_collects_what_ran_on(tmp_path: Path) -> None:
    make_shell_executor(tmp_path / "executor")
    with Service(tmp_path / "home", tmp_path) as first:
        job = submit(first, tmp_path, parameters='{"nap": 8}').json()["job"]
        while first.http.get(f"/jobs/{job}").json()["state"] != "running":
            time.sleep(0.1)
        first.process.terminate()
        assert first.process.wait(60) == 0
        with Service(tmp_path / "home", tmp_path) as second:
            done = second.wait(job)
            assert (done["state"], done["attempt"]) == ("succeeded", 1)
            assert second.http.get(f"/jobs/{job}/result").status_code == 200


def test_names_of_uploads_are_fit_for_a_disk() -> None:
    hostile = [
        "../../etc/passwd",
        "C:\\Windows\\x.png",
        ".hidden",
        "-rf",
        "a\0b.png",
        "x" * 300 + ".png",
        "",
        "..",
        "ü.tif",
    ]
    names = [safe_name(name) for name in hostile]
    assert names == ["passwd", "x.png", "hidden", "rf", "a_b.png", "x" * 130 + ".png", "image", "image", "ü.tif"]
