"""HTTPS on loopback with a certificate of our own, for tests of credentials and downloads."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

Answer = tuple[int, dict[str, str], bytes]


def make_certificate(folder: Path) -> Path:
    """Self-signed, for 127.0.0.1 and localhost; the file holds certificate and key."""
    pem, key = folder / "certificate.pem", folder / "key.pem"
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    _openssl("req", *words, *names, "-keyout", key, "-out", pem)
    pem.write_text(pem.read_text() + key.read_text())
    return pem


def make_authority(folder: Path, host: str) -> tuple[Path, Path]:
    """A site's own authority, and the certificate (with key) that it gave to `host` and 127.0.0.1.

    Unlike a self-signed one, which is both at once, this passes rustls too.
    """
    authority, key, request, certificate = (folder / name for name in ("ca.pem", "ca.key", "request.pem", "site.pem"))
    new = ("req", "-newkey", "rsa:2048", "-nodes")
    _openssl(*new, "-x509", "-days", "2", "-subj", "/CN=Authority of a test", "-keyout", key, "-out", authority)
    _openssl(*new, "-subj", f"/CN={host}", "-keyout", folder / "site.key", "-out", request)
    (folder / "names").write_text(f"subjectAltName=DNS:{host},IP:127.0.0.1\n")
    signed_by = ("-CA", authority, "-CAkey", key, "-CAcreateserial", "-days", "2", "-extfile", folder / "names")
    _openssl("x509", "-req", "-in", request, *signed_by, "-out", certificate)
    certificate.write_text(certificate.read_text() + (folder / "site.key").read_text())
    return authority, certificate


def _openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def secure(server: ThreadingHTTPServer, certificate: Path) -> str:
    """Let a server speak TLS; returns its URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return f"https://127.0.0.1:{server.server_port}"


class FileServer(AbstractContextManager["FileServer"]):
    """Answers GET by a function of path and `Authorization` header; over TLS when it is given a certificate."""

    def __init__(self, answer: Callable[[str, str], Answer], certificate: Path | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, content = answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *_args: object) -> None:
                """Nothing: the requests are not what the tests look at."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        plain = f"http://127.0.0.1:{self._server.server_port}"
        self.url = secure(self._server, certificate) if certificate else plain

    def __enter__(self) -> FileServer:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._server.shutdown()
        self._server.server_close()
