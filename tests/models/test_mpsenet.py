"""MP-SENet: the released implementation's values, its plain transcription, checkpoints and batches."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config import MpsenetConfig, load_config
from models.checkpoint import load_checkpoint
from models.mpsenet import MPSENet, SelfAttention
from models.published import translate_published
from models.stft import Spectra
from tests.fixtures.commands import ROOT, error_line
from tests.models.spectra import random_spectra, wrapped
from tests.reference.mpsenet import ReferenceMPSENet, set_weights_by_rule

BINS = 201
FEW_BINS = 33

# Stored activation → module; of a transformer the output before the block adds its input.
ACTIVATIONS = {
    "encoder_widen": "dense_encoder.widen",
    "encoder_dense_block": "dense_encoder.dense_block",
    "dense_encoder": "dense_encoder",
    **{f"block{b}_{part}": f"blocks.{b}.{part}" for b in range(4) for part in ("first", "second")},
    **{f"block{b}": f"blocks.{b}" for b in range(4)},
    **{f"block0_{part}_attention": f"blocks.0.{part}.attention" for part in ("first", "second")},
    **{f"block0_{part}_ffn": f"blocks.0.{part}.feed_forward" for part in ("first", "second")},
    "mask_dense_block": "magnitude_decoder.dense_block",
    "mask_upsampled": "magnitude_decoder.double_bins",
    "mask_logit": "magnitude_decoder.squeeze",
    "mask": "magnitude_decoder",
    "phase_dense_block": "phase_decoder.dense_block",
    "phase_upsampled": "phase_decoder.double_bins",
    "phase_r": "phase_decoder.real",
    "phase_i": "phase_decoder.imaginary",
}
KEPT_CHANNELS = slice(None, None, 16)

BIAS_BEFORE_NORM = re.compile(r"dense_conv_[12]\.0\.bias$|dense_block\.\d\.1\.bias$")


@cache
def released_weights() -> dict[str, Tensor]:
    """Return weights made by rule, with the names and shapes of the release."""
    plain = ReferenceMPSENet()
    set_weights_by_rule(plain)
    return plain.state_dict()


def ruled_network(released_axes: bool) -> MPSENet:
    """Return the network with the weights made by rule, in float64."""
    network = MPSENet(MpsenetConfig("mpsenet", 64, 2.0, released_axes), BINS)
    network.load_state_dict(translate_published(released_weights()))
    return network.double().eval()


def as_map(output: Tensor, name: str, frames: int) -> Tensor:
    """Return an activation of one item as `[C, T, F]`."""
    if name.startswith("block"):  # [1, T, F, C], or sequences [T, F, C] or [F, T, C]
        output = output.squeeze(0)
        return (output if len(output) == frames else output.transpose(0, 1)).permute(2, 0, 1)
    return output[0] if output.ndim == 4 else output.transpose(1, 2)  # the mask, [B, F, T]


def test_translation_keeps_all_weights_with_effect() -> None:
    weights = released_weights()
    assert (len(weights), sum(tensor.numel() for tensor in weights.values())) == (247, 2_263_372)
    assert sum(tensor.double().sum().item() for tensor in weights.values()) == pytest.approx(3269.869, abs=1e-3)
    translated = translate_published(weights)
    dropped = [tensor for name, tensor in weights.items() if BIAS_BEFORE_NORM.search(name)]
    dropped += [tensor[64:128] for name, tensor in weights.items() if name.endswith("in_proj_bias")]  # of the keys
    assert sum(tensor.numel() for tensor in dropped) == 896 + 512
    squares = [sum(each.double().square().sum().item() for each in group) for group in (weights.values(), dropped)]
    kept = sum(tensor.double().square().sum().item() for tensor in translated.values())
    assert kept == pytest.approx(squares[0] - squares[1], rel=1e-9)


# Float32 of the release differs from float64 by 2e-6 in magnitude and 4e-5 in phase.
@pytest.mark.parametrize("released_axes", [True, False])
def test_released_activations_and_outputs(reference: Path, released_axes: bool) -> None:
    arrays = np.load(reference / "mpsenet" / "forward_T40.npz")
    stored = {key: torch.from_numpy(value).double() for key, value in arrays.items() if value.dtype == np.float32}
    network = ruled_network(released_axes)
    seen: dict[str, Tensor] = {}
    for name, module in ACTIVATIONS.items() if released_axes else ():
        hook = lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)  # noqa: E731
        network.get_submodule(module).register_forward_hook(hook)
    with torch.inference_mode():
        enhanced = network(Spectra(stored["mag"], stored["pha"]))
    suffix = "" if released_axes else "_batch_first"
    assert (enhanced.mag - stored[f"mag_out{suffix}"]).abs().max() < 5e-6
    assert wrapped(enhanced.pha - stored[f"pha_out{suffix}"]).max() < 1e-4

    statistics = zip(arrays["stat_names"], arrays["stat_mean"], arrays["stat_std"], strict=True)
    names = {key.removeprefix("act_") for key in stored if key.startswith("act_")}
    assert names == {str(name) for name in arrays["stat_names"]} == ACTIVATIONS.keys()
    for name, mean, std in statistics if released_axes else ():
        output, expected = as_map(seen[name], name, 40), stored[f"act_{name}"]
        assert output.mean().item() == pytest.approx(mean, abs=1e-5 * std), name
        assert output.std().item() == pytest.approx(std, rel=1e-5), name
        if expected.ndim == 4:
            output, expected = output[KEPT_CHANNELS], expected[0]
        else:  # [1, F, T]
            output = output.transpose(1, 2)
        assert (output - expected).abs().max() < 1e-5 * expected.abs().max(), name


# Means and standard deviations, and single values at (f, t), of the released implementation in float32.
def test_known_values_of_a_known_input() -> None:
    f, t = torch.arange(201.0, dtype=torch.float64)[:, None], torch.arange(40.0, dtype=torch.float64)
    mag, pha = (0.013 * f + 0.029 * t).sin().abs() + 0.1, 3 * (0.017 * f + 0.11 * t).sin()
    noisy = Spectra(*(part.float().double()[None] for part in (mag, pha)))
    network = ruled_network(True)
    moments: list[tuple[float, float]] = []

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        moments.append((output.mean().item(), output.std().item()))

    encoder = network.dense_encoder
    for part in (encoder.widen, encoder.dense_block, encoder.halve, *network.blocks, network.magnitude_decoder):
        part.register_forward_hook(keep)
    with torch.inference_mode():
        enhanced = network(noisy)
        exchanged = ruled_network(False)(noisy)
    expected = [(0.316933, 0.654332), (0.303271, 0.676545), (0.308653, 0.678669)]
    expected += [(0.296282, 2.468708), (0.300442, 4.435111), (0.265558, 6.441365), (0.227311, 8.447870)]
    expected += [(0.941033, 0.337899), (0.735402, 0.379385), (-0.824784, 1.889425)]
    expected += [(0.728339, 0.352203), (-0.762784, 1.884399)]
    found = [*moments, *((part.mean().item(), part.std().item()) for part in (*enhanced, *exchanged))]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    values = {(0, 0): (0.074767, 2.956123), (10, 20): (0.526453, -0.157544)}
    values |= {(100, 30): (0.294136, 0.117938), (200, 39): (0.241829, -1.271750)}
    for place, pair in values.items():
        assert [part[0][place].item() for part in enhanced] == pytest.approx(pair, abs=2e-6), place


def plain_network(batch_first: bool) -> tuple[ReferenceMPSENet, MPSENet]:
    """Return a small plain transcription, and this project's network with its weights; both in float64."""
    plain = ReferenceMPSENet(8, FEW_BINS, batch_first)
    set_weights_by_rule(plain)
    ours = MPSENet(MpsenetConfig("mpsenet", 8, 2.0, released_axes=not batch_first), FEW_BINS)
    ours.load_state_dict(translate_published(plain.state_dict()))
    return plain.double().eval(), ours.double().eval()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("frames", [1, 11])
def test_equals_plain_transcription(batch_first: bool, frames: int) -> None:
    plain, ours = plain_network(batch_first)
    noisy = random_spectra(3, frames, FEW_BINS)
    with torch.inference_mode():
        enhanced = ours(noisy)
        items = [plain(mag[None], pha[None]) for mag, pha in zip(*noisy, strict=True)]
        together = plain(*noisy)
    assert enhanced.mag.shape == enhanced.pha.shape == (3, FEW_BINS, frames)
    alone = Spectra(*(torch.cat(parts) for parts in zip(*items, strict=True)))
    assert torch.allclose(enhanced.mag, alone.mag, atol=1e-9)
    assert wrapped(enhanced.pha - alone.pha).max() < 1e-6
    # With the axes of the release, its attention and GRU run on from one item to the next.
    assert ((together[0] - alone.mag).abs().max() < 1e-9) == batch_first
    if frames > 1:
        with torch.inference_mode():
            assert (plain_network(not batch_first)[1](noisy).mag - enhanced.mag).abs().max() > 1e-3


def test_attention_is_initialised_as_pytorchs() -> None:
    torch.manual_seed(0)
    ours, plain = SelfAttention(64), nn.MultiheadAttention(64, 4)
    for part in (ours.query, ours.key, ours.value):
        assert part.weight.abs().max().item() == pytest.approx(plain.in_proj_weight.abs().max().item(), rel=1e-2)
    assert ours.project.weight.abs().max().item() == pytest.approx(1 / 8, rel=1e-2)
    for part in (ours.query, ours.value, ours.project):
        assert part.bias.eq(0).all()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Return a file as the authors release them, with narrow maps, and its flat config.json beside it."""
    plain, _ = plain_network(batch_first=False)
    path = tmp_path / "g_best"
    torch.save({"generator": plain.float().state_dict()}, path)
    content = {"dense_channel": 8, "n_fft": 64, "win_size": 64, "hop_size": 16, "num_tsconformers": 4, "batch_size": 4}
    path.with_name("config.json").write_text(json.dumps(content))
    return path


def test_a_released_file_has_the_released_configuration(published: Path) -> None:
    network, config = load_checkpoint(published)
    assert isinstance(config.model, MpsenetConfig)
    assert (config.model.channels, config.model.released_axes, config.stft.floors) == (8, True, True)
    assert (config.stft.bins, config.train.batch_size, config.loss.phase_inner) == (FEW_BINS, 4, 0.3)
    plain, _ = plain_network(batch_first=False)
    noisy = random_spectra(1, 5, FEW_BINS)
    with torch.inference_mode():
        assert torch.allclose(network.double()(noisy).mag, plain(*noisy)[0], atol=1e-9)

    # Which axes weights belong to cannot be told from their tensors: the configuration says so.
    flat = json.loads(published.with_name("config.json").read_text())
    published.with_name("config.json").write_text(json.dumps({**flat, "released_axes": False}))
    network, config = load_checkpoint(published)
    assert isinstance(config.model, MpsenetConfig) and not config.model.released_axes
    with torch.inference_mode():
        assert torch.allclose(network.double()(noisy).mag, plain_network(batch_first=True)[0](*noisy)[0], atol=1e-9)


def test_a_released_file_alone(tmp_path: Path) -> None:
    torch.save({"generator": released_weights()}, tmp_path / "g_best_vb")
    network, config = load_checkpoint(tmp_path / "g_best_vb")
    assert config == load_config(ROOT / "configs" / "mpsenet.json")
    expected = translate_published(released_weights())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_the_short_version_is_refused(tmp_path: Path) -> None:
    names = "dense_encoder.dense_conv_1.0.weight", "TSConformer.0.time_conformer.ffm1.ffm.0.weight"
    torch.save({"generator": {name: torch.zeros(2) for name in names}}, tmp_path / "g_best")
    path = tmp_path / "g_best"
    assert "g_best_vb" in error_line(lambda: load_checkpoint(path), start=f"{path}: the short version of MP-SENet")
