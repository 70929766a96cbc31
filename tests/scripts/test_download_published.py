"""download_published against a local server: a file appears only if it is complete and has the right checksum."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli import UserError
from scripts import download_published
from scripts.download_published import PUBLISHED, Published, fetch_all, main
from tests.fixtures.commands import call_main

CONTENT = {"one": b"first checkpoint" * 10_000, "two": b"second checkpoint" * 5_000}
WANTED = [
    Published("one", "some/place/one", hashlib.sha256(CONTENT["one"]).hexdigest()),
    Published("two", "some/place/two", "c33f10c83d606ffa630bf716ee89ecf13a157155"),  # git hash-object two
]

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def send(handler: BaseHTTPRequestHandler, body: bytes, length: int | None = None) -> None:
    handler.send_response(200)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(body)


def complete(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body, len(body))


def cut_off(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body[: len(body) // 2], len(body))


def another_file(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    complete(handler, b"x" + body[1:])


def stalled(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Send half, then nothing until the client hangs up."""
    cut_off(handler, body)
    handler.rfile.read(1)


class Server(ThreadingHTTPServer):
    """Serves `CONTENT` under /mirror/some/place. `answers` maps a name to how it is sent, `requested` lists names."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requested: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                folder, _, name = self.path.rpartition("/")
                server.requested.append(name)
                if folder == "/mirror/some/place" and name in CONTENT:
                    server.answers.get(name, complete)(self, CONTENT[name])
                else:
                    self.send_error(404, "Not Found")

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/mirror"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_downloaded_unless_they_are_there(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new/folder"
    for kept in (b"", CONTENT["two"][:-1]):  # correct files are kept, wrong ones replaced
        if kept:
            (folder / "two").write_bytes(kept)
        assert fetch_all(WANTED, folder, server.url + "/") == 0
        assert contents(folder) == CONTENT
    assert server.requested == ["one", "two", "two"]
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()] == 2 * [f"{folder}/{name}" for name in CONTENT]
    assert "one:" in err  # the progress bar


@pytest.mark.parametrize(
    ("name", "answer", "keyword"),
    [
        ("one", cut_off, "80000 of 160000 bytes"),
        ("one", stalled, "timed out"),
        ("one", another_file, "SHA-256"),
        ("two", another_file, "git blob id"),
    ],
)
def test_a_failed_download_leaves_nothing_and_the_others_are_done(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    answer: Answer,
    keyword: str,
) -> None:
    monkeypatch.setattr(download_published, "TIMEOUT_SECONDS", 0.5)
    server.answers[name] = answer
    for old in ({}, {name: b"previous content"}):
        for file, content in old.items():
            (tmp_path / file).write_bytes(content)
        assert fetch_all(WANTED, tmp_path, server.url, quiet=True) == 1
        others = {file: content for file, content in CONTENT.items() if file != name}
        assert contents(tmp_path) == others | old
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{server.url}/some/place/{name} " in line and keyword in line


def test_an_output_path_that_cannot_be_written(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    assert fetch_all(WANTED[:1], tmp_path, server.url, quiet=True) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'one'}: ") and "--output_dir" in line
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


RAW = "https://raw.githubusercontent.com"
FIRST = f"{RAW}/XinxXinTang/IMSE/f7bd387/paper_result/g_best_pesq_3.373"
SECOND = f"{RAW}/XinxXinTang/IMSE/main/paper_result/g_best_pesq_3.399"
MPSENET = f"{RAW}/yxlu-0102/MP-SENet/main/best_ckpt/g_best_vb"


@pytest.mark.parametrize(
    ("names", "urls"),
    [([], [FIRST, SECOND]), (["g_best_vb", "g_best_pesq_3.399"], [MPSENET, SECOND])],
)
def test_names_select_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], urls: list[str]
) -> None:
    asked: list[str] = []

    def refuse(url: str, name: str, quiet: bool) -> bytes:
        asked.append(url)
        raise UserError(f"{name} {quiet}")

    monkeypatch.setattr(download_published, "download", refuse)
    assert call_main(main, *names, "--output_dir", tmp_path).returncode == 1
    assert asked == urls


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "file:///missing"])
def test_an_address_that_cannot_be_reached(tmp_path: Path, url: str) -> None:
    done = call_main(main, "--base_url", url, "--output_dir", tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "--base_url" in line]
    assert [published.name in line for published, line in zip(PUBLISHED, lines, strict=True)] == [True, True]


@pytest.mark.parametrize(("arguments", "keyword"), [(["g_best"], "g_best"), (["--base_url", "x.org"], "--base_url")])
def test_an_invalid_command_line_exits_with_2(tmp_path: Path, arguments: list[str], keyword: str) -> None:
    done = call_main(main, *arguments, "--output_dir", tmp_path / "out")
    assert (done.returncode, keyword in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
