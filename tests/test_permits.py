"""What users and open clients may ask of a real service: repositories, files of the machine, how much."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from segserve.errors import QuotaExceeded
from segserve.journal import Journal, Quota, Submission
from segserve.layout import Home
from segserve.model import JobState
from segserve.tokens import Scope, Tokens
from tests.executors import make_shell_executor
from tests.repositories import git, make_repository
from tests.services import Service
from tests.uploads import files, png

PROJECT = """\
name: files
entry_points:
  main:
    parameters:
      input_images: path
      model: {type: path, default: segment.sh}
      source: {type: uri, default: "doi:10/x"}
    command: "sh segment.sh {input_images} {model} {source}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Executors that are allowed, registered, and neither; images that users may name, and others."""
    folder = tmp_path_factory.mktemp("permits")
    for name in ("allowed/cells", "allowed-not/cells", "registered", "elsewhere"):
        make_shell_executor(folder / name, environment=name == "registered")
    make_shell_executor(folder / "allowed/files")
    make_repository(folder / "allowed/files", {"MLproject": PROJECT})
    for name in ("shared", "of-anna", "private"):
        (folder / name).mkdir()
        for number in range(3):
            (folder / name / f"{number}.png").write_bytes(png(number))
    (folder / "shared" / "way-out").symlink_to(folder / "private")
    (folder / "shared" / "links").mkdir()
    (folder / "shared" / "links" / "0.png").symlink_to(folder / "private" / "0.png")
    return folder


@pytest.fixture(scope="module")
def tokens(folder: Path) -> dict[str, str]:
    tokens = Tokens(Home(folder / "home").ensure().tokens)
    made = {user: tokens.add(user)[1] for user in ("anna", "berta", "carl")}
    return {**made, "chef": tokens.add("chef", scopes=[Scope.ADMIN])[1]}


@pytest.fixture(scope="module")
def service(folder: Path, tokens: dict[str, str]) -> Iterator[Service]:
    settings = f"""\
max_body_mb = 8
max_images = 4
max_megapixels = 1

[repositories]
allow = ["file://{folder}/allowed/", "https://host.example/group/"]

[executors]
mine = "file://{folder}/registered@main"
moving = "file://{folder}/elsewhere"

[data_roots]
"{folder}/shared" = ["*"]
"{folder}/of-anna" = ["anna"]
"{folder}/allowed" = ["anna"]

[open_clients]
networks = ["127.0.0.0/8", "::1/128"]

[quotas]
open_jobs = 100

[quotas.users.carl]
open_jobs = 2
upload_gb_per_day = 0.000001
"""
    with Service(folder / "home", folder, server=settings) as service:
        yield service


def ask(service: Service, token: str, executor: object, *images: object, **words: Any) -> httpx.Response:
    body = {"executor": str(executor), "env": "local", "gpus": "0", "images": [str(path) for path in images], **words}
    with service.as_(token) as http:
        return http.post("/jobs", json=body)


def test_only_repositories_that_are_allowed_or_registered_run(
    service: Service, tokens: dict[str, str], folder: Path
) -> None:
    image = folder / "shared" / "0.png"
    with service.as_(tokens["anna"]) as http:
        for executor in (
            *(folder / "allowed-not/cells", f"file://{folder}/allowed-not/cells", folder / "elsewhere/../private"),
            *("https://host.example/group-evil/x", "https://host.example/group/../x", "https://other.example/group/x"),
            *("https://host.example.evil.example/group/x", "git@host.example:group/x", "cellpose", "/", "~"),
        ):
            body = {"executor": str(executor), "images": [str(image)]}
            answer = http.post("/jobs", json=body)
            assert answer.status_code in (400, 403), (executor, answer.text)
            if answer.status_code == 403:
                assert "[repositories] allow" in answer.json()["hint"]
            assert http.get("/executor", params={"ref": str(executor)}).status_code == answer.status_code
    # An administrator of the service does not own the machine.
    assert ask(service, tokens["chef"], folder / "allowed-not/cells", image).status_code == 403
    assert ask(service, tokens["anna"], folder / "allowed/cells", image).status_code == 202
    mine = ask(service, tokens["berta"], "mine", image)
    assert mine.status_code == 202, mine.text
    with service.as_(tokens["berta"]) as http:
        assert service.wait(mine.json()["job"], http)["state"] == "succeeded"
        assert http.get("/executors/mine").status_code == 200
    # Allowed, but a folder of this machine that is none of hers.
    other = ask(service, tokens["berta"], folder / "allowed/cells", image)
    assert (other.status_code, "[data_roots]" in other.json()["hint"]) == (403, True)


def test_files_of_the_machine_in_ones_own_folders_only(service: Service, tokens: dict[str, str], folder: Path) -> None:
    anna, berta = tokens["anna"], tokens["berta"]
    for user, path, status in (
        (anna, folder / "of-anna", 202),
        (berta, folder / "of-anna", 403),
        (berta, folder / "shared" / "*.png", 202),
        *((anna, path, 403) for path in (folder / "private", folder / "shared/../private/0.png", "/etc/passwd", "~")),
        *((anna, path, 403) for path in (folder / "shared/way-out", folder / "shared/way-out/0.png", "shared/0.png")),
        *((anna, path, 403) for path in (folder / "home/tokens.json", folder / "shared-not/0.png", "")),
        (anna, f"{folder}/shared/\0", 422),
    ):
        answer = ask(service, user, "mine", path)
        assert answer.status_code == status, (path, answer.text)
    # What only the worker sees: links in a folder, patterns that go through one.
    for path in (folder / "shared/links", folder / "shared/w*/0.png", folder / "shared/*/*.png"):
        accepted = ask(service, anna, "mine", path)
        assert accepted.status_code == 202, accepted.text
        with service.as_(anna) as http:
            done = service.wait(accepted.json()["job"], http)
        assert done["state"] == "failed"
        assert "may not be read here" in done["error"]
        assert "private" not in str(done)


def test_parameters_that_are_files_too(service: Service, tokens: dict[str, str], folder: Path) -> None:
    values = [("model", value) for value in ("/etc/passwd", "/etc/no-such-file", "segserve.db", "file:/etc/passwd")]
    addresses = ["https://127.0.0.1:9/x", "https://169.254.169.254/latest/meta-data", "https://[::1]:9/x"]
    values += [("model", f"{folder}/shared/way-out/0.png"), ("source", "file:///etc/passwd"), ("source", "/etc/passwd")]
    image = folder / "shared/0.png"
    jobs = [
        ask(service, tokens["anna"], folder / "allowed/files", image, parameters={name: value}).json()["job"]
        for name, value in values
    ]
    with service.as_(tokens["anna"]) as http:
        for job, value in zip(jobs, values, strict=True):
            done = service.wait(job, http)
            assert (done["state"], "may not be read here" in done["error"]) == ("failed", True), (value, done["error"])
        for address in addresses:
            parameters = {"model": address}
            accepted = ask(service, tokens["anna"], folder / "allowed/files", image, parameters=parameters)
            done = service.wait(accepted.json()["job"], http)
            assert (done["state"], "is not fetched from" in done["error"]) == ("failed", True), done["error"]


def test_a_parameter_in_ones_own_folder(service: Service, tokens: dict[str, str], folder: Path) -> None:
    words = {"parameters": {"model": str(folder / "of-anna/0.png"), "source": "https://host.example/x"}}
    accepted = ask(service, tokens["anna"], folder / "allowed/files", folder / "shared/0.png", **words)
    with service.as_(tokens["anna"]) as http:
        done = service.wait(accepted.json()["job"], http)
    assert "may not be read here" not in done["error"]


def test_more_images_or_pixels_than_there_may_be(service: Service, tokens: dict[str, str], folder: Path) -> None:
    import numpy as np
    import tifffile

    tifffile.imwrite(folder / "of-anna" / "stack.tif", np.zeros((5, 8, 8), np.uint8), metadata={"axes": "TYX"})
    tifffile.imwrite(folder / "of-anna" / "large.tif", np.zeros((1001, 1000), np.uint8), compression="zlib")
    for name, words in (("stack.tif", "5 images; 4 is the limit"), ("large.tif", "1000 × 1001 pixels")):
        accepted = ask(service, tokens["anna"], "mine", folder / "of-anna" / name)
        with service.as_(tokens["anna"]) as http:
            done = service.wait(accepted.json()["job"], http)
        assert (done["state"], words in done["error"]) == ("failed", True), done["error"]


def test_quotas(service: Service, tokens: dict[str, str], folder: Path) -> None:
    carl = service.as_(tokens["carl"])
    form = {"executor": "mine", "env": "local", "gpus": "0", "parameters": '{"nap": 120, "mark": "first"}'}
    first = carl.post("/jobs", data=form, files=files("a.png"))
    assert first.status_code == 202, first.text
    body = {"images": [str(folder / "shared/0.png")], "parameters": {"nap": 120}}
    second = ask(service, tokens["carl"], "mine", **body)
    assert second.status_code == 202
    third = ask(service, tokens["carl"], "mine", **body)
    assert (third.status_code, third.headers["Retry-After"]) == (429, "30")
    assert "2 jobs of 'carl' are open" in third.json()["detail"]
    # What is open already is no new job, and costs nothing.
    assert carl.post("/jobs", data=form, files=files("a.png")).json() == {**first.json(), "new": False}
    assert carl.delete(second.json()["url"]).status_code == 202
    service.wait(second.json()["job"], carl)
    big = [("images", ("big.png", png() + bytes(4000), "image/png"))]
    over = carl.post("/jobs", data={**form, "parameters": "{}"}, files=big)
    assert over.status_code == 429
    assert "GiB in 24 hours" in over.json()["detail"]
    assert 82_000 < int(over.headers["Retry-After"]) <= 86_400
    assert ask(service, tokens["berta"], "mine", **body).status_code == 202
    carl.delete(first.json()["url"])
    left = {path.name for path in (folder / "home" / "jobs").iterdir()}
    with service.as_(tokens["chef"]) as chef:
        assert left <= {row["job"] for row in chef.get("/jobs", params={"limit": 1000}).json()}


def answer_of(http: httpx.Client, repo: str) -> str:
    sent = {"file": ("image.jpg", png(7))}
    return str(http.post("/image-prediction/", params={"repo": repo}, files=sent).json()["message"])


def test_open_clients(service: Service, tokens: dict[str, str], folder: Path) -> None:
    """They get at the routes of SegServe, and there at registered executors at configured revisions."""
    nobody = service.http
    assert nobody.get("/jobs").status_code == 401
    assert nobody.post("/jobs", data={"executor": "mine"}, files=files("a.png")).status_code == 401
    sent = {"files": ("image.jpg", png(7))}
    repo = f"file://{folder}/registered"
    good = nobody.post("/batch-image-prediction/", params={"repo": repo, "username": "../root"}, files=sent)
    assert good.status_code == 200, good.text
    for params in (
        {"repo": repo, "version": "other"},
        {"repo": repo, "version": git(folder / "registered", "rev-parse", "HEAD")},  # not what is configured
        {"repo": f"file://{folder}/elsewhere"},  # registered, but at no revision
        {"repo": f"file://{folder}/allowed/cells"},
        {"repo": "https://host.example/group/x"},
        {"repo": "cellpose"},
        {"repo": "ext::sh -c id"},
    ):
        answer = nobody.post("/batch-image-prediction/", params=params, files=sent)
        assert answer.status_code in (400, 422), (params, answer.text)
        assert answer.json()["detail"] == answer.json()["message"]
    assert f"{repo} version main" in answer_of(nobody, "https://host.example/x")
    with service.as_(tokens["chef"]) as chef, service.as_(tokens["anna"]) as anna:
        rows = [row for row in chef.get("/jobs", params={"limit": 1000}).json() if row["user"].startswith("open")]
        assert [(row["user"], row["priority"]) for row in rows] == [("open/../root", -20)]
        assert anna.get(f"/jobs/{rows[0]['job']}").status_code == 404
        # `username` proves nothing: who has a token is that user.
        params = {"repo": repo, "username": "berta"}
        assert (
            anna.post("/batch-image-prediction/", params=params, files={"files": ("b.png", png(8))}).status_code == 200
        )
        assert "berta" not in {row["user"] for row in anna.get("/jobs").json()}
    assert nobody.get("/info").status_code == 200
    wrong = nobody.post("/batch-image-prediction/", headers={"Authorization": "Bearer x"}, params={"repo": repo})
    assert (wrong.status_code, wrong.json()["message"].startswith("This token is not valid")) == (422, True)


def test_without_open_clients_the_routes_of_segserve_want_a_token_and_say_so(tmp_path: Path) -> None:
    Tokens(Home(tmp_path / "home").ensure().tokens).add("a")
    with Service(tmp_path / "home", tmp_path, server="[executors]\ncells = 'https://host/x'") as service:
        sent = {"file": ("image.jpg", png(7))}
        answer = service.http.post("/image-prediction/", params={"repo": "https://host/x"}, files=sent)
        assert answer.status_code == 422
        assert answer.json()["message"] == answer.json()["detail"]
        assert "wants a token" in answer.json()["message"]


# ------------------------------------------------------------------------------------------- quotas without a service


def submission(number: int, user: str, quota: Quota | None, **words: Any) -> Submission:
    return Submission(f"job-{number}", "{}", "cpu", user=user, quota=quota, **words)


def test_open_jobs_count_for_a_user_with_all_shares(tmp_path: Path) -> None:
    queue = Journal(tmp_path / "j.db").queue
    quota = Quota("open", open_jobs=3)
    users = ("open", "open/a", "open/b")
    for number, user in enumerate((*users, "open0", "opena", "ope")):
        queue.submit(submission(number, user, None, digest=f"d{number}"))
    for user in users:
        with pytest.raises(QuotaExceeded, match="3 jobs of 'open' are open"):
            queue.submit(submission(9, user, quota))
    assert not queue.submit(submission(9, "open/a", quota, digest="d1")).new
    assert queue.cancel("job-0") is JobState.CANCELLED
    assert queue.submit(submission(10, "open/c", quota)).new
    assert queue.submit(submission(11, "opena", Quota("opena", open_jobs=2))).new


def test_uploads_of_a_day_are_forgotten_hour_by_hour(tmp_path: Path) -> None:
    queue = Journal(tmp_path / "j.db").queue
    queue.submit(submission(1, "a", Quota("a", day_bytes=100, bytes=60)))
    with pytest.raises(QuotaExceeded) as refusal:
        queue.submit(submission(2, "a", Quota("a", day_bytes=100, bytes=41)))
    assert 23 * 3600 <= refusal.value.after_s <= 24 * 3600
    queue.submit(submission(3, "a", Quota("a", day_bytes=100, bytes=40)))
    queue.submit(submission(4, "b", Quota("b", day_bytes=100, bytes=100)))
    with sqlite3.connect(tmp_path / "j.db") as connection:
        connection.execute("UPDATE uploads SET hour = ? WHERE user = 'a'", (int(time.time() // 3600) - 24,))
    connection.close()
    assert queue.submit(submission(5, "a", Quota("a", day_bytes=100, bytes=100))).new
    with pytest.raises(QuotaExceeded):
        queue.submit(submission(6, "b", Quota("b", day_bytes=100, bytes=1)))
