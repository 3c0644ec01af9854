"""Who gets in, and to what: tokens on the command line, a real service with users, sessions of browsers, addresses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from segserve import refs
from segserve.config import Settings
from segserve.errors import LoginNeeded, NotFound, UsageError
from segserve.layout import Home
from segserve.server import access
from segserve.server.door import Door, check_address
from segserve.server.sessions import Sessions
from segserve.tokens import Scope, Tokens
from tests.commands import Command
from tests.executors import make_shell_executor
from tests.services import Service
from tests.uploads import files

pytest_plugins = ["tests.command_fixtures"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    make_shell_executor(folder / "executor")
    return folder


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tokens:
    return Tokens(Home(folder / "home").ensure().tokens)


@pytest.fixture(scope="module")
def service(folder: Path, tokens: Tokens) -> Iterator[Service]:
    tokens.add("first")
    settings = f'origins = ["https://pages.example.org"]\n[repositories]\nallow = ["{folder.as_uri()}/"]'
    with Service(folder / "home", folder, server=f"{settings}\n[data_roots]\n'{folder}' = ['*']") as service:
        yield service


def client(service: Service, tokens: Tokens, user: str, *scopes: Scope) -> httpx.Client:
    name = f"{user}-{time.monotonic_ns()}"
    return service.as_(tokens.add(name, user=user, scopes=scopes or (Scope.SUBMIT, Scope.READ))[1])


def submit(http: httpx.Client, folder: Path, **fields: Any) -> httpx.Response:
    data = {"executor": str(folder / "executor"), "env": "local", "gpus": "0"}
    return http.post("/jobs", data={**data, **fields}, files=files("a.png"))


# ------------------------------------------------------------------------------------------------- tokens themselves


def test_a_token_is_shown_once_and_kept_as_a_hash(home: Home, segserve: Command) -> None:
    made = segserve("tokens", "add", "laptop", "--user", "anna", "--expires", "90d")
    text = made.out.strip()
    assert re.fullmatch(r"sgs_\w{8}_[0-9a-f]{48}", text)
    assert "not shown again" in made.err
    listed = segserve("tokens", "list", "--json").document
    assert [(one["name"], one["user"], one["scopes"], one["valid"]) for one in listed] == [
        ("laptop", "anna", ["read", "submit"], True)
    ]
    assert text.split("_")[2] not in json.dumps(listed) + home.tokens.read_text() + segserve("tokens", "list").out
    assert home.tokens.stat().st_mode & 0o777 == 0o600
    assert segserve("tokens", "add", "laptop").code == 2
    assert segserve("tokens", "add", "x", "--scopes", "submit,everything").code == 2
    assert segserve("tokens", "add", "x", "--expires", "2001-01-01").code == 2
    gone = segserve("tokens", "rm", "laptop")
    assert "anna" in gone.out
    assert "nobody gets in" in gone.err
    assert segserve("tokens", "rm", "laptop").code == 2


def test_only_the_whole_token_counts_and_only_in_its_time(home: Home) -> None:
    tokens = Tokens(home.tokens)
    token, text = tokens.add("a")
    late, late_text = tokens.add("b", expires=time.time() + 0.2)
    assert tokens.find(text) == token
    for other in ("", text[:-1], text + "0", text[:-1] + ("0" if text[-1] != "0" else "1"), text.upper(), f"x{text}"):
        assert tokens.find(other) is None, other
    assert tokens.find(text.replace(token.id, late.id)) is None
    time.sleep(0.25)
    assert tokens.find(late_text) is None
    assert tokens.get(late.id) is None
    assert Tokens(home.tokens).remove(token.id) == token  # another process
    assert tokens.find(text) is None
    with pytest.raises(NotFound):
        tokens.remove("a")
    for name in ("", "a/b", "open/x", "-x", "a b", "x" * 65):
        with pytest.raises(UsageError, match="no name"):
            tokens.add(name)


# ------------------------------------------------------------------------------------------------------- who sees what


def test_everything_but_what_is_public_needs_a_token(service: Service) -> None:
    """Each route of the description, those that come later included."""
    nobody = httpx.Client(base_url=service.url)
    for path, methods in nobody.get("/openapi.json").json()["paths"].items():
        for method in methods:
            answer = nobody.request(method, re.sub(r"\{.*?\}", "x", path))
            if path in access.COMPATIBILITY:
                assert answer.status_code == 422, path
                assert answer.json()["message"].startswith("This server wants a token.")
            elif access.is_public(path):
                assert answer.status_code not in (401, 403) or method == "post", path
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "segserve tokens add" in answer.json()["detail"]
    for path in ("/no/such/path", "//jobs", "/jobs/", "/livez/../jobs", "/docs/oauth2-redirect"):
        assert nobody.get(path).status_code in (401, 404, 307), path
    assert nobody.get("/me").json() == {"user": "", "scopes": [], "local": False}
    assert nobody.get("/livez").status_code == 200


def test_users_see_and_stop_their_own_jobs_only(service: Service, tokens: Tokens, folder: Path) -> None:
    anna, berta = client(service, tokens, "anna"), client(service, tokens, "berta")
    admin = client(service, tokens, "chef", Scope.ADMIN)
    words = {"parameters": '{"nap": 4, "mark": "both"}'}
    first, second = submit(anna, folder, **words).json(), submit(berta, folder, **words).json()
    assert first["new"]
    assert second["new"]  # the same request of somebody else is another job
    assert first["job"] != second["job"]
    again = client(service, tokens, "anna")  # another token of the same user
    assert submit(again, folder, **words).json() == {**first, "new": False}
    job = first["job"]
    service.wait(job, anna)
    assert berta.delete(f"/jobs/{job}").status_code == 404
    routes = (
        "",
        "/events",
        "/result",
        "/files",
        "/files/output.json",
        "/exports",
        "/exports/coco",
        "/images",
        "/images/0",
        "/polygons/0",
    )
    for http, status in ((anna, 200), (admin, 200), (berta, 404)):
        assert {http.get(f"/jobs/{job}{route}").status_code for route in routes} == {status}
    assert {row["user"] for row in anna.get("/jobs").json()} == {"anna"}
    assert {"anna", "berta"} <= {row["user"] for row in admin.get("/jobs").json()}
    assert job not in berta.get("/jobs").text
    service.wait(second["job"], berta)


def test_keys_of_others_are_not_there(service: Service, tokens: Tokens, folder: Path) -> None:
    anna, berta = client(service, tokens, "anna"), client(service, tokens, "berta")
    body = {"executor": str(folder / "executor"), "env": "local", "gpus": "0", "images": [str(folder / "nothing")]}
    key = {"Idempotency-Key": "shared"}
    one, two = anna.post("/jobs", json=body, headers=key).json(), berta.post("/jobs", json=body, headers=key).json()
    assert one["job"] != two["job"]
    assert anna.post("/jobs", json=body, headers=key).json()["job"] == one["job"]


def test_scopes(service: Service, tokens: Tokens, folder: Path) -> None:
    reader = client(service, tokens, "dora", Scope.READ)
    writer = client(service, tokens, "dora", Scope.SUBMIT)
    refused = submit(reader, folder)
    assert refused.status_code == 403
    assert "scope 'submit'" in refused.json()["detail"]
    accepted = submit(writer, folder, parameters='{"nap": 30, "mark": "scopes"}')
    assert accepted.status_code == 202
    url = accepted.json()["url"]
    assert writer.get(url).status_code == 403
    assert reader.get(url).status_code == 200
    assert reader.delete(url).status_code == 403
    assert writer.delete(url).status_code == 202


def test_what_is_removed_is_refused_at_once(service: Service, tokens: Tokens) -> None:
    token, text = tokens.add("soon-gone")
    http = service.as_(text)
    assert http.get("/jobs").status_code == 200
    session = httpx.Client(base_url=service.url)
    assert session.post("/login", json={"token": text}).status_code == 204
    assert session.get("/jobs").status_code == 200
    tokens.remove(token.name)
    gone = http.get("/jobs")
    assert gone.status_code == 401
    assert text not in gone.text
    assert session.get("/jobs").status_code == 401
    # A token that is wrong is never taken for no token at all.
    assert http.get("/livez").status_code == 401


def test_a_stream_ends_with_the_token_that_reads_it(service: Service, tokens: Tokens, folder: Path) -> None:
    token, text = tokens.add("follower", user="frida")
    http = service.as_(text)
    job = submit(http, folder, parameters='{"nap": 60}').json()["job"]
    kinds = []
    with http.stream("GET", f"/jobs/{job}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kinds.append(line)
                tokens.remove(token.name) if len(kinds) == 1 else None
    assert kinds
    assert "event: end" not in kinds  # the job goes on, without a reader
    assert http.get(f"/jobs/{job}/events").status_code == 401
    client(service, tokens, "frida").delete(f"/jobs/{job}")


# ------------------------------------------------------------------------------------------------- browsers and pages


def test_a_session_is_for_our_own_page(service: Service, tokens: Tokens, folder: Path) -> None:
    _, text = tokens.add("browser", user="emil")
    browser = httpx.Client(base_url=service.url, headers={"Origin": service.url, "Sec-Fetch-Site": "same-origin"})
    assert browser.post("/login", json={"token": "sgs_00000000_" + "0" * 48}).status_code == 401
    assert browser.post("/login", json={"token": text}, headers={"Origin": "https://evil.example"}).status_code == 403
    answer = browser.post("/login", json={"token": text})
    assert answer.status_code == 204
    cookie = answer.headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert text not in cookie
    assert browser.get("/me").json()["user"] == "emil"
    form = {"parameters": '{"mark": "session"}'}
    job = submit(browser, folder, **form)
    assert job.status_code == 202
    # What other pages let the browser do, its cookie included.
    for headers in (
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
        {"Origin": service.url.replace("127.0.0.1", "localhost"), "Sec-Fetch-Site": "same-site"},
        {
            "Origin": "https://pages.example.org",
            "Sec-Fetch-Site": "cross-site",
        },  # may call, but with a token of its own
    ):
        assert browser.delete(job.json()["url"], headers=headers).status_code in (401, 403), headers
        assert browser.get("/jobs", headers=headers).status_code in (401, 403), headers
    plain = httpx.Client(base_url=service.url, cookies=browser.cookies)  # an old browser: no Origin, no Sec-Fetch-Site
    assert plain.get("/jobs").status_code == 200
    assert plain.delete(job.json()["url"]).status_code == 401
    assert browser.post("/logout").status_code == 204
    assert plain.get("/jobs").status_code == 401


def test_a_session_outlives_the_service(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").ensure()
    text = Tokens(home.tokens).add("emil")[1]
    server = '[repositories]\nallow = ["https://example.org/"]\n'
    with Service(home.path, tmp_path, server=server) as service:
        cookies = []
        for _ in range(2):
            with httpx.Client(base_url=service.url, headers={"Origin": service.url}) as browser:
                assert browser.post("/login", json={"token": text}).status_code == 204
                cookies.append(dict(browser.cookies))
        kept, ended = cookies
        with httpx.Client(base_url=service.url, headers={"Origin": service.url}, cookies=ended) as browser:
            assert browser.post("/logout").status_code == 204
        assert home.sessions.stat().st_mode & 0o777 == 0o600
        assert not any(cookie in home.sessions.read_text() for cookie in kept.values())
        service.process.kill()  # no time to write anything down
        service.process.wait(60)
    with Service(home.path, tmp_path, server=server) as service:
        assert httpx.get(f"{service.url}/me", cookies=kept).json()["user"] == "emil"
        assert httpx.get(f"{service.url}/jobs", cookies=kept).status_code == 200
        assert httpx.get(f"{service.url}/jobs", cookies=ended).status_code == 401
        Tokens(home.tokens).remove("emil")
        Tokens(home.tokens).add("emil")
        assert httpx.get(f"{service.url}/jobs", cookies=kept).status_code == 401


def test_sessions_end(home: Home) -> None:
    tokens = Tokens(home.tokens)
    token, other = (tokens.add(name)[0] for name in ("anna", "emil"))
    sessions = Sessions(home.sessions, tokens)
    cookies = [sessions.begin(token) for _ in range(3)]
    theirs = sessions.begin(other)
    rows = json.loads(home.sessions.read_text())
    idle, old, *_ = sorted(rows["sessions"].values(), key=lambda row: row["began"])
    idle["used"] -= 12 * 3600
    old["began"] -= 30 * 86400
    home.sessions.write_text(json.dumps(rows))
    sessions = Sessions(home.sessions, tokens)
    assert [sessions.find(cookie)[0] for cookie in cookies] == [False, False, True]
    assert sessions.find(theirs) == (True, other)
    for _ in range(50):  # one user does not push out others
        sessions.begin(token)
    assert not sessions.find(cookies[2])[0]
    assert Sessions(home.sessions, tokens).find(theirs) == (True, other)
    sessions.end(theirs)
    assert not Sessions(home.sessions, tokens).find(theirs)[0]
    again = sessions.begin(other)
    home.sessions.write_text("{")
    assert sessions.find(again) == (False, None)
    assert sessions.find(sessions.begin(other)) == (True, other)


def test_pages_of_other_origins_may_call_when_they_are_configured(service: Service, tokens: Tokens) -> None:
    http = client(service, tokens, "frida")
    ours = {"Origin": "https://pages.example.org", "Sec-Fetch-Site": "cross-site"}
    answer = http.get("/jobs", headers=ours)
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "https://pages.example.org")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert http.options("/jobs", headers={**ours, **asked}).status_code == 200
    refused = httpx.post(f"{service.url}/batch-image-prediction/", params={"repo": "x"}, headers=ours)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (422, "https://pages.example.org")
    foreign = http.get("/jobs", headers={"Origin": "https://pages.example.org.evil.example"})
    assert foreign.status_code == 403
    assert "Access-Control-Allow-Origin" not in foreign.headers


def test_foreign_hosts(service: Service, tokens: Tokens) -> None:
    http = client(service, tokens, "gerd")
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", ""):
        for path in ("/jobs", "/livez", "/docs"):
            assert http.get(path, headers={"Host": host}).status_code == 403, (host, path)
        answer = http.post("/image-prediction/", headers={"Host": host})
        assert (answer.status_code, set(answer.json())) == (422, {"detail", "message"})
    assert http.get("/jobs", headers={"Host": "localhost:1"}).status_code == 200


# ---------------------------------------------------------------------------------------- a door without its service


def request(path: str = "/jobs", method: str = "GET", client: str = "127.0.0.1", **headers: str) -> Request:
    given = {"host": "localhost:8000", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b""}
    return Request({**scope, "client": (client, 1), "server": ("127.0.0.1", 8000), "scheme": "http"})


def test_a_one_time_link_works_once(home: Home) -> None:
    door = Door(Settings(), Tokens(home.tokens), linked=True)
    with pytest.raises(LoginNeeded):
        door.admit(request())
    secret = door.link().removeprefix("/login/")
    with pytest.raises(LoginNeeded):
        door.follow(secret[:-1])
    cookie = f"{door.cookie}={door.follow(secret)}"
    assert door.admit(request(cookie=cookie)).local
    with pytest.raises(LoginNeeded, match="used already"):
        door.follow(secret)
    with pytest.raises(LoginNeeded):
        door.admit(request(method="POST", cookie=cookie))  # a page that does not say whose it is
    own = {"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}
    assert door.admit(request(method="POST", cookie=cookie, **own)).may(Scope.ADMIN)
    assert door.admit(request("/livez")).user == ""


def test_the_local_users_server_closes_when_there_is_a_token_and_stays_closed(home: Home) -> None:
    tokens = Tokens(home.tokens)
    door = Door(Settings(), tokens)
    assert door.admit(request()).local
    tokens.add("a")
    with pytest.raises(LoginNeeded):
        door.admit(request())
    home.tokens.unlink()
    with pytest.raises(LoginNeeded):
        door.admit(request())


def test_other_addresses_need_tokens_and_repositories(home: Home) -> None:
    tokens = Tokens(home.tokens)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_address(Settings.model_validate({"server": {"host": host}}), tokens)
    for server in ({"host": "0.0.0.0"}, {"host": "::"}, {"host": "192.0.2.1"}, {"hosts": ["segserve.example.org"]}):
        with pytest.raises(UsageError, match=r"a token .* and the repositories"):
            check_address(Settings.model_validate({"server": server}), tokens)
    done = subprocess.run(
        [sys.executable, "-m", "segserve", "serve", "--host", "0.0.0.0"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    for words in ("segserve tokens add", "[repositories] allow", "ssh tunnel"):
        assert words in done.stderr
    tokens.add("a")
    with pytest.raises(UsageError, match="To serve others, the server needs the repositories"):
        check_address(Settings(), tokens)
    decided = {"server": {"host": "0.0.0.0"}, "repositories": {"allow": ["https://host/group/"]}}
    check_address(Settings.model_validate(decided), tokens)


# --------------------------------------------------------------------------------------------------- repositories.allow


PATTERNS = ["https://host/group/", "https://h.org/a/b", "git@h.org:lab/*", "ssh://git@h/x/", "file:///data/ex/"]


@pytest.mark.parametrize(
    "repo",
    [
        "https://host/group/x",
        "https://HOST:443/group/x/y.git/",
        "https://h.org/a/b.git",
        "git@H.org:lab/x.git",
        "ssh://git@h/x/y",
        "file:///data/ex/a",
    ],
)
def test_repositories_that_are_allowed(repo: str) -> None:
    assert refs.permitted(repo, PATTERNS)


@pytest.mark.parametrize(
    "repo",
    ["https://host/group-evil/x", "https://host/group", "https://host.evil.org/group/x", "https://host:8443/group/x",
     "https://host/group/../evil", "https://host/group/%2e%2e/evil", "https://host/group//x", "https://host/group\\..\\x",
     "https://h.org/a/b/c", "https://h.org/a/bc", "git@h.org:lab2/x", "git@h.org:lab/../x", "other@h.org:lab/x",
     "ssh://h/x/y", "file:///data/ex2/a", "file:///data/ex/../b", "/data/ex/a", ""],
)  # fmt: skip
def test_repositories_that_are_not(repo: str) -> None:
    assert not refs.permitted(repo, PATTERNS)
    assert not refs.permitted(repo, [])


@pytest.mark.parametrize(
    "pattern",
    [
        "https://user:secret@host/g/",
        "https://token@host/g/",
        "https://*/x",
        "https://host/a/*/b",
        "http://h/x",
        "host",
        "https://host/a/../b",
        "https://host//a/",
        "ext::sh -c x",
        "ssh://git@h/../x",
        "file://",
        "-x",
    ],
)
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ValueError, match="no address of a repository") as refusal:
        refs.check_pattern(pattern)
    assert "secret" not in str(refusal.value)
