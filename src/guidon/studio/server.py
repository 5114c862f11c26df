"""The page and the engine behind addresses, on the server of Gradio.

Gradio starts the server, finds a free port, and runs on a Space. Its own page is not used: its components cannot run
several clips on one clock, and they ask other sites for fonts. Its addresses for files and uploads are closed
(``guard``), its statistics are off, and its queue is not used: that of the engine tells a place and an estimate.
"""

from __future__ import annotations

import json
import os
import threading
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ..core.errors import InputError, setting
from ..core.extras import require
from .engine import Studio
from .guard import Guard, Rules, cookie_line, cookie_of
from .jobs import Busy, disk_line, spelled
from .outputs import Absent
from .page import page_html, policy

PORT = 7860
PORTS = 100  # that are tried, from the first one on
BOTH = ("GET", "POST")  # the guard knows which of them an address takes
NOT_KEPT = {"Cache-Control": "no-store"}
ALONE = "sandbox allow-scripts allow-downloads allow-popups; frame-ancestors 'self'"
"""The policy of outputs: a report is a page with scripts, which runs in an origin of its own."""


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    url: str
    """What to open."""
    close: Callable[[], None]
    """Stops it."""


def start(
    studio: Studio,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
    token: str | None = None,
    hosts: tuple[str, ...] = (),
    public: bool = False,
) -> Running:
    """Start the server in a thread.

    Args:
        studio: the engine. The caller closes it after the server.
        address: what to bind to.
        port: None for the first free one from ``PORT`` on.
        token: what browsers must know; needed where other machines can connect.
        hosts: further names that it is called by.
        public: whether everybody may come in and the page may be shown in a frame, as on a Space.

    Raises:
        InputError: Gradio is missing, there is no token, or the port is taken.
    """
    rules = Rules.of(address, token, hosts, public=public)
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": str(studio.outputs.folder / "gradio"),
        "GRADIO_NUM_PORTS": str(PORTS),
    }
    gradio: Any = require("gradio", "the studio", "studio")
    server = _server(gradio, studio, rules)
    try:
        _, url, _ = server.launch(
            server_name=address, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
            ssr_mode=False, _frontend=False, enable_monitoring=False, mcp_server=False, pwa=False, run_history=False,
            allowed_paths=[], max_file_size=1, show_error=False,
        )  # fmt: skip
    except OSError:
        first = port or PORT
        raise InputError(f"{setting('port')} {first} is taken: stop what uses it, or give another") from None
    query = f"?token={token}" if token else ""
    return Running(f"{url}{query}", server.blocks.close)


def serve(studio: Studio, *, browser: bool = True, say: Callable[[str], None] = print, **how: Any) -> None:
    """Run until Ctrl-C.

    Args:
        studio: the engine.
        browser: open the page.
        say: told the address.
        how: the arguments of ``start``.
    """
    running = start(studio, **how)
    say(f"the studio is at {running.url} (Ctrl-C stops it)")
    if browser:
        webbrowser.open(running.url)
    studio.warm()
    try:
        threading.Event().wait()
    finally:
        running.close()


def _server(gradio: Any, studio: Studio, rules: Rules) -> Any:
    """The application of Gradio with the studio's addresses, behind the guard."""

    class Server(gradio.Server):
        """Gradio's application behind the guard, which its own middleware would stand before."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await guard(scope, receive, send)

    server = Server(docs_url=None, redoc_url=None, openapi_url=None, title="Guidon studio")
    guard = Guard(super(Server, server).__call__, rules)
    server.router.routes.extend(Answers(studio, rules).routes())
    return server


class Answers:
    """What the addresses of the studio answer.

    Args:
        studio: the engine.
        rules: who is let in.
    """

    def __init__(self, studio: Studio, rules: Rules) -> None:
        self.studio, self.rules = studio, rules
        self.elsewhere = _starlette("concurrency").run_in_threadpool

    def routes(self) -> list[Any]:
        """The routes, which ``guard.PATHS`` must name, too."""
        Route = _starlette("routing").Route
        studio = self.studio
        posted: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
            "model": lambda session, values: studio.describe(str(values.get("name"))),
            "compare": studio.compare,
            "spectrum": lambda session, values: studio.look_inside(
                session, str(values.get("run")), values.get("number")
            ),
            "study": studio.study,
            "yaml": lambda session, values: {"yaml": studio.yaml(session, values)},
        }
        keyed: dict[str, Callable[[str, str], Any]] = {"job": studio.state, "cancel": studio.cancel}
        return [
            Route("/", self.page),
            Route("/api/hello", self.hello),
            Route("/api/models", self._listed),
            Route("/api/preview/{key}", self.preview),
            Route("/api/output/{key}", self.output),
            Route("/api/output/{key}/{format}", self.output),
            *(
                Route(f"/api/{name}/{{key}}", self._of_key(work), methods=["GET", "POST"])
                for name, work in keyed.items()
            ),
            *(Route(f"/api/{name}", self._of_body(work), methods=["POST"]) for name, work in posted.items()),
        ]

    async def page(self, request: Any) -> Any:
        """The page."""
        HTMLResponse = _starlette("responses").HTMLResponse
        headers = {"Content-Security-Policy": policy(self.rules.embedded), "Cache-Control": "no-cache"}
        return HTMLResponse(page_html(), headers=headers)

    async def hello(self, request: Any) -> Any:
        """What the page begins with, and a session for a browser that has none."""
        session = session_of(request)
        new = not self.studio.queue.knows(session)

        def work() -> dict[str, Any]:
            return self.studio.hello(self.studio.open() if new else session)

        answer, found = await self._answered(work)
        if new and found is not None:
            answer.headers["Set-Cookie"] = cookie_line(cookie_name(request), found["session"], self.rules)
        return answer

    async def preview(self, request: Any) -> Any:
        """A picture of what is made."""
        Response = _starlette("responses").Response
        try:
            picture = self.studio.preview(session_of(request), request.path_params["key"])
        except (InputError, OSError) as error:
            return refused(error)
        return Response(picture, 200 if picture else 204, media_type="image/png", headers=NOT_KEPT)

    async def output(self, request: Any) -> Any:
        """A clip, a manifest or a report."""
        FileResponse = _starlette("responses").FileResponse
        key, format = request.path_params["key"], request.path_params.get("format")
        try:
            found = await self.elsewhere(self.studio.output, session_of(request), key, format)
        except (InputError, OSError) as error:
            return refused(error)
        shown = found.media == "text/html" or (found.media == "image/png" and format is None)
        headers = {"Cache-Control": "private, max-age=3600", "Content-Security-Policy": ALONE}
        kind = "inline" if shown else "attachment"
        return FileResponse(
            found.path, media_type=found.media, filename=found.name, content_disposition_type=kind, headers=headers
        )

    async def _listed(self, request: Any) -> Any:
        return (await self._answered(self.studio.listed))[0]

    def _of_key(self, work: Callable[[str, str], Any]) -> Callable[[Any], Any]:
        async def answer(request: Any) -> Any:
            key, session = request.path_params["key"], session_of(request)
            return (await self._answered(lambda: work(session, key)))[0]

        return answer

    def _of_body(self, work: Callable[[str, Mapping[str, Any]], Any]) -> Callable[[Any], Any]:
        async def answer(request: Any) -> Any:
            body, session = await request.body(), session_of(request)
            return (await self._answered(lambda: work(session, read_body(body))))[0]

        return answer

    async def _answered(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        """The answer that holds what some work gives, and that itself; a refusal is one line, and gives None."""
        JSONResponse = _starlette("responses").JSONResponse
        try:
            found = await self.elsewhere(work)
        except (InputError, OSError) as error:
            return refused(error), None
        return JSONResponse(found, headers=NOT_KEPT), found


def _starlette(module: str) -> Any:
    """A module of the library that Gradio's server is made of."""
    return require(f"starlette.{module}", "the studio", "studio", package="gradio")


def read_body(body: bytes) -> Mapping[str, Any]:
    """The JSON object of a body.

    Raises:
        InputError: it is none.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("what was sent is not JSON: reload the page") from None
    if not isinstance(values, Mapping):
        raise InputError(f"a {type(values).__name__} was sent: send a JSON object")
    return cast("Mapping[str, Any]", values)


def refused(error: InputError | OSError) -> Any:
    """The answer of a refusal: its one line. An ``OSError`` is one of the disk."""
    JSONResponse = _starlette("responses").JSONResponse
    if isinstance(error, OSError):
        return JSONResponse({"error": disk_line(error)}, 507, headers=NOT_KEPT)
    status = 404 if isinstance(error, Absent) else 503 if isinstance(error, Busy) else 422
    return JSONResponse({"error": spelled(error)}, status, headers=NOT_KEPT)


def session_of(request: Any) -> str:
    """The session that a browser says it has."""
    return cookie_of(request.headers.get("cookie", ""), cookie_name(request))


def cookie_name(request: Any) -> str:
    """The name of a session's cookie. Studios on other ports of a machine share its cookies, so it holds the port."""
    return f"guidon_{request.url.port or 80}"
