"""Entry points for `torch.hub`: networks that are ready to enhance speech, without an installation.

    import torch

    enhancer = torch.hub.load("/path/to/this/repository", "imse", source="local")
    enhanced = enhancer(noisy, rate)  # NumPy or tensor, [N] or [channels, N]; or a list of them

Each returns an `enhance.enhancer.Enhancer` on the CPU in evaluation mode, which can be moved by `.to("cuda")`. With
`backend="openvino"` it stays on the CPU, takes its default protocol only, and is up to 1.6 times as fast there (more
with `torch.set_num_threads(1)` afterwards: PyTorch's threads wait busily).

`torch.hub` puts the repository on `sys.path` while it loads. A project with modules of the same names (`cli`, `config`,
`data`, `enhance`, `metrics`, `models`, `scripts`, `utils`) hides them, or they hide its own once they are loaded: it
should load this repository in another process.
"""

from __future__ import annotations

from pathlib import Path

import torch

from cli import UserError
from enhance.enhancer import Enhancer
from enhance.runtimes import fast_enhancer, load_network
from models.checkpoint import DEFAULT_CHECKPOINT, LIVE_CHECKPOINT
from scripts.download_published import OUTPUT_DIR, PUBLISHED, RELEASE_URL, fetch

dependencies = ["numpy", "pydantic", "safetensors", "soundfile", "soxr", "torch", "tqdm"]


def imse(checkpoint_file: str | Path | None = None, backend: str = "torch") -> Enhancer:
    """Load IMSE, by default with the weights that this project trained.

    checkpoint_file: a file, or the name of published weights, "g_best_pesq_3.373" or "g_best_pesq_3.399", which are
    downloaded to checkpoints/published unless they are there.
    backend: one of `enhance.runtimes.BACKENDS`; the networks below take it too.

    Raises `cli.UserError` if the file is not a checkpoint or cannot be downloaded.
    """
    path = Path(checkpoint_file or DEFAULT_CHECKPOINT)
    for published in PUBLISHED:
        if published.name == str(checkpoint_file) and not path.exists():
            path = OUTPUT_DIR / published.name
            try:
                fetch(published, OUTPUT_DIR, RELEASE_URL)
            except (UserError, OSError) as error:
                raise UserError(f"{path}: the published weights cannot be downloaded: {error}") from error
    return _load(path, backend)


def muse(checkpoint_file: str | Path | None = None, backend: str = "torch") -> Enhancer:
    """Load MUSE, from the weights that its authors published, or other ones.

    checkpoint_file: by default checkpoints/published/muse/g_best, which has to be put there: `g_best` of
    https://github.com/huaidanquede/MUSE-Speech-Enhancement.

    Raises `cli.UserError` if the file is missing or not a checkpoint.
    """
    path = Path(checkpoint_file or OUTPUT_DIR / "muse" / "g_best")
    if not path.exists():
        release = "https://github.com/huaidanquede/MUSE-Speech-Enhancement"
        raise UserError(f"{path}: no such file; download g_best of {release} or give checkpoint_file")
    return _load(path, backend)


def live(checkpoint_file: str | Path | None = None, backend: str = "torch") -> Enhancer:
    """Load a causal network, by default IMSE live with the weights that this project trained.

    It also enhances live:

        enhancer = torch.hub.load("/path/to/this/repository", "live", source="local")
        from enhance.runtimes import fast_stream  # found once the repository is loaded

        stream = fast_stream(enhancer.network, enhancer.config, backend="auto")  # PyTorch is too slow on a CPU

    Raises `cli.UserError` if `checkpoint_file` is not a checkpoint.
    """
    return _load(Path(checkpoint_file or LIVE_CHECKPOINT), backend)


def _load(path: Path, backend: str) -> Enhancer:
    network, config = load_network(path)
    if backend == "torch":
        return Enhancer(network, config).eval()
    threads = torch.get_num_threads()
    enhancer = fast_enhancer(network, config, backend=backend)
    torch.set_num_threads(threads)
    return enhancer.eval()
