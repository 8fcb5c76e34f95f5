"""Whatever is in a checkpoint's files, a start ends well or in one line that says why."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_engine.config import EngineConfig
from quire_engine.engine import StartupError, build_engine
from tests.engine.models.checkpoints import ALL, FAMILIES, make_model, save
from tests.engine.quantization.formats import FORMATS, save_quantized

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = FAMILIES | ALL
OTHERS = ("Gemma3", "Mixtral", "DeepseekV3", "GPTNeoX", "Falcon", "Llava")
PLAIN = (*FAMILIES, *(next(name for name in ALL if name.startswith(start)) for start in OTHERS))
QUANTIZED = ("fp8 by blocks", "compressed-tensors fp8 by rows", "awq, groups of 32", "gptq, 4 bits, act-order")
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 64, 10**6, 10**9, 2**31, 2**63, -(2**70), 2**70]),
    st.sampled_from([0.5, -0.1, 1e308, float("inf"), float("nan")]),
    st.sampled_from(["", "x", "float32", "linear", "\ud800", "F32", "I32", "F8_E4M3"]),
    st.sampled_from([[], [1], ["x"], [[]], {}, {"a": 1}, {"rope_type": "yarn"}, {"rope_type": "linear", "factor": 0}]),
)
FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("fuzzed")
    plain = [save(make_model(KINDS[name][0], KINDS[name][1]()), root / f"plain-{i}") for i, name in enumerate(PLAIN)]
    cls, config = FAMILIES["llama"]
    return plain + [
        save_quantized(make_model(cls, config()), root / f"quantized-{i}", FORMATS[form])
        for i, form in enumerate(QUANTIZED)
    ]


def start(directory: Path) -> None:
    """Any other exception than the one for the user is a fault of the engine, and so is its second line."""
    said = ""
    try:
        build_engine(EngineConfig(model=str(directory), device="cpu", dtype="float32", num_gpu_blocks_override=64))
    except StartupError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said.encode()) < 1000


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON document there is a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    if value is ...:
        del document[path[-1]]
    else:
        document[path[-1]] = copy.deepcopy(value)  # it is drawn again, and may be written to


@FUZZ
@given(data=st.data())
def test_any_value_in_config_json(directories: list[Path], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(directories)) / "config.json"
    original = file.read_text()
    document = json.loads(original)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(places(document))))
        put(document, path, data.draw(st.just(...) | VALUES))
    file.write_text(json.dumps(document))
    try:
        start(file.parent)
    finally:
        file.write_text(original)


@FUZZ
@given(data=st.data())
def test_any_value_in_a_header(directories: list[Path], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(directories)) / "model.safetensors"
    original = file.read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    document = json.loads(original[8 : 8 + length])
    path = data.draw(st.sampled_from(list(places(document))))
    put(document, path, data.draw(st.just(...) | VALUES))
    header = json.dumps(document).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(struct.pack("<Q", len(header)) + header + original[8 + length :])
    try:
        start(file.parent)
    finally:
        file.write_bytes(original)


@FUZZ
@given(data=st.data())
def test_any_bytes_in_a_header_and_any_length_of_a_file(directories: list[Path], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(directories)) / "model.safetensors"
    original = file.read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    spoilt = bytearray(original)
    for place in data.draw(st.lists(st.integers(0, 7 + length), max_size=5)):
        spoilt[place] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(spoilt[: data.draw(st.just(len(spoilt)) | st.integers(0, len(spoilt)))]))
    try:
        start(file.parent)
    finally:
        file.write_bytes(original)
