"""The studio on Gradio's server: who is served, who is refused, and that nothing is asked of another machine."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guidon.studio.engine import Studio
from guidon.studio.models import Models
from studio.test_engine import PROMPT, setting

pytestmark = pytest.mark.studio


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def asked_of_others():
    """Addresses beyond this machine to which the process connects while the server runs."""
    found, real = [], socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            found.append(address)
        return real(self, address)

    socket.socket.connect = connect
    yield found
    socket.socket.connect = real


@pytest.fixture(scope="module")
def running(tiny_model, tmp_path_factory, asked_of_others):
    pytest.importorskip("gradio")
    from guidon.studio.server import start

    folder = tmp_path_factory.mktemp("studio")
    studio = Studio(Models([str(tiny_model)]), device="cpu", temporary=folder)
    server = start(studio, port=free_port())
    server_port = int(server.url.rsplit(":", 1)[1].strip("/"))
    yield server_port
    server.close()
    studio.close()
    assert list(folder.iterdir()) == []


class Browser:
    """A browser without a window: it keeps its cookies."""

    def __init__(self, port):
        self.port, self.cookies = port, {}

    def ask(self, path, body=None, headers=None, method=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        own = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} if self.cookies else {}
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        own |= {} if data is None else {"Content-Type": "application/json"}
        connection.request(method or ("POST" if data is not None else "GET"), path, data, own | (headers or {}))
        answer = connection.getresponse()
        content = answer.read()
        if cookie := answer.getheader("Set-Cookie"):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        connection.close()
        return answer.status, answer, content

    def json(self, path, body=None):
        status, _, content = self.ask(path, body)
        return status, json.loads(content)

    def ended(self, key):
        until = time.monotonic() + 60
        while time.monotonic() < until:
            _, job = self.json(f"/api/job/{key}")
            if job["state"] in ("done", "failed", "cancelled"):
                return job
            time.sleep(0.02)
        raise AssertionError(job)


@pytest.fixture
def browser(running):
    one = Browser(running)
    assert one.json("/api/hello")[0] == 200
    return one


@pytest.fixture
def asked(tiny_model):
    return {"model": str(tiny_model), "prompt": PROMPT, "settings": [setting(), setting((True,) * 4)]}


def test_the_page_is_whole_and_names_no_other_site(running):
    status, answer, content = Browser(running).ask("/")
    assert status == 200
    assert answer.getheader("Content-Security-Policy").startswith("default-src 'none'")
    text = content.decode().replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text
    assert "https://" not in text
    assert "{{" not in text


def test_two_browsers_do_not_see_each_others_runs(running, browser, asked):
    status, job = browser.json("/api/compare", asked)
    assert status == 200
    own = browser.ended(job["id"])["result"]["settings"][0]
    other = Browser(running)
    other.json("/api/hello")
    assert other.cookies != browser.cookies
    for path in (f"/api/job/{job['id']}", f"/api/preview/{job['id']}", f"/api/output/{own['clips'][0]}"):
        assert browser.ask(path)[0] in (200, 204)
        for stranger in (other, Browser(running)):
            assert stranger.ask(path)[0] == 404
    assert other.ask(f"/api/cancel/{job['id']}", {})[0] == 404
    assert other.ask("/api/spectrum", {"run": job["id"], "number": 0})[0] == 404
    assert other.json("/api/hello")[1]["runs"] == []
    assert [run["id"] for run in browser.json("/api/hello")[1]["runs"]] == [job["id"]]


def test_the_ninth_job_waits_and_is_told_so(browser, asked):
    long = asked | {"settings": [setting(steps=1000)]}
    jobs = [browser.json("/api/compare", long)[1] for _ in range(9)]
    _, ninth = browser.json(f"/api/job/{jobs[8]['id']}")
    assert ninth["state"] == "waiting"
    assert ninth["message"].startswith("8 jobs are before yours")
    for job in jobs:
        browser.ask(f"/api/cancel/{job['id']}", {})
    assert {browser.ended(job["id"])["state"] for job in jobs} == {"cancelled"}


def test_refusals_are_one_line(browser, asked):
    for path, body, status, words in (
        ("/api/compare", b"{", 422, "not JSON"),
        ("/api/compare", b"[1]", 422, "send a JSON object"),
        ("/api/compare", b"[" * 60_000, 422, "not JSON"),
        ("/api/compare", asked | {"prompt": ""}, 422, "prompt is empty"),
        ("/api/compare", asked | {"settings": [setting(steps=0)]}, 422, "steps"),
        ("/api/compare", asked | {"model": "../../etc"}, 404, "not in the list"),
        ("/api/model", {"name": "/etc/passwd"}, 404, "not in the list"),
        ("/api/study", {"comparison": asked, "prompts": 1}, 422, "prompts"),
        ("/api/spectrum", {"run": "x"}, 404, "not there"),
    ):
        found, answer = browser.json(path, body)
        assert found == status, answer
        assert words in answer["error"]
        assert "\n" not in answer["error"]
    assert Browser(browser.port).json("/api/compare", asked)[0] == 404  # without a session


def test_a_full_disk_is_answered_in_one_line_without_its_path():
    pytest.importorskip("gradio")
    from guidon.studio.server import refused

    answer = refused(OSError(28, "No space left on device", "/secret"))
    assert answer.status_code == 507
    assert json.loads(answer.body) == {"error": "No space left on device: make room, or choose another folder"}


def test_what_gradio_would_serve_is_refused_over_the_wire(running):
    for path in ("/config", "/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/../../etc/passwd", "/theme.css"):
        assert Browser(running).ask(path)[0] == 404
        assert Browser(running).ask(path, b"{}")[0] == 404
    assert Browser(running).ask("/", headers={"Host": "evil.example"})[0] == 421
    assert Browser(running).ask("/api/compare", b"x" * (1 << 17))[0] == 413


def test_an_output_runs_in_an_origin_of_its_own(browser, asked):
    job = browser.json("/api/study", {"comparison": asked, "prompts": 2})[1]
    done = browser.ended(job["id"])
    assert done["state"] == "done", done
    status, answer, content = browser.ask(f"/api/output/{done['result']['report']}")
    assert status == 200
    assert answer.getheader("Content-Security-Policy").startswith("sandbox allow-scripts")
    assert b"<html" in content
    strip = browser.json("/api/hello")[1]["example"]["settings"][0]["clips"][0]
    for format, kind in ((None, "image/png"), ("mp4", "video/mp4"), ("gif", "image/gif")):
        status, answer, content = browser.ask(f"/api/output/{strip}" + (f"/{format}" if format else ""))
        assert (status, answer.getheader("Content-Type")) == (200, kind)
        assert (format is None) == answer.getheader("Content-Disposition").startswith("inline")


def test_nothing_was_asked_of_another_machine(running, asked_of_others):
    assert asked_of_others == []


def test_a_studio_that_is_killed_at_work_starts_again_clean(tiny_model, tmp_path):
    port = free_port()
    words = ["studio", "--no-browser", "--device", "cpu", "--port", str(port), "--model", str(tiny_model)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def started():
        process = subprocess.Popen([sys.executable, "-m", "guidon", *words], env=environment, cwd=tmp_path)
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                if Browser(port).ask("/")[0] == 200:
                    return process
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the studio did not start")

    first = started()
    one = Browser(port)
    one.json("/api/hello")
    body = {"model": str(tiny_model), "prompt": PROMPT, "settings": [setting(steps=1000)]}
    assert one.json("/api/compare", body)[0] == 200
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = started()
    try:
        status, hello = one.json("/api/hello")
        assert (status, hello["runs"]) == (200, [])
        assert one.ended(one.json("/api/compare", body | {"settings": [setting()]})[1]["id"])["state"] == "done"
        assert len(list(tmp_path.glob(".guidon-studio.*"))) == 1
    finally:
        second.send_signal(signal.SIGINT)
        assert second.wait(60) == 130
    assert list(tmp_path.glob(".guidon-studio.*")) == []


def test_a_space_is_open_to_everybody_under_its_own_name(tmp_path):
    port = free_port()
    environment = os.environ | {"SPACE_HOST": "owner-guidon.hf.space", "PORT": str(port), "TMPDIR": str(tmp_path)}
    app = Path(__file__).parents[2] / "integrations" / "space" / "app.py"
    process = subprocess.Popen([sys.executable, str(app)], env=environment, cwd=tmp_path)
    one, host = Browser(port), {"Host": "owner-guidon.hf.space"}
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                status, answer, _ = one.ask("/", headers=host)
                break
            except OSError:
                time.sleep(0.1)
        assert status == 200
        assert "frame-ancestors *" in answer.getheader("Content-Security-Policy")
        _, answer, content = one.ask("/api/hello", headers=host)
        assert json.loads(content)["example"]["settings"]
        assert answer.getheader("Set-Cookie").endswith("HttpOnly; SameSite=None; Secure; Partitioned")
        assert one.ask("/", headers={"Host": "other.hf.space"})[0] == 421
    finally:
        process.kill()
        process.wait()
