"""What stands before the page: hundreds of requests that must not come through, and the few that must."""

import asyncio
import itertools
import json
from urllib.parse import quote, unquote

import pytest

from guidon.core.errors import InputError
from guidon.studio.guard import BODY, HEADERS, TARGET, Guard, Rules, cookie_line, is_loopback

KEY = "0123456789abcdef" * 2
HOST = {"host": "127.0.0.1:7860"}
JSON = {"content-type": "application/json"}


def asked(rules, path="/", method="GET", headers=HOST, query=b"", body=(b"",), client="127.0.0.1"):
    """The status, the headers and whether the application behind the guard was reached."""
    sent, reached, chunks = [], [], list(body)

    async def app(scope, receive, send):
        reached.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    raw = path.encode("latin-1", "replace")
    scope = {
        "type": "http", "method": method, "path": unquote(path), "raw_path": raw, "query_string": query,
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()], "client": (client, 5),
    }  # fmt: skip
    asyncio.run(Guard(app, rules)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), reached


LOCAL = Rules.of("127.0.0.1", None)
SECRETS = ("etc/passwd", "proc/self/environ", "root/.ssh/id_rsa", "windows/win.ini")
UPS = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "....//", "%252e%252e%252f")
STARTS = ("/", "/api/output/", f"/api/output/{KEY}/", "/gradio_api/file=", "/static/")
TRAVERSALS = [f"{start}{up * 4}{secret}" for start, up, secret in itertools.product(STARTS, UPS, SECRETS)]
OTHERS = [
    "/config", "/config/", "/info", "/gradio_api/info", "/gradio_api/upload", "/upload", "/gradio_api/queue/join",
    "/gradio_api/queue/data", "/gradio_api/call/x", "/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/login",
    "/monitoring", "/monitoring/summary", "/theme.css", "/favicon.ico", "/manifest.json", "/svelte/x", "/docs",
    "/openapi.json", "/robots.txt", "//", "/.", "/api", "/api/", "/api/job", "/api/job/1", f"/api/job/{KEY}0",
    f"/api/job/{KEY.upper()}", f"/api/job/{KEY}/", f"/api/job/{KEY}%00", f"/api/output/{KEY}/MP4", "/api/jobs", "/%",
    f"/api/output/{KEY}/mp4/x", f"/api/%6aob/{KEY}", "/gradio_api/reset", "/gradio_api/component_server", "/\x00",
]  # fmt: skip
HOSTS = [
    "evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "", "127.0.0.2:7860",
    "192.168.0.10:7860", "0.0.0.0:7860", "[::2]:7860", "guidon", "localhost@evil.example", "127.0.0.1 evil.example",
    "2130706433:7860", "0x7f.1", "xn--localhost", "[::ffff:127.0.0.1]:7860", "local host", "127.1", "ip6-localhost",
]  # fmt: skip


@pytest.mark.parametrize("chunk", range(8))
def test_paths_that_lead_out_reach_nothing(chunk):
    assert len(TRAVERSALS) + len(OTHERS) + len(HOSTS) > 200
    for path in TRAVERSALS[chunk::8]:
        status, _, reached = asked(LOCAL, path)
        assert (status, reached) == (404, []), path


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_addresses_of_the_server_below_are_closed(method):
    for path in OTHERS:
        status, _, reached = asked(LOCAL, path, method, HOST | JSON)
        assert (status, reached) == (404, []), path


def test_other_hosts_are_refused():
    for host in HOSTS:
        for path in ("/", "/api/hello", f"/api/output/{KEY}"):
            status, _, reached = asked(LOCAL, path, headers={"host": host})
            assert (status, reached) == (421, []), host
    assert asked(LOCAL, headers={})[0] == 421
    for host in ("127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860"):
        assert asked(LOCAL, headers={"host": host})[0] == 200


def test_requests_that_are_too_large_are_refused_whatever_they_say_of_their_size():
    post = {"path": "/api/compare", "method": "POST"}
    for headers in ({"content-length": str(BODY + 1)}, {"content-length": "9" * 40}, {"content-length": "-1"}):
        assert asked(LOCAL, **post, headers=HOST | JSON | headers)[::2] == (413, [])
    for body in ([b"x" * (BODY + 1)], [b"x" * 1000] * 100):
        assert asked(LOCAL, **post, headers=HOST | JSON, body=body)[::2] == (413, [])
    assert asked(LOCAL, "/api/job/" + "a" * TARGET)[0] == 414
    assert asked(LOCAL, query=b"a" * TARGET)[0] == 414
    assert asked(LOCAL, headers=HOST | {"cookie": "a" * HEADERS})[0] == 431
    status, _, reached = asked(LOCAL, **post, headers=HOST | JSON, body=[b"x" * 1000] * 60)
    assert (status, reached) == (200, [b"x" * 60_000])


@pytest.mark.parametrize("path", ["/api/study", "/api/yaml"])
def test_a_study_may_list_as_many_prompts_as_it_may_have(path):
    body = json.dumps({"prompts": ["\N{GRINNING FACE}" * 1000] * 1000}, ensure_ascii=False).encode()
    post = {"path": path, "method": "POST"}
    status, _, reached = asked(LOCAL, **post, headers=HOST | JSON | {"content-length": str(len(body))}, body=[body])
    assert (status, reached) == (200, [body])
    assert asked(LOCAL, **post, headers=HOST | JSON, body=[body, body])[::2] == (413, [])
    assert asked(LOCAL, **post, headers=HOST | JSON | {"content-length": str(2 * len(body))})[::2] == (413, [])


def test_other_sites_cannot_ask_or_change_anything():
    post = {"path": "/api/compare", "method": "POST"}
    for headers in (
        {"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
    ):  # fmt: skip
        assert asked(LOCAL, **post, headers=HOST | JSON | headers)[::2] == (403, [])
        assert asked(LOCAL, "/api/hello", headers=HOST | headers)[::2] == (403, [])
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert asked(LOCAL, **post, headers=HOST | {"content-type": kind})[::2] == (415, [])
    assert asked(LOCAL, **post, headers=HOST | JSON | {"origin": "http://127.0.0.1:7860"})[0] == 200
    assert asked(LOCAL, f"/api/cancel/{KEY}")[0] == 405  # no picture of another page can cancel
    assert asked(LOCAL, "/", "POST", HOST | JSON)[0] == 405


def test_every_answer_forbids_to_guess_its_type():
    for path in ("/", "/nothing"):
        assert asked(LOCAL, path)[1][b"x-content-type-options"] == b"nosniff"


def test_the_server_below_may_ask_itself_whether_it_runs():
    assert asked(LOCAL, "/gradio_api/startup-events")[0] == 200
    assert asked(LOCAL, "/gradio_api/startup-events", client="10.0.0.5")[0] == 404


def test_an_address_that_others_reach_needs_a_token():
    for address in ("0.0.0.0", "192.168.0.10", "::", "studio.example"):
        with pytest.raises(InputError, match="lets other machines connect: give token"):
            Rules.of(address, None)
    for token in ("short", "with space!", "ümlaute-ümlaute"):
        with pytest.raises(InputError, match="too easy to guess"):
            Rules.of("0.0.0.0", token)
    assert [is_loopback(a) for a in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "x")] == [True] * 3 + [False] * 2


def test_a_token_is_needed_for_everything_and_leaves_the_address():
    rules = Rules.of("0.0.0.0", "correct-horse", ("studio.example",))
    host = {"host": "studio.example:7860"}
    for path in ("/", "/api/hello", f"/api/output/{KEY}"):
        assert asked(rules, path, headers=host)[::2] == (401, [])
        for wrong in ("", "correct-hors", "correct-horse2"):
            assert asked(rules, path, headers=host | {"cookie": f"guidon_token={wrong}"})[0] == 401
        assert asked(rules, path, headers=host | {"cookie": "guidon_token=correct-horse"})[0] == 200
        assert asked(rules, path, headers=host | {"x-guidon-token": "correct-horse"})[0] == 200
    assert asked(rules, query=b"token=wrong", headers=host)[0] == 401
    status, headers, reached = asked(rules, query=b"token=correct-horse", headers=host)
    assert (status, headers[b"location"], reached) == (303, b"./", [])
    assert headers[b"set-cookie"] == b"guidon_token=correct-horse; Path=/; HttpOnly; SameSite=Strict"
    assert asked(rules, "/api/hello", query=b"token=correct-horse", headers=host)[0] == 401  # only in the first address
    # a name of somebody else's site that points here is no name of ours; an address cannot be pointed
    assert asked(rules, headers={"host": "evil.example", "x-guidon-token": "correct-horse"})[0] == 421
    assert asked(rules, headers={"host": "192.168.0.10", "x-guidon-token": "correct-horse"})[0] == 200


def test_a_public_page_may_be_framed_and_its_cookie_says_so():
    rules = Rules.of("0.0.0.0", None, ("owner-space.hf.space",), public=True)
    assert asked(rules, headers={"host": "owner-space.hf.space"})[0] == 200
    assert asked(rules, headers={"host": "other.hf.space"})[0] == 421
    assert cookie_line("a", "b", rules) == "a=b; Path=/; HttpOnly; SameSite=None; Secure; Partitioned"


def test_a_socket_is_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(None, LOCAL)({"type": "websocket", "path": "/"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_names_with_escapes_are_not_ours():
    assert asked(LOCAL, quote("/api/hello", safe=""))[0] == 404
