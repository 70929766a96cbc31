"""`torch.hub.load` from another folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import hubconf
from cli import UserError
from tests.fixtures.commands import ROOT, run_python

SCRIPT = """
import sys
import numpy as np
import torch

root, name, *checkpoint = sys.argv[1:]
enhancer = torch.hub.load(root, name, *checkpoint, source="local")
assert root not in sys.path
noisy = 0.1 * np.random.default_rng(0).standard_normal(3000)
enhanced = enhancer(noisy, 8000)
assert (enhanced.dtype, enhanced.shape) == (np.float64, (3000,)) and np.isfinite(enhanced).all() and enhanced.any()
print(type(enhancer.network).__name__, enhancer.training, enhancer.device, enhancer.sampling_rate)
if name == "live":
    from enhance.streaming import Stream

    stream, noisy = Stream(enhancer.network, enhancer.config), noisy.astype(np.float32)
    live = np.concatenate([stream.process(noisy), stream.flush()])
    with torch.inference_mode():
        whole = enhancer.enhance_batch(torch.from_numpy(noisy)[None])[0].numpy()
    assert np.abs(live - whole).max() < 1e-5
"""


def load(folder: Path, *arguments: object) -> str:
    (folder / "data").mkdir()  # a user's folder that is called like a package of the repository
    result = run_python("-c", SCRIPT, ROOT, *arguments, cwd=folder, environment={"TORCH_HOME": str(folder / "cache")})
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("imse", "IMSE"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("live", "ImseLive"), ("muse", "MUSE"))),
    ],
)
def test_networks(tmp_path: Path, name: str, network: str, request: pytest.FixtureRequest) -> None:
    checkpoint = [request.getfixturevalue("reference") / "muse" / "g_best"] if name == "muse" else []
    assert load(tmp_path, name, *checkpoint) == f"{network} False cpu 16000"


def test_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Path) -> None:
    monkeypatch.chdir(tmp_path)
    released = tmp_path / "release" / "f7bd387" / "paper_result" / "g_best_pesq_3.373"
    monkeypatch.setattr(hubconf, "OUTPUT_DIR", tmp_path / "published")
    monkeypatch.setattr(hubconf, "RELEASE_URL", (tmp_path / "release").as_uri())
    with pytest.raises(UserError, match=r"published/g_best_pesq_3\.373: .* cannot be downloaded"):
        hubconf.imse("g_best_pesq_3.373")
    released.parent.mkdir(parents=True)
    released.symlink_to(reference / "imse" / "g_best_pesq_3.373")
    assert type(hubconf.imse("g_best_pesq_3.373").network).__name__ == "IMSE"
    released.unlink()
    hubconf.imse("g_best_pesq_3.373")  # it is there now


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubconf, "OUTPUT_DIR", tmp_path)
    with pytest.raises(UserError, match="muse/g_best: no such file"):
        hubconf.muse()
    with pytest.raises(UserError, match="none"):
        hubconf.live(tmp_path / "none")
