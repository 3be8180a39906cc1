"""A proxy in front of the S3 server that fails as S3 and networks do, at requests chosen by rules.

Not forwarded: ``slow_down`` 503 SlowDown; ``error_in_200`` 200 with an error in its body; ``no_such_upload`` 404;
``reset`` reset; ``torn`` reset half way through the request's body; ``timeout`` no answer for a while. Forwarded:
``cut`` the whole length promised, half the body sent; ``done_then_reset`` done by the server, answer lost.
"""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import urlsplit

ALWAYS = 1 << 30
HANG_S = 0.2  # of "timeout": short for the tests' sake; the client sees an answer that never comes
ERRORS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "error_in_200": (200, "InternalError", "We encountered an internal error. Please try again."),
    "no_such_upload": (404, "NoSuchUpload", "The specified upload does not exist."),
}
HOP = ("connection", "keep-alive", "transfer-encoding", "expect")


@dataclass
class Rule:
    """Let ``skip`` requests of a method by whose path matches ``path``, a pattern, then do ``fault`` to ``count``."""

    # An empty method is any.

    method: str
    path: str
    fault: str
    count: int = 1
    skip: int = 0
    done: int = 0

    def takes(self, method: str, path: str) -> bool:
        if self.method not in (method, "") or not re.search(self.path, path) or self.done >= self.count:
            return False
        self.skip -= 1
        return self.skip < 0


class FaultyS3:
    """The proxy, serving from threads until ``close``; ``rules`` may be added at any time."""

    def __init__(self, server: str) -> None:
        self.server, self.rules, self.requests = urlsplit(server).netloc, list[Rule](), list[tuple[str, str]]()
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.proxy = self
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def rule(self, method: str, path: str, fault: str, count: int = 1, skip: int = 0) -> Rule:
        """Add a rule and return it; its ``done`` counts what was injected."""
        self.rules.append(Rule(method, path, fault, count, skip))
        return self.rules[-1]

    def fault_of(self, method: str, path: str) -> str:
        """Note a request; return the fault of the first rule that takes it, or an empty string."""
        with self._lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if rule.takes(method, path):
                    rule.done += 1
                    return rule.fault
            return ""

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultyS3

    def shutdown_request(self, request: Any) -> None:
        request.close()  # without an orderly end, so that a reset is one

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, and answers "Expect: 100-continue"
    disable_nagle_algorithm = True

    def do_any(self) -> None:
        proxy = cast(_Server, self.server).proxy
        fault = proxy.fault_of(self.command, self.path)
        if fault == "torn":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self._reset()
            return
        body = self._body()
        if fault in ERRORS:
            status, code, message = ERRORS[fault]
            error = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            self._answer(status, [("Content-Type", "application/xml")], error.encode())
        elif fault == "timeout":
            time.sleep(HANG_S)
            self.close_connection = True
        elif fault == "reset":
            self._reset()
        else:
            status, headers, answer = self._forward(proxy.server, body)
            if fault == "done_then_reset":
                self._reset()
            else:
                self._answer(status, headers, answer, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _forward(self, server: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(server, timeout=30)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in (*HOP, "content-length"):
                connection.putheader(name, value)
        if body or self.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, response.getheaders(), answer

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            # The length of a HEAD's answer is the object's; every other body is here whole.
            if name.lower() not in HOP and (self.command == "HEAD" or name.lower() != "content-length"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the tests' output quiet."""
