"""Images by URL: what leads away from the public internet is refused; so is what is too large, too slow or odd."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from segserve.errors import SegserveError, TooLarge
from segserve.fetching import Limits, Policy, Unfetchable, download
from segserve.fetching.addresses import AddressRefused, NoSuchHost, special
from tests.tls import Answer, FileServer, make_certificate

LIMITS = Limits(max_bytes=10_000, timeout_s=20)
HERE = Policy(allow=("127.0.0.1",))
CONTENT = b"\x89PNG and more" * 50


@pytest.fixture(scope="module")
def asked() -> list[str]:
    return []


@pytest.fixture(scope="module")
def address(asked: list[str]) -> Iterator[str]:
    def answer(path: str, login: str) -> Answer:
        asked.append(path)
        known: dict[str, Answer] = {
            "/a.png": (200, {}, CONTENT),
            "/large": (200, {}, b"x" * 10_001),
            "/liar": (200, {"Content-Length": "20"}, b"x" * 10_001),
            "/short": (200, {"Content-Length": str(len(CONTENT) + 5)}, CONTENT),
            "/zipped": (200, {"Content-Encoding": "gzip"}, CONTENT),
            "/round": (302, {"Location": "/round"}, b""),
            "/once": (302, {"Location": "a.png"}, b""),
            "/metadata": (302, {"Location": "http://169.254.169.254/latest/meta-data/"}, b""),
            "/file": (302, {"Location": "file:///etc/passwd"}, b""),
            "/localhost": (302, {"Location": "http://[::1]/"}, b""),
            "/nowhere": (302, {}, b""),
        }
        return known.get(path, (404, {}, b""))

    with FileServer(answer) as server:
        yield server.url.replace("localhost", "127.0.0.1")


def test_a_file_comes_with_its_hash(address: str, tmp_path: Path) -> None:
    found = download(f"{address}/once", tmp_path / "new" / "image", LIMITS, HERE)
    assert found.path.read_bytes() == CONTENT
    assert found.size == len(CONTENT)
    assert len(found.sha256) == 64


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/missing", "404"),
        ("/short", "ended after"),
        ("/zipped", "compressed"),
        ("/round", "redirects more than 5"),
        ("/file", "begins with https"),
        ("/localhost", "this machine, or nothing"),
        ("/metadata", "metadata"),
        ("/nowhere", "redirects"),
    ],
)
def test_what_a_server_answers_is_not_believed(address: str, tmp_path: Path, path: str, said: str) -> None:
    with pytest.raises(SegserveError) as refusal:
        download(address + path, tmp_path / "new" / "image", LIMITS, HERE)
    assert said in f"{refusal.value.message} {refusal.value.hint}"
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_nothing_larger_than_the_limit_is_kept(address: str, tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        download(f"{address}/large", tmp_path / "image", LIMITS, HERE)
    found = download(f"{address}/liar", tmp_path / "image", LIMITS, HERE)  # what is announced is all that is read
    assert found.size == 20


def test_the_type_is_told_by_the_content(address: str, tmp_path: Path) -> None:
    def wanted(head: bytes) -> str:
        return "" if head.startswith(b"GIF8") else "it is no GIF"

    with pytest.raises(Unfetchable, match="no GIF"):
        download(f"{address}/a.png", tmp_path / "image", LIMITS, HERE, wanted=wanted)


SPELLINGS = (
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "127.0.0.1."),
    *("localhost", "LOCALHOST", "１２７.0.0.1", "①②⑦.0.0.1", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[::127.0.0.1]", "[::]", "0", "0.0.0.0", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
    *("[2001:0:7f00:1::]", "[fe80::1%25lo]", "[fe80::1]", "[fec0::1]", "[fd00::1]", "[ff02::1]", "[4000::1]"),
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1"),
    *("255.255.255.255", "198.18.0.1", "192.0.0.192", "0xa9fea9fe", "2852039166", "[::ffff:169.254.169.254]"),
)


@pytest.mark.parametrize("host", SPELLINGS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_spelling_leads_inside(host: str, scheme: str, tmp_path: Path) -> None:
    with pytest.raises((AddressRefused, NoSuchHost, Unfetchable)) as refusal:
        download(f"{scheme}://{host}/", tmp_path / "image", LIMITS, Policy())
    said = refusal.value.message
    assert "special" in said or "interface" in said or "no host" in said or "no URL" in said, said


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.org/a", "gopher://example.org/", "//example.org/a", "data:image/png,x"),
        *("http://", "http:///a", "http://example.org:0/", "http://example.org:99999/", "http://exa mple.org/"),
        *("http://example.org/\r\nHost: other", "http://example.org\\@127.0.0.1/", "http://[::1", "a.png", ""),
        *("http://127.0.0.1@example.org/", "http://user:secret@example.org/"),
    ],
)
def test_what_is_no_url_of_a_web_server(url: str, tmp_path: Path) -> None:
    with pytest.raises(Unfetchable) as refusal:
        download(url, tmp_path / "image", LIMITS, Policy())
    assert "secret@" not in refusal.value.message


def test_public_addresses_are_not_special() -> None:
    for text in ("1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101", "2002:101:101::1"):
        assert special(ip_address(text)) == "", text
    assert "private" in special(ip_address("64:ff9b::a00:1"))


def test_ports_and_lists() -> None:
    public = ip_address("1.1.1.1")
    assert "port 22" in Policy().refusal("one.one", 22, public)
    assert Policy().refusal("one.one", 443, public) == ""
    assert Policy(allow=("one.one",)).refusal("One.one.", 22, public) == ""
    assert "fetch.only" in Policy(only=("images.org",)).refusal("one.one", 443, public)
    assert Policy(only=("1.0.0.0/8",)).refusal("one.one", 443, public) == ""
    inside = ip_address("10.1.2.3")
    assert Policy(allow=("10.0.0.0/8",)).refusal("store", 9000, inside) == ""
    assert Policy(allow=("10.0.0.0/8",)).refusal("store", 9000, ip_address("::ffff:10.1.2.3")) == ""
    assert "private" in Policy(only=("10.0.0.0/8",)).refusal("store", 80, inside)  # to be listed is not to be allowed


def test_the_address_that_was_checked_is_the_one_that_is_called(
    asked: list[str], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that means something else the second time (DNS rebinding) is not asked for a second time."""
    port = int(address.rpartition(":")[2])
    calls: list[str] = []

    def rebinding(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        calls.append(host)
        shown = "192.0.2.1" if len(calls) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (shown, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    reached: list[tuple[str, int]] = []

    def no_connection(where: tuple[str, int], timeout: float) -> socket.socket:
        reached.append(where)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", no_connection)
    before = len(asked)
    with pytest.raises(Unfetchable):
        download(f"http://rebinding.example:{port}/a.png", tmp_path / "image", LIMITS, Policy(allow=("192.0.2.1",)))
    assert (calls, reached, len(asked)) == (["rebinding.example"], [("192.0.2.1", port)], before)


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 80)) for one in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1"):
        Policy().addresses("mixed.example", 80, 5)


def test_a_server_that_drips_is_given_up(tmp_path: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not over.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    began = time.monotonic()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
    with listening, pytest.raises(Unfetchable, match=r"within 0\.5 s"):
        download(url, tmp_path / "image", Limits(10_000, timeout_s=0.5), HERE)
    over.set()
    thread.join()
    assert time.monotonic() - began < 30  # it would never end


def test_certificates_are_checked(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with FileServer(lambda *_: (200, {}, CONTENT), certificate) as server, pytest.raises(Unfetchable, match="trusted"):
        download(f"{server.url}/a.png", tmp_path / "image", LIMITS, Policy(allow=("127.0.0.1", "localhost", "::1")))
