"""Parts of files come into tensors as they are stored, through buffers of any size, or it is said which did not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from quire_engine.layers.embedding import Embedding
from quire_engine.layers.linear import ColumnLinear, Rows, create_weights
from quire_engine.loading import staging as staging_module
from quire_engine.loading.errors import CheckpointError
from quire_engine.loading.file_tensor import FileTensor
from quire_engine.loading.staging import Staging
from quire_engine.loading.weights import load_weights
from quire_engine.models.naming import Naming

CPU = torch.device("cpu")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I32": torch.int32,
}


@st.composite
def slices(draw: st.DrawFn, size: int) -> slice:
    start = draw(st.integers(0, size))
    return draw(st.sampled_from([slice(None), slice(start, draw(st.integers(start, size)))]))


@given(st.data())
def test_any_part_of_any_tensor_comes_as_it_is_stored(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), max_size=4), "shape"))
    where = [data.draw(slices(size)) for size in shape[: data.draw(st.integers(0, len(shape)), "cut")]]
    name = data.draw(st.sampled_from(sorted(DTYPES)), "stored as")
    tensor = torch.randint(-100, 100, shape).to(DTYPES[name])
    part = tensor[tuple(where)]
    wide = data.draw(st.booleans(), "of another type")
    into = torch.empty(part.shape, dtype=torch.float32 if wide and part.is_floating_point() else part.dtype)
    if into.ndim > 1 and data.draw(st.booleans(), "turned"):
        into = torch.empty_like(into.transpose(0, -1).contiguous()).transpose(0, -1)
    file = tmp_path_factory.mktemp("staging") / "tensor"
    file.write_bytes(b"header" + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    with file.open("rb") as opened:
        stored = FileTensor("t", opened.fileno(), len(b"header"), name, shape)
        Staging(CPU, data.draw(st.integers(8, 64), "buffer")).read(stored, where, into)
    assert torch.equal(into, part.to(into.dtype))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = ColumnLinear(32, Rows(64, 1))
        self.embed = Embedding(48, 32)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A checkpoint of two files, read as on a GPU."""
    monkeypatch.setattr("quire_engine.loading.readers.reader_for", Staging)
    tensors = {"up.weight": torch.randn(64, 32), "embed.weight": torch.randn(48, 32)}
    for number, (name, tensor) in enumerate(tensors.items()):
        save_file({name: tensor}, tmp_path / f"model-{number}.safetensors")
    return tensors


def load(directory: Path, readers: int) -> Model:
    model = Model()
    create_weights(model)
    load_weights(model, directory, Naming(unused=("lm_head.weight",)), readers=readers)
    return model


Preadv = Callable[[int, Sequence[memoryview], int], int]


def instead_of_preadv(monkeypatch: pytest.MonkeyPatch, make: Callable[[Preadv], Preadv]) -> None:
    class System:
        preadv = staticmethod(make(os.preadv))

    monkeypatch.setattr(staging_module, "os", System)


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_reads_that_give_less_than_was_asked_for_go_on(
    tmp_path: Path, stored: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    instead_of_preadv(monkeypatch, lambda real: lambda file, parts, at: real(file, [parts[0][:100]], at))
    model = load(tmp_path, readers)
    assert torch.equal(model.up.weight, stored["up.weight"])
    assert torch.equal(model.embed.weight[:48], stored["embed.weight"])


@pytest.mark.parametrize("readers", [1, 2])
def test_a_disk_that_fails_is_said_with_the_file_and_the_tensor(
    tmp_path: Path, stored: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, readers: int
) -> None:
    def failing(real: Preadv) -> Preadv:
        def read(file: int, parts: Sequence[memoryview], at: int) -> int:
            if len(parts[0]) == stored["embed.weight"].nbytes:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(file, parts, at)

        return read

    instead_of_preadv(monkeypatch, failing)
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors: embed\.weight cannot be read at byte .* error"):
        load(tmp_path, readers)


def test_a_file_that_is_cut_off_while_it_is_read_is_said(
    tmp_path: Path, stored: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cutting(real: Preadv) -> Preadv:
        def read(file: int, parts: Sequence[memoryview], at: int) -> int:
            os.truncate(tmp_path / "model-0.safetensors", 1000)
            return real(file, parts, at)

        return read

    instead_of_preadv(monkeypatch, cutting)
    with pytest.raises(CheckpointError, match=r"model-0\.safetensors: up\.weight is cut off at byte"):
        load(tmp_path, 1)


def test_what_was_read_is_told_with_its_speed(
    tmp_path: Path, stored: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="quire_engine.loading.readers"):
        load(tmp_path, 2)
    (line,) = caplog.messages
    assert line.startswith("read 0.00 GB at ")
    assert line.endswith(" GB/s, by 2 threads")


class Event:
    """In the place of a GPU's: what is recorded is done when somebody waits for it."""

    def __init__(self) -> None:
        self.is_done = True

    def record(self) -> None:
        self.is_done = False

    def synchronize(self) -> None:
        self.is_done = True


def test_a_buffer_is_read_into_again_once_its_copy_is_done_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, tensor = Staging(CPU, 64), torch.randn(100, 8)
    staging._buffers = [torch.empty(64, dtype=torch.uint8) for _ in range(2)]
    staging._views = [buffer.numpy().data for buffer in staging._buffers]
    events = [Event(), Event()]
    staging._copied = events  # type: ignore[assignment]  # no CUDA is here
    used: list[int] = []

    def watching(real: Preadv) -> Preadv:
        def read(file: int, parts: Sequence[memoryview], at: int) -> int:
            place = torch.frombuffer(parts[0], dtype=torch.uint8).data_ptr()
            used.append([buffer.data_ptr() for buffer in staging._buffers].index(place))
            assert events[used[-1]].is_done
            assert len(used) < 2 or not events[1 - used[-1]].is_done, "the other one is copied meanwhile"
            return real(file, parts, at)

        return read

    instead_of_preadv(monkeypatch, watching)
    file = tmp_path / "tensor"
    file.write_bytes(tensor.numpy().tobytes())
    into = torch.empty_like(tensor)
    with file.open("rb") as opened:
        staging.read(FileTensor("t", opened.fileno(), 0, "F32", (100, 8)), (), into)
    assert torch.equal(into, tensor)
    assert used == [1, 0] * 25
