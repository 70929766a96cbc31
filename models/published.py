"""The authors' released checkpoints: their tensor names and config.json, translated to this project's.

A released checkpoint is a `torch.save` of `{"generator": state_dict}`. Some of its tensors have no effect on the
output and are left out: the fusion of a single path (a softmax over one entry), the decoders' rows that a strided
convolution skips, and biases before an InstanceNorm. `tests/models/test_published.py` proves it on the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_STAGES = {
    "encoder_level1": "encoder_level1",
    "encoder_level2": "encoder_level2",
    "latent": "bottleneck",
    "decoder_level2": "decoder_level2",
    "decoder_level1": "decoder_level1",
    "mag_refinement": "mag_refinement",
    "pha_refinement": "pha_refinement",
}

# Applied in this order to the names in which the published stages are already ours.
_RENAMES = (
    (r"^dense_encoder\.dense_conv_1\.", "dense_encoder.widen."),
    (r"^dense_encoder\.dense_conv_2\.", "dense_encoder.halve."),
    (r"\.dense_block\.dense_block\.", ".dense_block.layers."),
    (r"^mask_decoder\.mask_conv\.0\.", "magnitude_decoder.double_bins.spread."),
    (r"^mask_decoder\.mask_conv\.2\.", "magnitude_decoder.double_bins.smooth."),
    (r"^mask_decoder\.mask_conv\.([345])\.", lambda m: f"magnitude_decoder.squeeze.{int(m[1]) - 3}."),
    (r"^mask_decoder\.mask_conv\.6\.", "magnitude_decoder.rescale."),
    (r"^mask_decoder\.lsigmoid\.", "magnitude_decoder."),
    (r"^mask_decoder\.", "magnitude_decoder."),
    (r"^phase_decoder\.phase_conv\.0\.", "phase_decoder.double_bins.spread."),
    (r"^phase_decoder\.phase_conv\.2\.", "phase_decoder.double_bins.smooth."),
    (r"^phase_decoder\.phase_conv\.3\.", "phase_decoder.norm."),
    (r"^phase_decoder\.phase_conv\.4\.", "phase_decoder.act."),
    (r"^phase_decoder\.phase_conv_r\.", "phase_decoder.real."),
    (r"^phase_decoder\.phase_conv_i\.", "phase_decoder.imaginary."),
    (r"^TCFTransformer\.(mag|pha)_patch_embed_refinement\.", r"TCFTransformer.patch_embed_\1_refinement."),
    (
        r"^TCFTransformer\.patch_embed_(\w+)\.patch_embeds\.0\.patch_conv\.",
        lambda m: f"unet.{_STAGES.get(m[1], m[1])}.local.",
    ),
    (
        r"^TCFTransformer\.(\w+)\.mhca_blks\.0\.transformer_layers\.",
        lambda m: f"unet.{_STAGES.get(m[1], m[1])}.blocks.",
    ),
    (r"\.pwconv\.", ".mix."),
    (r"\.dwconv_hw\.", ".square."),
    (r"\.dwconv_w\.", ".along_frequency."),
    (r"\.dwconv_h\.", ".along_time."),
    (r"\.offset_generator\.", ".offsets."),
    (r"\.dcn\.", ".deformable."),
    (r"\.norm1\.body\.", ".attention_norm."),
    (r"\.norm2\.body\.", ".feed_forward_norm."),
    (r"\.mala\.lepe\.", ".attention.local."),
    (r"\.mala\.proj\.", ".attention.project."),
    (r"\.attn\.sca\.1\.", ".attention.channel_path."),
    (r"\.attn\.dwconv\.", ".attention.spatial_path."),
    (r"\.attn\.refine_att\.conv_list\.", ".attention.refinement.convs."),
    (r"\.attn\.project_out\.", ".attention.project."),
    (r"\.attn\.temperature$", ".attention.temperature"),
    (r"\.ffn\.project_out\.", ".feed_forward.project."),
    (r"^TCFTransformer\.(down|up)(\d_)(\d)\.body\.0\.", r"unet.\1_\2\3.depthwise."),
    (r"^TCFTransformer\.(down|up)(\d_)(\d)\.body\.1\.", r"unet.\1_\2\3.pointwise."),
    (r"^TCFTransformer\.reduce_chan_level(\d)\.0\.", r"unet.reduce_level\1."),
    (r"^TCFTransformer\.(mag|pha)_output\.0\.", r"unet.\1_output."),
)

_WITHOUT_EFFECT = re.compile(
    r"\.aggregate\."  # fusion of one path
    r"|\.rope\.angle$"  # a constant, computed here
    r"|\.dense_conv_[12]\.0\.bias$|\.dense_block\.\d\.0\.bias$|\.mask_conv\.3\.bias$"  # before an InstanceNorm
)

# One published tensor, several of ours: equal parts of its first axis, in this order.
_SPLITS = {
    ".mala.qkvo.": tuple(f".attention.{part}." for part in ("query", "key", "value", "gate")),
    ".attn.qkv.": tuple(f".attention.{part}.0." for part in ("query", "key", "value")),
    ".attn.qkv_dwconv.": tuple(f".attention.{part}.1." for part in ("query", "key", "value")),
    ".ffn.project_in.": (".feed_forward.gate.0.", ".feed_forward.value.0."),
    ".ffn.dwconv.": (".feed_forward.gate.1.", ".feed_forward.value.1."),
}


def published_network(names: Mapping[str, Any]) -> str | None:
    """Which network's tensor names, as released, these are: "imse", "muse" or neither; their attentions tell."""
    marks = {"imse": ".mala.qkvo.", "muse": ".attn.refine_att."}
    return next((network for network, mark in marks.items() if any(mark in name for name in names)), None)


def translate_published(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `models.imse.IMSE` or `models.muse.MUSE` that computes what the released one does.

    Names that are not a released checkpoint's pass through unchanged, for the loader to name.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if _WITHOUT_EFFECT.search(name):
            continue
        whole, parts = next(((old, new) for old, new in _SPLITS.items() if old in name), ("", ()))
        if parts and tensor.ndim:
            for part, rows in zip(parts, tensor.chunk(len(parts)), strict=False):
                ours[_rename(name.replace(whole, part))] = rows
        else:
            ours[_rename(name)] = _reorder(name, tensor)
    return ours


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _reorder(name: str, tensor: Tensor) -> Tensor:
    """Bring a published tensor into the shape that our module of the same purpose has."""
    if name.endswith(("mask_conv.0.weight", "phase_conv.0.weight")) and tensor.ndim == 4 and len(tensor) % 4 == 0:
        # Rows are (channel, row, bin) of each 2×2 patch; the second row is never read. Ours: (bin, channel).
        return tensor.unflatten(0, (-1, 2, 2))[:, 0].transpose(0, 1).flatten(0, 1)
    if name.endswith(".body.weight") and tensor.ndim == 1:
        return tensor[:, None, None]
    if name.endswith(".attn.temperature"):
        return tensor.flatten()
    return tensor


def config_sections(flat: Mapping[str, Any], paper: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The flat config.json beside a released checkpoint, as this project's sections.

    `paper` is the content of the network's configuration in configs/, which gives what the flat form does not say:
    loss weights, epochs, validation interval. Keys of the flat form without a meaning here (workers, devices) are
    left out.
    """
    places = {
        "dense_channel": ("model", "channels"),
        "beta": ("model", "beta"),
        "compress_factor": ("stft", "compress_factor"),
        "n_fft": ("stft", "n_fft"),
        "hop_size": ("stft", "hop_size"),
        "win_size": ("stft", "win_size"),
        "sampling_rate": ("data", "sampling_rate"),
        "segment_size": ("data", "segment_size"),
        "learning_rate": ("optim", "learning_rate"),
        "adam_b1": ("optim", "adam_b1"),
        "adam_b2": ("optim", "adam_b2"),
        "lr_decay": ("optim", "lr_decay"),
        "batch_size": ("train", "batch_size"),
        "seed": ("train", "seed"),
    }
    sections = {name: dict(section) for name, section in paper.items()}
    for key, (section, name) in places.items():
        if key in flat:
            sections[section][name] = flat[key]
    return sections
