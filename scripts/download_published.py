"""Fetch the checkpoints that the authors of IMSE released, and check that they are the released ones.

    python -m scripts.download_published [NAME …] [--output_dir checkpoints/published] [--base_url URL]

The names are g_best_pesq_3.373 and g_best_pesq_3.399; without names both are fetched. A file appears only
when its SHA-256 is right; one that is there and right stays untouched, one that is there and wrong is
replaced when the right one has arrived. Exit codes: 0 all there; 1 some could not be fetched, each named on
standard error, the others are there; 2 the command line is wrong; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tqdm import tqdm

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, run
from utils.atomic import atomic_open

RELEASE_URL = "https://raw.githubusercontent.com/XinxXinTang/IMSE"
OUTPUT_DIR = Path(__file__).resolve().parents[1] / "checkpoints" / "published"
TIMEOUT_SECONDS = 30.0
"""How long a connection may say nothing."""
CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class Published:
    """A released file: its name, its path below the repository's URL, and the SHA-256 of its content."""

    name: str
    path: str
    sha256: str


PUBLISHED = (
    # The release replaced this one later: it stands in an earlier commit.
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
    """Fetch one file; returns False where it was there already.

    Raises `UserError`, and `OSError` where the file cannot be written.
    """
    path = output_dir / published.name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256:
        return False
    url = f"{base_url.rstrip('/')}/{published.path}"
    with open_url(url) as response, atomic_open(path) as file:
        digest = copy(response, file, url, published.name, quiet)
        if digest != published.sha256:
            raise UserError(
                f"what {url} gave is not the released file (its SHA-256 begins with {digest[:12]}, "
                f"not {published.sha256[:12]}); look at that address in a browser or try another --base_url"
            )
    return True


def open_url(url: str) -> HTTPResponse:
    """Open the connection; raises `UserError`."""
    try:
        return urlopen(url, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        raise UserError(f"{url} answered {error.code} {error.reason}; try another --base_url") from error
    except URLError as error:
        raise UserError(f"{url} is not reached ({error.reason}); check the network or --base_url") from error
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(f"{url} is not reached ({error}); check the network or --base_url") from error


def copy(response: HTTPResponse, file: BinaryIO, url: str, name: str, quiet: bool) -> str:
    """Copy what the server sends; returns its SHA-256 in hexadecimal.

    Raises `UserError` where it is cut off, and `OSError` where the file cannot be written.
    """
    length = response.headers.get("Content-Length", "")
    promised = int(length) if length.isdecimal() else None
    digest = hashlib.sha256()
    received = 0
    with tqdm(desc=name, total=promised, unit="B", unit_scale=True, disable=quiet) as bar:
        while chunk := read_chunk(response, url):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if promised is not None and received < promised:
        raise UserError(f"{url} broke off after {received} of {promised} bytes; run the command again")
    return digest.hexdigest()


def read_chunk(response: HTTPResponse, url: str) -> bytes:
    """The next bytes, none at the end; raises `UserError` where the connection breaks."""
    try:
        return response.read(CHUNK_BYTES)
    except (OSError, HTTPException) as error:
        raise UserError(f"{url} broke off ({error}); run the command again") from error


def fetch_all(wanted: Sequence[Published], output_dir: Path, base_url: str, quiet: bool = False) -> int:
    """Fetch every file, the others also when one fails; returns the exit code."""
    failed = False
    for published in wanted:
        path = output_dir / published.name
        try:
            fetched = fetch(published, output_dir, base_url, quiet)
        except UserError as error:
            print(f"{path}: not fetched: {error}", file=sys.stderr)
            failed = True
        except OSError as error:
            print(f"{path}: cannot be written: {error.strerror}; try another --output_dir", file=sys.stderr)
            failed = True
        else:
            print(f"{path}: {'fetched' if fetched else 'already there'}, SHA-256 is right")
    return SOME_FAILED if failed else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    parser = ArgumentParser(description="Fetch the checkpoints that the authors of IMSE released.")
    known = {published.name: published for published in PUBLISHED}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--output_dir", type=Path, default=OUTPUT_DIR, help="default: checkpoints/published")
    parser.add_argument("--base_url", default=RELEASE_URL, help="a copy of the repository; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"no such checkpoint: {', '.join(unknown)} (there are {', '.join(known)})")
    if not args.base_url.startswith(("https://", "http://", "file://")):
        parser.error(f"--base_url: {args.base_url} is not an address (https://…, http://…, file://…)")
    wanted = [known[name] for name in args.names or known]
    return fetch_all(wanted, args.output_dir, args.base_url, args.quiet)


if __name__ == "__main__":
    run(main)
