"""Download the checkpoints that the authors of IMSE released, and verify them by their SHA-256.

    python -m scripts.download_published [NAME …] [--output_dir checkpoints/published] [--base_url URL]

NAME is g_best_pesq_3.373 or g_best_pesq_3.399; default: both. A file is written only if its checksum is correct; a
correct file that exists is kept, a wrong one replaced. Exit codes: 0 all present; 1 some downloads failed (each named
on standard error, the others done); 2 invalid command line.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tqdm import tqdm

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, run
from utils.atomic import atomic_open

RELEASE_URL = "https://raw.githubusercontent.com/XinxXinTang/IMSE"
OUTPUT_DIR = Path(__file__).resolve().parents[1] / "checkpoints" / "published"
TIMEOUT_SECONDS = 30.0
"""Longest silence of the server."""


class Published(NamedTuple):
    """A released file: name, path below the URL of the repository, SHA-256."""

    name: str
    path: str
    sha256: str


PUBLISHED = (
    # Replaced in the release by the second one, hence the earlier commit.
    Published(
        "g_best_pesq_3.373",
        "f7bd387/paper_result/g_best_pesq_3.373",
        "575de13bd5ee1451d52c99f01ee954c5275b86d48439c71807737e82760988d7",
    ),
    Published(
        "g_best_pesq_3.399",
        "main/paper_result/g_best_pesq_3.399",
        "c8e21c89fba61c2ac168ad5a9d50a3861ae2640bab3036eacbeb023d00dc07a1",
    ),
)


def fetch(published: Published, output_dir: Path, base_url: str, quiet: bool = False) -> bool:
    """Download one file unless it exists; return whether it was downloaded. Raises `UserError`."""
    path = output_dir / published.name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256:
        return False
    url = f"{base_url.rstrip('/')}/{published.path}"
    content = download(url, published.name, quiet)
    digest = hashlib.sha256(content).hexdigest()
    if digest != published.sha256:
        raise UserError(
            f"{path}: not downloaded: {url} is not the released file (SHA-256 {digest[:12]}… instead of "
            f"{published.sha256[:12]}…); open it in a browser or try another --base_url"
        )
    try:
        with atomic_open(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; try another --output_dir") from error
    return True


def download(url: str, name: str, quiet: bool) -> bytes:
    """Return the content of `url`, some megabytes. Raises `UserError` if it is not received completely."""
    content = bytearray()
    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
            with tqdm(desc=name, total=total, unit="B", unit_scale=True, disable=quiet) as bar:
                while chunk := response.read(65_536):
                    content += chunk
                    bar.update(len(chunk))
    except HTTPError as error:
        raise UserError(f"{name}: {url} answered {error.code} {error.reason}; try another --base_url") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        message = f"{name}: {url} failed after {len(content)} bytes ({reason}); check the network or --base_url"
        raise UserError(message) from error
    if total is not None and len(content) < total:
        raise UserError(f"{name}: {url} ended after {len(content)} of {total} bytes; try again")
    return bytes(content)


def fetch_all(wanted: Sequence[Published], output_dir: Path, base_url: str, quiet: bool = False) -> int:
    """Download all files and return the exit code; report failures on standard error and continue."""
    code = DONE
    for published in wanted:
        try:
            fetched = fetch(published, output_dir, base_url, quiet)
        except UserError as error:
            print(error, file=sys.stderr)
            code = SOME_FAILED
        else:
            print(f"{output_dir / published.name}: {'downloaded' if fetched else 'exists'}, SHA-256 correct")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Download the released checkpoints of IMSE.")
    known = {published.name: published for published in PUBLISHED}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(known)}; default: both")
    parser.add_argument("--output_dir", type=Path, default=OUTPUT_DIR, help="default: checkpoints/published")
    parser.add_argument("--base_url", default=RELEASE_URL, help="a copy of the repository; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"NAME: unknown checkpoint {', '.join(unknown)}; choose from {', '.join(known)}")
    if not args.base_url.startswith(("https://", "http://", "file://")):
        parser.error(f"--base_url {args.base_url}: should begin with https://, http:// or file://")
    return fetch_all([known[name] for name in args.names or known], args.output_dir, args.base_url, args.quiet)


if __name__ == "__main__":
    run(main)
