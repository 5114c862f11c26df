"""What stands before the page: which hosts, paths, methods and sizes are answered, and who has the token.

The server of Gradio has many addresses of its own, such as one that sends files. None of them is reached: a request
either names one of the few addresses of the studio, or it is refused here.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from ..core.errors import InputError, quoted, setting

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY = 1 << 16  # bytes of a body
STUDY_BODY = 1 << 22  # bytes of a study, which may list 1000 prompts of 1000 characters
HEADERS = 1 << 14  # bytes of all headers
TARGET = 1 << 11  # bytes of a path and its query
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STARTED = "/gradio_api/startup-events"  # Gradio asks itself for it, once
KEY = "[0-9a-f]{32}"
PATHS: Mapping[str, str] = {
    "/": "GET",
    "/api/hello": "GET",
    "/api/models": "GET",
    f"/api/job/{KEY}": "GET",
    f"/api/preview/{KEY}": "GET",
    f"/api/output/{KEY}(/[a-z0-9]{{1,8}})?": "GET",
    f"/api/cancel/{KEY}": "POST",
    "/api/(model|compare|spectrum|study|yaml)": "POST",
}
"""The addresses of the studio, as regular expressions, with their methods."""
_PATHS = [(re.compile(path), method) for path, method in PATHS.items()]
_SAFE = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Rules:
    """Who is let in."""

    hosts: frozenset[str]
    """Names that a browser may call this server by, in lower case."""
    any_address: bool = False
    """Whether it may also be called by any IP address. A page of somebody else can point a name at this machine, but
    not an address."""
    token: str | None = None
    """What every browser must know; None where only this machine can connect."""
    embedded: bool = False
    """Whether the page may be shown in a frame of another site."""

    @classmethod
    def of(cls, address: str, token: str | None, hosts: tuple[str, ...] = (), *, public: bool = False) -> Rules:
        """The rules for an address.

        Args:
            address: what the server binds to.
            token: what browsers must know.
            hosts: further names that it is called by.
            public: whether everybody may come in, as on a Space.

        Raises:
            InputError: others can connect and there is no token, or it is too short.
        """
        if not is_loopback(address) and token is None and not public:
            raise InputError(
                f"{setting('address')} {quoted(address)} lets other machines connect: give {setting('token')}, which "
                "their browsers must know"
            )
        if token is not None and (len(token) < 8 or not re.fullmatch(r"[\w.~-]+", token, re.ASCII)):
            raise InputError(f"{setting('token')} is too easy to guess: give at least 8 letters, digits, or . _ ~ -")
        names = {*LOOPBACK, address, *hosts}
        return cls(frozenset(map(str.lower, names)), not is_loopback(address), token, public)


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to an address."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """An ASGI application before another one.

    Args:
        app: who answers what is let through.
        rules: who is let in.
        cookie: the name of the cookie that holds the token.
    """

    def __init__(self, app: App, rules: Rules, cookie: str = "guidon_token") -> None:
        self.app, self.rules, self.cookie = app, rules, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse in one line."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # a socket
            return await send({"type": "websocket.close", "code": 1008})
        refusal = self.refusal(scope)
        if refusal is None and scope["path"] == "/" and self._brings_token(scope):
            return await _redirect(send, self.cookie, self.rules)
        if refusal is not None:
            return await _refuse(send, *refusal)
        length = _headers(scope).get("content-length", "0")
        most = STUDY_BODY if scope["path"] in ("/api/study", "/api/yaml") else BODY
        if not length.isdecimal() or int(length[:20]) > most:
            return await _refuse(send, 413, f"the request is too large: at most {most} bytes are read")
        body = await _read(receive, most)
        if body is None:
            return await _refuse(send, 413, f"the request is too large: at most {most} bytes are read")
        return await self.app(scope, _once(body, receive), _with_headers(send))

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the line with which a request is refused; None if it is let through."""
        headers = _headers(scope)
        if not self._is_called(headers.get("host", "")):
            return 421, "this host is not known here: open the address that the studio printed"
        raw = bytes(scope.get("raw_path") or scope["path"].encode())
        if len(raw) + len(scope.get("query_string", b"")) > TARGET:
            return 414, "the address is too long"
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADERS:
            return 431, "the headers are too long"
        path = scope["path"]
        client = (scope.get("client") or ("",))[0]
        if path == STARTED and scope["method"] == "GET" and is_loopback(client):
            return None
        methods = [method for found, method in _PATHS if found.fullmatch(path)]
        if not methods or raw.split(b"?")[0] != path.encode():  # nothing of ours is escaped
            return 404, "there is no such address"
        if scope["method"] not in methods:
            return 405, f"this address takes {' or '.join(methods)}"
        if path != "/" and not self._is_same_site(headers):
            return 403, "the request comes from another site"
        if (
            scope["method"] == "POST"
            and headers.get("content-type", "").partition(";")[0].strip() != "application/json"
        ):
            return 415, "send JSON"
        if self.rules.token is not None and not self._has_token(scope, headers):
            return 401, "this studio needs its token: open the address with ?token=... that it printed"
        return None

    def _is_called(self, host: str) -> bool:
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self.rules.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.rules.any_address

    def _is_same_site(self, headers: Mapping[str, str]) -> bool:
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        return origin is None or origin.partition("://")[2] == headers.get("host")

    def _has_token(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        cookie = cookie_of(headers.get("cookie", ""), self.cookie)
        return self._is_token(cookie) or self._is_token(headers.get("x-guidon-token", "")) or self._brings_token(scope)

    def _brings_token(self, scope: Scope) -> bool:
        given = parse_qs(scope.get("query_string", b"").decode("ascii", "replace")).get("token", [""])
        return scope["path"] == "/" and self.rules.token is not None and self._is_token(given[0])

    def _is_token(self, given: str) -> bool:
        return self.rules.token is not None and hmac.compare_digest(given.encode(), self.rules.token.encode())


def cookie_of(header: str, name: str) -> str:
    """The value of a cookie; empty if there is none."""
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def cookie_line(name: str, value: str, rules: Rules) -> str:
    """A Set-Cookie header: no script reads it, and no other site sends it."""
    where = "SameSite=None; Secure; Partitioned" if rules.embedded else "SameSite=Strict"
    return f"{name}={value}; Path=/; HttpOnly; {where}"


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


async def _read(receive: Receive, most: int) -> bytes | None:
    """The body of a request; None if it is too large, whatever its headers say."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _once(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for the application."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [name for name, _ in message.get("headers", ())]
            message["headers"] = [*message.get("headers", ()), *(h for h in _SAFE if h[0] not in own)]
        await send(message)

    return sent


async def _refuse(send: Send, status: int, line: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *_SAFE]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{line}\n".encode()})


async def _redirect(send: Send, cookie: str, rules: Rules) -> None:
    """Take the token out of the address, into a cookie."""
    line = cookie_line(cookie, rules.token or "", rules)
    headers = [(b"location", b"./"), (b"set-cookie", line.encode()), *_SAFE]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
