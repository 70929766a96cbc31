"""Download the checkpoints that the authors of IMSE and MP-SENet released, and verify their checksums.

    python -m scripts.download_published [NAME …] [--output_dir checkpoints/published] [--base_url URL]

NAME is g_best_pesq_3.373 or g_best_pesq_3.399 of IMSE, by default both, or g_best_vb or g_best_dns of MP-SENet. A file
is written only if its checksum is correct; a correct file that exists is kept, a wrong one replaced. Exit codes: 0 all
present; 1 some downloads failed (each named on standard error, the others done); 2 invalid command line.
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
MPSENET_URL = "https://raw.githubusercontent.com/yxlu-0102/MP-SENet"
OUTPUT_DIR = Path(__file__).resolve().parents[1] / "checkpoints" / "published"
TIMEOUT_SECONDS = 30.0
"""Longest silence of the server."""


class Published(NamedTuple):
    """A released file.

    name: of the file here.
    path: below the URL of the repository.
    checksum: hexadecimal SHA-256, or the file's git blob id.
    release_url: of the repository.
    """

    name: str
    path: str
    checksum: str
    release_url: str = RELEASE_URL

    @property
    def algorithm(self) -> str:
        """Return the kind of checksum, which follows from its length."""
        return "SHA-256" if len(self.checksum) == 64 else "git blob id"

    def checksum_of(self, content: bytes) -> str:
        """Compute the checksum of a file's content; a git blob id is what `git hash-object FILE` prints."""
        if self.algorithm == "SHA-256":
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


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
"""The released checkpoints of IMSE."""

PUBLISHED_MPSENET = (
    Published("g_best_vb", "main/best_ckpt/g_best_vb", "cb01711c8e930352b843f692dadae49a7f5718f7", MPSENET_URL),
    Published("g_best_dns", "main/best_ckpt/g_best_dns", "44bd3cc8ada147d47a07e36e25e9d6dd2ee7e72a", MPSENET_URL),
)
"""The released checkpoints of MP-SENet, trained on VoiceBank+DEMAND and on the mixtures of the DNS Challenge 2020."""


def fetch(published: Published, output_dir: Path, base_url: str | None = None, quiet: bool = False) -> bool:
    """Download one file unless it exists; return whether it was downloaded. Raises `UserError`.

    `base_url` is a copy of the repository, by default the repository itself.
    """
    path = output_dir / published.name
    if path.is_file() and published.checksum_of(path.read_bytes()) == published.checksum:
        return False
    url = f"{(base_url or published.release_url).rstrip('/')}/{published.path}"
    content = download(url, published.name, quiet)
    checksum = published.checksum_of(content)
    if checksum != published.checksum:
        raise UserError(
            f"{path}: not downloaded: {url} is not the released file ({published.algorithm} {checksum[:12]}… instead "
            f"of {published.checksum[:12]}…); open it in a browser or try another --base_url"
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


def fetch_all(wanted: Sequence[Published], output_dir: Path, base_url: str | None, quiet: bool = False) -> int:
    """Download all files and return the exit code; report failures on standard error and continue."""
    code = DONE
    for published in wanted:
        try:
            fetched = fetch(published, output_dir, base_url, quiet)
        except UserError as error:
            print(error, file=sys.stderr)
            code = SOME_FAILED
        else:
            state = "downloaded" if fetched else "exists"
            print(f"{output_dir / published.name}: {state}, {published.algorithm} correct")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Download the released checkpoints of IMSE or MP-SENet.")
    known = {published.name: published for published in (*PUBLISHED, *PUBLISHED_MPSENET)}
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(known)}; default: the first two, of IMSE")
    parser.add_argument("--output_dir", type=Path, default=OUTPUT_DIR, help="default: checkpoints/published")
    parser.add_argument("--base_url", metavar="URL", help="a copy of the repository; default: the authors'")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"NAME: unknown checkpoint {', '.join(unknown)}; choose from {', '.join(known)}")
    if args.base_url is not None and not args.base_url.startswith(("https://", "http://", "file://")):
        parser.error(f"--base_url {args.base_url}: should begin with https://, http:// or file://")
    wanted = [known[name] for name in args.names] or PUBLISHED
    return fetch_all(wanted, args.output_dir, args.base_url, args.quiet)


if __name__ == "__main__":
    run(main)
