"""Any bytes as a checkpoint give a network or a one-line error, and nothing in them is executed."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import _tensor, _utils, nn

from cli import UserError
from models.checkpoint import load_checkpoint
from tests.fixtures.fuzzing import assert_one_line, damaged, edited, json_texts, odd_texts, try_all
from tests.reference.imse import ReferenceIMSE

pytestmark = pytest.mark.slow

CASES = 10_000

# Number formats of safetensors, some unknown to PyTorch, and their bits.
_DTYPES = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F4": 4},
    **{"I64": 64, "U64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64, "X": 8, "": 8},
}
_SIZES = (0, 1, 2, 3, 4, 8, 16, 1000, 200_000, 2**31, 2**62, 2**63, 2**70, -1)
numbers = st.sampled_from(_SIZES)
sizes = st.lists(numbers, max_size=4)
plain = st.none() | st.booleans() | numbers | st.floats() | odd_texts | st.binary(max_size=8)


class Built:
    """Unpickle as a call of `function`, whose result then takes `state`."""

    def __init__(self, function: Callable, arguments: tuple, state: object = None) -> None:
        self._parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._parts


class Storage:
    """Unpickle as a storage in a record of the file."""

    def __init__(self, *parts: object) -> None:
        self.parts = ("storage", *parts)


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.parts if isinstance(obj, Storage) else None


def archive(content: object, compression: int) -> bytes:
    """Return a file like those of `torch.save`, with two records of numbers."""
    pickled, stream = io.BytesIO(), io.BytesIO()
    Pickler(pickled, protocol=2).dump(content)
    with zipfile.ZipFile(stream, "w", compression) as file:
        records = {"data.pkl": pickled.getvalue(), "version": b"3\n", "byteorder": b"little"}
        for name, record in {**records, "data/0": bytes(64), "data/1": b""}.items():
            file.writestr(f"archive/{name}", record)
    return stream.getvalue()


def fitting_tensors() -> st.SearchStrategy[object]:
    """Draw tensors on an existing record, also of shapes too large for it."""
    record = Storage(torch.FloatStorage, "0", "cpu", 16)
    axis = st.sampled_from([(0, 1), (1, 1), (4, 1), (4, 4), (8, 1), (1000, 0), (200_000, 0)])  # size and stride
    shapes = st.lists(axis, max_size=2) | st.lists(axis, min_size=4, max_size=4)
    return shapes.map(
        lambda shape: Built(
            _utils._rebuild_tensor_v2,
            (record, 0, tuple(size for size, _ in shape), tuple(stride for _, stride in shape), False, OrderedDict()),
        )
    )


def odd_tensors() -> st.SearchStrategy[object]:
    """Draw tensors on existing and missing records."""
    kinds = st.sampled_from([torch.FloatStorage, torch.HalfStorage, torch.LongStorage, torch.BoolStorage])
    keys, devices = st.sampled_from(["0", "1", "2", "../version"]), st.sampled_from(["cpu", "meta", "cuda:0", "x"])
    stored = st.builds(Storage, kinds, keys, devices, numbers | st.just(16))
    arguments = st.tuples(stored, numbers, sizes.map(tuple), sizes.map(tuple), st.booleans(), st.just(OrderedDict()))
    return arguments.map(lambda given: Built(_utils._rebuild_tensor_v2, given))


def with_attributes(tensor: Built, state: dict[str, object]) -> Built:
    """Return a tensor that may have a replaced method."""
    make = (_utils._rebuild_parameter, torch.Tensor, (tensor, False, OrderedDict()), state)
    return Built(_tensor._rebuild_from_type_v2, make)


def pickles(names: list[str], sign: Path) -> st.SearchStrategy[object]:
    """Draw contents of a pickle: tensors, consistent or not, allowed calls and forbidden calls."""
    attributes = st.dictionaries(st.sampled_from(["items", "get", "chunk", "is_floating_point", "grad"]), plain)
    allowed = st.sampled_from([
        _utils._rebuild_parameter, _utils._rebuild_sparse_tensor, _utils._rebuild_nested_tensor,
        _utils._rebuild_meta_tensor_no_storage, _tensor._rebuild_from_type_v2,
        torch.nn.Parameter, torch.Tensor, torch.Size, OrderedDict, Counter, complex, set,
    ])  # fmt: skip
    hostile = st.sampled_from([
        Built(os.system, (f"touch {sign}",)), Built(eval, (f"open({str(sign)!r}, 'w')",)),
        Built(open, (str(sign), "w")), Built(Path.touch, (sign,)), Built(os.mkdir, (str(sign),)),
    ])  # fmt: skip
    tensor = fitting_tensors() | odd_tensors()
    # PyTorch's unpickler allocates any number of bytes.
    too_many = st.just(Built(bytearray, (2**70,)))
    leaf = plain | tensor | hostile | too_many | st.builds(Built, allowed, plain.map(lambda value: (value,)))

    def compound(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
        lists = st.lists(inner, max_size=3)
        called = st.builds(Built, allowed, lists.map(tuple), st.none() | attributes)
        return called | lists | lists.map(tuple) | st.dictionaries(odd_texts | st.integers(0, 9), inner, max_size=3)

    value = st.recursive(leaf, compound, max_leaves=4)
    known, fitting = st.sampled_from(names), fitting_tensors()
    likely = st.dictionaries(known, fitting | st.builds(with_attributes, fitting, attributes), min_size=1, max_size=3)
    weights = likely | st.dictionaries(known | odd_texts, tensor | value, max_size=3)
    ordered = st.builds(
        lambda entries, state: Built(OrderedDict, (tuple(entries.items()),), state), weights, attributes
    )
    return (weights | weights | ordered | value).map(lambda entries: {"generator": entries}) | value


@pytest.fixture(scope="module")
def ours(small_checkpoint: Path) -> bytes:
    return small_checkpoint.read_bytes()


@pytest.fixture(scope="module")
def published() -> bytes:
    stream = io.BytesIO()
    torch.save({"generator": ReferenceIMSE(8).state_dict()}, stream)
    return stream.getvalue()


def with_header(header: Mapping[str, Any], data: bytes) -> bytes:
    content = json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


def laid_out(header: Mapping[str, Any]) -> bytes:
    """Return a safetensors file of as many zeros as the header asks for."""
    end, entries = 0, dict(header)
    for name, entry in header.items():
        if name != "__metadata__" and 0 <= (size := math.prod(entry["shape"])) < 10**6:
            start, end = end, end + size * _DTYPES[entry["dtype"]] // 8
            entries[name] = entry | {"data_offsets": [start, end]}
    return with_header(entries, bytes(end))


def headers(whole: bytes) -> st.SearchStrategy[bytes]:
    """Draw safetensors files with an edited header or configuration."""
    end = 8 + int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8:end]), whole[end:]
    config = json.loads(header["__metadata__"]["config"])
    names = sorted(header.keys() - {"__metadata__"})

    @st.composite
    def edited_file(draw: st.DrawFn) -> bytes:
        changed = dict(header)
        for _ in range(draw(st.integers(0, 2))):
            name = names[draw(st.integers(0, len(names) - 1))]
            entry = dict(header[name])
            entry |= {"dtype": draw(st.sampled_from(sorted(_DTYPES)))} if draw(st.booleans()) else {}
            entry |= {"shape": draw(sizes)} if draw(st.integers(0, 3)) == 0 else {}
            entry |= {"data_offsets": draw(sizes)} if draw(st.integers(0, 3)) == 0 else {}
            if draw(st.integers(0, 3)) == 0:
                changed.pop(name, None)
                name = draw(odd_texts)
            changed[name] = entry
        if draw(st.integers(0, 3)) == 0:
            changed["__metadata__"] = {"config": draw(edited([config]) | json_texts)}
        return laid_out(changed) if draw(st.booleans()) else with_header(changed, data)

    return edited_file()


def check_all(files: st.SearchStrategy[bytes], folder: Path, beside: bool = False) -> None:
    """Check that every file gives a network or `UserError`; with `beside`, next to a config.json."""
    path, config = folder / "checkpoint", folder / "config.json"
    flat = st.dictionaries(st.sampled_from(["dense_channel", "n_fft", "beta", "seed", "x"]), json_texts, max_size=2)
    objects = flat.map(lambda pairs: "{" + ", ".join(f'"{key}": {value}' for key, value in pairs.items()) + "}")
    configs = st.just('{"dense_channel": 8}') | objects | json_texts

    def check(case: tuple[bytes, str]) -> None:
        path.write_bytes(case[0])
        if beside:
            config.write_text(case[1], encoding="utf-8")
        try:
            network, _ = load_checkpoint(path)
        except UserError as error:
            assert_one_line(error, config if str(error).startswith(f"{config}") else path)
        else:
            assert isinstance(network, nn.Module)
            assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
        assert {file.name for file in folder.iterdir()} <= {path.name, config.name}

    try_all(CASES, st.tuples(files, configs if beside else st.just("")), check)


def test_any_bytes_are_a_network_or_refused(ours: bytes, tmp_path: Path) -> None:
    check_all(damaged([ours]) | headers(ours) | st.binary(max_size=300), tmp_path)


def test_any_torch_file_is_a_network_or_refused(published: bytes, tmp_path: Path) -> None:
    check_all(damaged([published]), tmp_path, beside=True)


def test_any_pickle_is_a_network_or_refused(published: bytes, tmp_path: Path) -> None:
    whole = list(torch.load(io.BytesIO(published), weights_only=True)["generator"])
    # One of each kind of translation; among more names, matching pairs would be rare.
    ends = (".mala.qkvo.weight", "mask_conv.0.weight", ".body.weight", ".attn.temperature", "lsigmoid.slope", ".bias")
    names = [next((name for name in whole if name.endswith(end)), f"x{end}") for end in ends]
    names += names[:2]
    contents = pickles(names, tmp_path / "executed")
    kinds = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    check_all(st.builds(archive, contents, kinds), tmp_path, beside=True)
