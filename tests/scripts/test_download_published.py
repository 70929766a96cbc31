"""download_published.py against a server in a thread: nothing but a right file ever appears."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts.download_published import PUBLISHED, Published, fetch_all
from tests.fixtures.commands import run_module

SCRIPT = "scripts.download_published"
CONTENT = {"one": b"first checkpoint" * 10_000, "two": b"second checkpoint" * 5_000}
WANTED = [
    Published(name, f"some/place/{name}", hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()
]

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def send(handler: BaseHTTPRequestHandler, body: bytes, length: int | None = None) -> None:
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(body)


def whole(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body, len(body))


def without_length(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body)


def cut_off(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body[: len(body) // 2], len(body))


def cut_off_without_length(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body[: len(body) // 2])


def cut_off_in_a_chunk(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(f"{len(body):x}\r\n".encode() + body[:100])
    handler.close_connection = True


def another_file(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    whole(handler, b"x" + body[1:])


def not_found(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    del body
    handler.send_error(404, "Not Found")


def silence(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Close the connection without an answer."""
    del body
    handler.close_connection = True


def stalled(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Send half, then nothing until the other side hangs up."""
    send(handler, body[: len(body) // 2], len(body))
    handler.rfile.read(1)


class Server:
    """Serves `CONTENT` below some/place/; `answers` says how, by name, and `asked` who was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        parent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                place, _, name = self.path.rpartition("/")
                parent.asked.append(name)
                if place == "/mirror/some/place" and name in CONTENT:
                    parent.answers.get(name, whole)(self, CONTENT[name])
                else:
                    self.send_error(404, "Not Found")

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/mirror"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("answer", [whole, without_length])
def test_both_files_arrive(server: Server, tmp_path: Path, answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = dict.fromkeys(CONTENT, answer)
    assert fetch_all(WANTED, tmp_path / "new" / "folder", server.url + "/") == 0
    assert contents(tmp_path / "new" / "folder") == CONTENT
    out, err = capsys.readouterr()
    assert [line.rpartition(": ")[2] for line in out.splitlines()] == ["fetched, SHA-256 is right"] * 2
    assert "one:" in err  # the progress bar


def test_a_right_file_is_left_alone(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").write_bytes(CONTENT["one"])
    assert fetch_all(WANTED, tmp_path, server.url, quiet=True) == 0
    assert server.asked == ["two"]
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'one'}: already there, SHA-256 is right" in out.splitlines()
    assert err == ""


def test_a_wrong_file_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(CONTENT["one"][:-1])
    assert fetch_all(WANTED, tmp_path, server.url, quiet=True) == 0
    assert contents(tmp_path) == CONTENT


@pytest.mark.parametrize("old", [None, b"what was there before"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (cut_off, "broke off after 80000 of 160000 bytes"),
        (cut_off_in_a_chunk, "broke off"),
        (stalled, "timed out"),
        (cut_off_without_length, "is not the released file"),
        (another_file, "is not the released file"),
        (not_found, "answered 404 Not Found"),
        (silence, "is not reached"),
    ],
)
def test_a_bad_download_is_named_and_leaves_nothing_and_the_other_file_arrives(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    words: str,
    old: bytes | None,
) -> None:
    monkeypatch.setattr("scripts.download_published.TIMEOUT_SECONDS", 0.5)
    server.answers["one"] = answer
    if old is not None:
        (tmp_path / "one").write_bytes(old)
    assert fetch_all(WANTED, tmp_path, server.url, quiet=True) == 1
    assert contents(tmp_path) == {"two": CONTENT["two"], **({} if old is None else {"one": old})}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'one'}: not fetched: ")
    assert f"{server.url}/some/place/one " in lines[0]
    assert words in lines[0]


def test_a_folder_that_cannot_be_written_is_named(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert fetch_all(WANTED[:1], tmp_path / "file", server.url, quiet=True) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'file' / 'one'}: cannot be written: ")


def test_a_folder_in_the_place_of_the_file_is_named(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    assert fetch_all(WANTED[:1], tmp_path, server.url, quiet=True) == 1
    assert "Is a directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_the_command_asks_for_both_released_files_and_fails_on_others(server: Server, tmp_path: Path) -> None:
    done = run_module(SCRIPT, "--base_url", server.url, "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert server.asked == ["g_best_pesq_3.373", "g_best_pesq_3.399"]
    assert len(done.stderr.splitlines()) == 2
    assert done.stdout == ""
    assert not list(tmp_path.rglob("*best*"))


def test_the_command_fetches_what_is_named(server: Server, tmp_path: Path) -> None:
    name = "g_best_pesq_3.399"
    done = run_module(SCRIPT, name, "--quiet", "--base_url", server.url, "--output_dir", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert server.asked == [name]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1", "http://localhost:port", "file:///missing"])
def test_a_server_that_is_not_there_gets_one_line_a_file(tmp_path: Path, url: str) -> None:
    done = run_module(SCRIPT, "--base_url", url, "--output_dir", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [published.name in line for published, line in zip(PUBLISHED, lines, strict=True)] == [True, True]
    assert all("is not reached" in line and "--base_url" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["g_best"], "no such checkpoint: g_best"), (["--base_url", "x.org"], "--base_url: x.org")],
)
def test_a_wrong_command_line_is_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run_module(SCRIPT, *arguments, "--output_dir", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_released_files_are_the_known_ones() -> None:
    assert [(published.name, published.sha256[:8]) for published in PUBLISHED] == [
        ("g_best_pesq_3.373", "575de13b"),
        ("g_best_pesq_3.399", "c8e21c89"),
    ]
