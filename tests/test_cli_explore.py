"""The command ``xent-rs explore``: what it serves, and how it ends."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from xent_rs.cli import explore, main

COMMAND = [sys.executable, "-m", "xent_rs", "explore"]
FILES = sorted(path for path in explore.FOLDER.rglob("*") if path.is_file())
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
}


@contextlib.contextmanager
def serving(*arguments, **options):
    """Run the command; give the process, the address that it prints, and the line that follows."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"The page is at (http://\S+/) \(Ctrl-C ends this\)\.\n", line)
        assert found, line or process.stderr.read()
        yield process, found[1], process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def fetch(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read(), answer.headers


def end(process, number=signal.SIGINT):
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


def test_every_file_is_served_with_its_type():
    needed = {"index.html", "kernels.js", "kernels.wasm", "main.js", "style.css"}
    assert needed <= {file.name for file in FILES}
    with serving("--no-browser") as (process, url, where):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        assert where == f"Its files are in {explore.FOLDER}; any web server can serve them.\n"
        for file in FILES:
            body, headers = fetch(url + file.relative_to(explore.FOLDER).as_posix())
            assert body == file.read_bytes()
            assert headers["Content-Type"] == TYPES[file.suffix]
            assert headers["Cache-Control"] == "no-cache"
        body, headers = fetch(url)
        assert body == (explore.FOLDER / "index.html").read_bytes()
        assert headers["Content-Type"] == TYPES[".html"]
        assert end(process) == (0, "", "")


def test_nothing_outside_of_the_folder_is_served():
    with serving("--no-browser") as (_, url, _where):
        host = url.removeprefix("http://").rstrip("/")
        for path in (
            "/../__init__.py",
            "/%2e%2e/__init__.py",
            "/..%2f__init__.py",
            "//etc/passwd",
            "/missing.js",
        ):
            connection = http.client.HTTPConnection(host, timeout=20)
            connection.request("GET", path)  # as it is: urllib would tidy it
            assert connection.getresponse().status == 404, path
            connection.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_it_ends_quietly_in_the_middle_of_an_answer_and_with_a_connection_open():
    with serving("--no-browser") as (process, url, _):
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        idle = socket.create_connection((host, int(port)), timeout=20)
        rude = socket.create_connection((host, int(port)), timeout=20)
        rude.sendall(b"GET /kernels.wasm HTTP/1.0\r\n\r\n")
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        rude.close()
        fetch(url)
        assert end(process, signal.SIGTERM) == (143, "", "")
        idle.close()


def test_the_port_and_the_host_are_those_asked_for():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving("--no-browser", "--port", str(port), "--host", "localhost") as (_, url, _where):
        assert url in (f"http://127.0.0.1:{port}/", f"http://[::1]:{port}/")
        fetch(url)
    with serving("--no-browser", "--host", "0.0.0.0") as (_, url, _where):
        assert url.startswith("http://localhost:")
        fetch(url)


def test_a_port_that_is_taken_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "--no-browser", "--port", str(port)], capture_output=True, text=True, timeout=60
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        rf"xent-rs: error: cannot listen on 127\.0\.0\.1, port {port}: .*[Aa]ddress.*\n", done.stderr
    )


@pytest.mark.parametrize("port", ["-1", "65536", "http", "1.5", ""])
def test_a_port_that_is_none_is_wrong_usage(capsys, port):
    assert main(["explore", "--no-browser", f"--port={port}"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1] == (
        f"xent-rs explore: error: argument --port: {port!r} is no port; expected a number from 0 to 65535"
    )


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "x" * 300, "a..b"])
def test_a_host_that_is_not_this_machine_is_one_sentence(capsys, host):
    assert main(["explore", "--no-browser", "--host", host]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(rf"xent-rs: error: cannot listen on {re.escape(host)}, port 0: [^\n]+\n", errors)


@pytest.mark.skipif(os.name == "nt", reason="BROWSER names a command of the shell")
def test_the_browser_is_opened_with_the_address(tmp_path):
    note, browser = tmp_path / "note", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {note}.part && mv {note}.part {note}\n')
    browser.chmod(0o755)
    with serving(env={**os.environ, "BROWSER": str(browser)}) as (process, url, _):
        for _ in range(200):
            if note.exists():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
        assert note.read_text() == url
        assert end(process) == (0, "", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows always has a browser")
def test_without_a_browser_it_says_so_and_goes_on_serving(tmp_path):
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    with serving(env=environment) as (process, url, _):
        assert process.stderr.readline() == "There is no browser to open it in; open the address yourself.\n"
        fetch(url)
        assert end(process) == (0, "", "")


def test_it_is_a_static_site():
    """No file names another host, and the page runs no script and no style but its own files."""
    for file in FILES:
        if file.suffix in {".html", ".css", ".js"}:
            text = file.read_text(encoding="utf-8")
            hosts = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}  # names of SVG
            assert not hosts, file.name
            assert not re.search(r"\beval\(|new Function|innerHTML|document\.write", text), file.name
    page = (explore.FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", page)
    assert all(re.search(r"\ssrc=", tag) for tag in re.findall(r"<script[^>]*>", page))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self';")
    own = [file for file in FILES if not file.name.startswith("kernels.")]
    assert sum(file.stat().st_size for file in own) < 120_000
