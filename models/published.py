"""Translate the authors' released checkpoints of IMSE, MUSE and MP-SENet: tensor names and config.json.

A released checkpoint is a `torch.save` of `{"generator": state_dict}`. Tensors without effect on the output are left
out: the fusion of a single path (a softmax over one entry), the decoders' rows that a strided convolution skips, biases
before an InstanceNorm, and biases of softmax attention's keys. `tests/models/test_published.py` and `test_mpsenet.py`
prove this on the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

# One released tensor, several of ours: equal parts of its first axis, in this order.
_SPLITS = {
    ".attention.in_proj_": tuple(f".attention.{part}." for part in ("query", "key", "value")),
    ".mala.qkvo.": tuple(f".attention.{part}." for part in ("query", "key", "value", "output_gate")),
    ".attn.qkv.": tuple(f".attention.{part}.0." for part in ("query", "key", "value")),
    ".attn.qkv_dwconv.": tuple(f".attention.{part}.1." for part in ("query", "key", "value")),
    ".ffn.project_in.": (".feed_forward.gate.0.", ".feed_forward.value.0."),
    ".ffn.dwconv.": (".feed_forward.gate.1.", ".feed_forward.value.1."),
}

# Applied in this order.
_RENAMES = (
    (r"^dense_encoder\.dense_conv_1\.", "dense_encoder.widen."),
    (r"^dense_encoder\.dense_conv_2\.", "dense_encoder.halve."),
    (r"\.dense_block\.dense_block\.", ".dense_block.layers."),
    (r"^mask_decoder\.", "magnitude_decoder."),
    (r"_decoder\.(mask|phase)_conv\.0\.", "_decoder.double_bins.spread."),
    (r"_decoder\.(mask|phase)_conv\.2\.", "_decoder.double_bins.smooth."),
    (r"\.mask_conv\.([345])\.", lambda match: f".squeeze.{int(match[1]) - 3}."),
    (r"\.mask_conv\.6\.", ".rescale."),
    (r"\.lsigmoid\.", "."),
    (r"\.phase_conv\.3\.", ".norm."),
    (r"\.phase_conv\.4\.", ".act."),
    (r"\.phase_conv_r\.", ".real."),
    (r"\.phase_conv_i\.", ".imaginary."),
    (r"^TCFTransformer\.(mag|pha)_patch_embed_refinement\.", r"TCFTransformer.patch_embed_\1_refinement."),
    (r"^TCFTransformer\.patch_embed_(\w+)\.patch_embeds\.0\.patch_conv\.", r"unet.\1.local."),
    (r"^TCFTransformer\.(\w+)\.mhca_blks\.0\.transformer_layers\.", r"unet.\1.blocks."),
    (r"^unet\.latent\.", "unet.bottleneck."),
    (r"\.pwconv\.", ".mix."),
    (r"\.dwconv_hw\.", ".square."),
    (r"\.dwconv_w\.", ".along_frequency."),
    (r"\.dwconv_h\.", ".along_time."),
    (r"\.offset_generator\.", ".offsets."),
    (r"\.dcn\.", ".deformable."),
    (r"\.norm1\.body\.", ".attention_norm."),
    (r"\.norm2\.body\.", ".feed_forward_norm."),
    (r"\.mala\.lepe\.", ".attention.lepe."),
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

# For MP-SENet, applied before the others.
_MPSENET_RENAMES = (
    (
        r"\.dense_block\.dense_block\.(\d)\.([123])\.",
        lambda match: f".dense_block.layers.{match[1]}.{int(match[2]) - 1}.",
    ),
    (r"^mask_decoder\.mask_conv\.0\.conv\.", "magnitude_decoder.double_bins.spread."),
    (r"^mask_decoder\.mask_conv\.([123])\.", lambda match: f"magnitude_decoder.squeeze.{int(match[1]) - 1}."),
    (r"\.phase_conv\.0\.conv\.", ".double_bins.spread."),
    (r"\.phase_conv\.1\.", ".norm."),
    (r"\.phase_conv\.2\.", ".act."),
    (r"^TSTransformer\.(\d)\.time_transformer\.", r"blocks.\1.first."),
    (r"^TSTransformer\.(\d)\.freq_transformer\.", r"blocks.\1.second."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".feed_forward_norm."),
    (r"\.norm3\.", ".output_norm."),
    (r"\.attention\.out_proj\.", ".attention.project."),
    (r"\.ffn\.gru\.", ".feed_forward.gru."),
    (r"\.ffn\.linear\.", ".feed_forward.project."),
)

_WITHOUT_EFFECT = re.compile(
    r"\.aggregate\."  # fusion of one path
    r"|\.rope\.angle$"  # a constant, computed in models.mala
    r"|\.dense_conv_[12]\.0\.bias$|\.dense_block\.\d\.0\.bias$|\.mask_conv\.3\.bias$"  # before an InstanceNorm
)
_MPSENET_WITHOUT_EFFECT = re.compile(
    r"\.dense_conv_[12]\.0\.bias$|\.dense_block\.\d\.1\.bias$"  # before an InstanceNorm
    r"|\.attention\.key\.bias$"  # adds the same to all scores of a query, which a softmax ignores
)


def published_network(names: Mapping[str, Any]) -> str | None:
    """Return "imse", "muse" or "mpsenet" if these are tensor names of a released checkpoint, else None."""
    for network, part in (("imse", ".mala.qkvo."), ("muse", ".attn.refine_att."), ("mpsenet", "TSTransformer.")):
        if any(part in name for name in names):
            return network
    return None


def is_short_mpsenet(names: Mapping[str, Any]) -> bool:
    """Return whether these are tensor names of MP-SENet's version of Interspeech 2023, another network."""
    return any(name.startswith("TSConformer.") for name in names)


def translate_published(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a released state dict to that of `models.imse.IMSE`, `models.muse.MUSE` or `models.mpsenet.MPSENet`.

    Unknown names and impossible shapes are passed on, for the loader to report.
    """
    mpsenet = published_network(published) == "mpsenet"
    without_effect = _MPSENET_WITHOUT_EFFECT if mpsenet else _WITHOUT_EFFECT
    renames = (*_MPSENET_RENAMES, *_RENAMES) if mpsenet else _RENAMES
    translated: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if name.endswith(("mask_conv.0.weight", "phase_conv.0.weight")) and tensor.ndim == 4 and len(tensor) % 4 == 0:
            # Rows are (channel, row, bin) of each 2×2 patch; the second row is never read. Ours are (bin, channel).
            tensor = tensor.unflatten(0, (-1, 2, 2))[:, 0].transpose(0, 1).flatten(0, 1)
        elif name.endswith(".body.weight") and tensor.ndim == 1:
            tensor = tensor[:, None, None]
        elif name.endswith(".attn.temperature"):
            tensor = tensor.flatten()
        parts = {name: tensor}
        for old, new in _SPLITS.items():
            if old in name and tensor.ndim:
                parts = {name.replace(old, part): rows for part, rows in zip(new, tensor.chunk(len(new)), strict=False)}
        for part, rows in parts.items():
            if without_effect.search(part):
                continue
            for pattern, replacement in renames:
                part = re.sub(pattern, replacement, part)
            translated[part] = rows
    return translated


def config_sections(flat: Mapping[str, Any], paper: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Convert the flat config.json of a released checkpoint to this project's sections.

    `paper` is the network's configuration in configs/; it gives what the flat form does not contain (loss weights,
    epochs, validation interval). Keys of the flat form without a counterpart (workers, devices) are ignored.
    `released_axes` is in no released file; it is for weights that were trained with corrected code.
    """
    places = {
        "dense_channel": ("model", "channels"),
        "beta": ("model", "beta"),
        "released_axes": ("model", "released_axes"),
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
