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
from tests.fixtures.commands import call_main, run_module

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


def without_length(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body)


def cut_off(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body[: len(body) // 2], len(body))


def cut_off_in_a_chunk(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(f"{len(body):x}\r\n".encode() + body[:100])
    handler.close_connection = True


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


@pytest.mark.parametrize("answer", [complete, without_length])
def test_files_are_downloaded(
    server: Server, tmp_path: Path, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = dict.fromkeys(CONTENT, answer)
    assert fetch_all(WANTED, tmp_path / "new/folder", server.url + "/") == 0
    assert contents(tmp_path / "new/folder") == CONTENT
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()] == [
        f"{tmp_path}/new/folder/{name}" for name in CONTENT
    ]
    assert "one:" in err  # the progress bar


def test_a_correct_file_is_kept_and_a_wrong_one_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(CONTENT["one"])
    (tmp_path / "two").write_bytes(CONTENT["two"][:-1])
    assert fetch_all(WANTED, tmp_path, server.url, quiet=True) == 0
    assert server.requested == ["two"]
    assert contents(tmp_path) == CONTENT


@pytest.mark.parametrize(
    ("answer", "keyword"),
    [
        (cut_off, "80000 of 160000 bytes"),
        (cut_off_in_a_chunk, "failed"),
        (stalled, "timed out"),
        (another_file, "SHA-256"),
    ],
)
def test_a_failed_download_leaves_nothing_and_the_others_are_done(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    keyword: str,
) -> None:
    monkeypatch.setattr(download_published, "TIMEOUT_SECONDS", 0.5)
    server.answers["one"] = answer
    for old in ({}, {"one": b"previous content"}):
        for name, content in old.items():
            (tmp_path / name).write_bytes(content)
        assert fetch_all(WANTED, tmp_path, server.url, quiet=True) == 1
        assert contents(tmp_path) == {"two": CONTENT["two"], **old}
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{server.url}/some/place/one " in line and keyword in line


def test_a_wrong_git_blob_id(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hello = Published("hello", "hello", "ce013625030ba8dba906f756967f9e9ca394464a")
    assert hello.checksum_of(b"hello\n") == hello.checksum
    server.answers["two"] = another_file
    assert fetch_all(WANTED, tmp_path, server.url, quiet=True) == 1
    assert contents(tmp_path) == {"one": CONTENT["one"]}
    out, err = capsys.readouterr()
    assert "one: downloaded, SHA-256 correct" in out
    assert err.count("\n") == 1 and "git blob id" in err and "instead of c33f10c83d60…" in err


def test_each_file_comes_from_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(url: str, name: str, quiet: bool) -> bytes:
        asked.append(url)
        raise UserError(f"{name} {quiet}")

    monkeypatch.setattr(download_published, "download", refuse)
    names = "g_best_pesq_3.399", "g_best_vb", "g_best_dns"
    assert call_main(main, *names, "--output_dir", tmp_path).returncode == 1
    raw = "https://raw.githubusercontent.com"
    mpsenet = [f"{raw}/yxlu-0102/MP-SENet/main/best_ckpt/{name}" for name in names[1:]]
    assert asked == [f"{raw}/XinxXinTang/IMSE/main/paper_result/g_best_pesq_3.399", *mpsenet]


@pytest.mark.parametrize("kind", ["a file instead of the folder", "a folder instead of the file"])
def test_an_output_path_that_cannot_be_written(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    out = tmp_path / "out"
    out.touch() if kind.startswith("a file") else (out / "one").mkdir(parents=True)
    assert fetch_all(WANTED[:1], out, server.url, quiet=True) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{out / 'one'}: ") and "--output_dir" in line
    assert out.is_file() or [path.name for path in out.iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("names", "requested"),
    [
        ([], ["g_best_pesq_3.373", "g_best_pesq_3.399"]),
        (["g_best_pesq_3.399"], ["g_best_pesq_3.399"]),
        (["g_best_dns", "g_best_vb"], ["g_best_dns", "g_best_vb"]),
    ],
)
def test_names_select_the_files(server: Server, tmp_path: Path, names: list[str], requested: list[str]) -> None:
    done = call_main(main, *names, "--quiet", "--base_url", server.url, "--output_dir", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert ["404" in line for line in done.stderr.splitlines()] == [True] * len(requested)
    assert server.requested == requested
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1", "file:///missing"])
def test_an_address_that_cannot_be_reached(tmp_path: Path, url: str) -> None:
    done = call_main(main, "--base_url", url, "--output_dir", tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "--base_url" in line]
    assert [published.name in line for published, line in zip(PUBLISHED, lines, strict=True)] == [True, True]


@pytest.mark.parametrize(("arguments", "keyword"), [(["g_best"], "g_best"), (["--base_url", "x.org"], "--base_url")])
def test_an_invalid_command_line_exits_with_2(tmp_path: Path, arguments: list[str], keyword: str) -> None:
    done = run_module("scripts.download_published", *arguments, "--output_dir", tmp_path / "out", cwd=tmp_path)
    assert (done.returncode, keyword in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
