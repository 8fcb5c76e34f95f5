"""Kernels for CPUs do what torch does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from quire_engine import SamplingParams
from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.kernels import cpu
from quire_engine.layers.linear import Linear
from quire_engine.quantization.int8 import Int8WhileLoading
from tests.engine.models.checkpoints import FAMILIES, make_model, save

SIZES = st.integers(1, 70)

pytestmark = pytest.mark.usefixtures("one_thread")


class Counting:
    """The library, and how often each of its kernels was asked for."""

    def __init__(self, library: cpu.Library) -> None:
        self._library, self.counts = library, Counter[str]()

    def __getattr__(self, name: str) -> object:
        self.counts[name] += 1
        return getattr(self._library, name)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def lying_apart(weight: torch.Tensor, apart: int) -> torch.Tensor:
    """The same with so many elements that are no numbers between its rows."""
    outputs, inputs = weight.shape
    room = torch.full((outputs, inputs + apart), float("nan"), dtype=weight.dtype)
    return room[:, :inputs].copy_(weight)


def close_to(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Within a rounding to bfloat16 of the sum in float64, and what float32 loses on the way."""
    wanted = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    sizes = functional.linear(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs())
    assert found.dtype == torch.bfloat16
    assert ((found.double() - wanted).abs() <= wanted.abs() * 2**-8 + sizes * 2**-20).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=SIZES,
    inputs=SIZES,
    outputs=SIZES,
    apart=st.sampled_from((0, 1, 32)),
    biased=st.booleans(),
    seed=st.integers(0, 999),
)
def test_products_are_right_for_every_size(
    library: cpu.Library, rows: int, inputs: int, outputs: int, apart: int, biased: bool, seed: int
) -> None:
    x, weight = drawn(rows, inputs, seed=seed), lying_apart(drawn(outputs, inputs, seed=seed + 1), apart)
    bias = drawn(outputs, seed=seed + 2) if biased else None
    close_to(library.linear(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 2816, 64), (97, 1024, 48), (300, 2080, 33), (0, 64, 16)])
def test_products_are_right_past_the_bounds_of_its_tiles(
    library: cpu.Library, rows: int, inputs: int, outputs: int
) -> None:
    x, weight = drawn(rows, inputs, seed=1), drawn(outputs, inputs, seed=2)
    found = library.linear(x, weight)
    assert found.shape == (rows, outputs)
    close_to(found, x, weight, None)


@pytest.fixture(scope="module")
def of_bytes(library: cpu.Library) -> cpu.Library:
    if not library.takes_int8(1):
        pytest.skip("the processor does not multiply bytes")  # and torch does the work there, as a test below has it
    return library


def bytes_and_scale(outputs: int, inputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    return weight, torch.rand(outputs, 1, generator=generator)


@settings(max_examples=40, deadline=None)
@given(
    rows=SIZES,
    inputs=st.integers(1, 200),
    outputs=SIZES,
    biased=st.booleans(),
    power=st.integers(-100, 90),
    seed=st.integers(0, 999),
)
def test_products_with_weights_in_int8_are_right_for_every_size(
    of_bytes: cpu.Library, rows: int, inputs: int, outputs: int, biased: bool, power: int, seed: int
) -> None:
    x, (weight, scale) = drawn(rows, inputs, seed=seed) * 2.0**power, bytes_and_scale(outputs, inputs, seed)
    bias = drawn(outputs, seed=seed + 2) if biased else None
    close_to(of_bytes.linear_int8(x, weight, scale, bias), x, weight.double() * scale.double(), bias)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 2816, 64), (97, 1024, 48), (3, 1 << 16, 5), (0, 64, 16)])
def test_products_with_weights_in_int8_are_right_past_the_bounds_of_its_tiles(
    of_bytes: cpu.Library, rows: int, inputs: int, outputs: int
) -> None:
    x, (weight, scale) = drawn(rows, inputs, seed=1), bytes_and_scale(outputs, inputs, 2)
    found = of_bytes.linear_int8(x, weight, scale)
    assert found.shape == (rows, outputs)
    close_to(found, x, weight.double() * scale.double(), None)


def test_weights_in_int8_meet_the_greatest_sums_and_elements_of_all_sizes(of_bytes: cpu.Library) -> None:
    weight, scale = torch.full((4, 1 << 16), -128, dtype=torch.int8), torch.ones(4, 1)
    for sign in (1, -1):  # sums that are as far from 0 as they can be
        x = torch.full((1, 1 << 16), sign * 1.9921875).bfloat16()
        close_to(of_bytes.linear_int8(x, weight, scale), x, weight, None)
    spread = torch.cat([drawn(1, 64, seed=1) * 2.0**-power for power in range(0, 40, 4)], 1)
    weight, scale = bytes_and_scale(7, spread.shape[1], 3)
    close_to(of_bytes.linear_int8(spread, weight, scale), spread, weight.double() * scale.double(), None)


def test_rows_beside_weights_in_int8_keep_to_themselves_whatever_they_hold(of_bytes: cpu.Library) -> None:
    weight, scale = bytes_and_scale(40, 96, 4)
    x = drawn(6, 96, seed=3)
    alone = [of_bytes.linear_int8(row, weight, scale) for row in x]
    x[1, 5], x[3, 95], x[4] = float("nan"), float("inf"), 0.0
    found = of_bytes.linear_int8(x, weight, scale)
    assert found[[1, 3]].isnan().all()
    assert (found[4] == 0).all()
    for row in (0, 2, 5):
        assert torch.equal(found[row], alone[row])


@pytest.mark.usefixtures("in_use")
def test_torch_multiplies_bytes_where_the_processor_does_not(
    library: cpu.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "multiplies_bytes", False)
    assert not library.takes_int8(64)
    test_a_layer_in_int8_gives_the_same_with_the_library(monkeypatch)


@pytest.mark.usefixtures("in_use")
def test_a_layer_in_int8_gives_the_same_with_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = Linear(96, 40)
        layer.create(Int8WhileLoading())
    finally:
        torch.set_default_dtype(torch.float32)
    layer.method.draw(layer, torch.Generator().manual_seed(0))
    x = drawn(7, 96, seed=1)
    with torch.inference_mode():
        found = layer(x)
        monkeypatch.setattr(cpu, "library", None)
        torch.testing.assert_close(found, layer(x), rtol=2e-2, atol=1e-2)


def test_threads_share_the_outputs_and_change_nothing(library: cpu.Library) -> None:
    x, weight = drawn(5, 2048, seed=1), drawn(300, 2048, seed=2)  # fewer products than that are left to one thread
    alone = library.linear(x, weight)
    torch.set_num_threads(3)
    try:
        assert torch.equal(library.linear(x, weight), alone)
    finally:
        torch.set_num_threads(1)


@pytest.fixture
def in_bfloat16() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("in_bfloat16")
@pytest.mark.parametrize("inputs", [64, 512, 1000, 1024, 1536, 2048, 2816, 3072, 4096, 8192, 14336])
def test_weights_that_tiles_read_lie_evenly_over_the_first_level_cache(
    monkeypatch: pytest.MonkeyPatch, inputs: int
) -> None:
    monkeypatch.setattr(cpu, "library", SimpleNamespace(tiles=True))
    weight = cpu.empty_weight(32, inputs)
    assert weight.shape == (32, inputs)
    assert weight.stride(0) <= inputs * 1.07
    lines = (weight.stride(0) * row // 32 + line for row in range(32) for line in range(8))  # 48 KiB of 12 ways
    assert max(Counter(line % 64 for line in lines).values()) <= 6


@pytest.mark.usefixtures("in_bfloat16")
def test_other_weights_lie_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "library", SimpleNamespace(tiles=False))
    assert cpu.empty_weight(4, 1024).is_contiguous()
    monkeypatch.setattr(cpu, "library", SimpleNamespace(tiles=True))
    with torch.device("meta"):
        assert cpu.empty_weight(4, 1024).is_contiguous()
    torch.set_default_dtype(torch.float32)
    assert cpu.empty_weight(4, 1024).is_contiguous()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 130), row=st.integers(0, 129))
def test_a_row_depends_on_itself_alone(library: cpu.Library, rows: int, row: int) -> None:
    x, weight = drawn(rows, 96, seed=3), drawn(40, 96, seed=4)
    row %= rows
    assert torch.equal(library.linear(x, weight)[row], library.linear(x[row], weight))


def test_views_and_numbers_that_are_none_are_as_in_torch(library: cpu.Library) -> None:
    x, weight = drawn(2, 3, 40, seed=5).transpose(0, 1), drawn(24, 40, seed=6)
    assert library.linear(x, weight).shape == (3, 2, 24)
    close_to(library.linear(x, weight), x, weight, None)
    strange = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [float("-inf"), 1.0], [3e38, 3e38]]).bfloat16()
    ones = torch.ones(1, 2).bfloat16()
    assert torch.equal(library.linear(strange, ones).nan_to_num(7.0), functional.linear(strange, ones).nan_to_num(7.0))


@pytest.mark.usefixtures("in_use")
def test_torch_multiplies_what_the_library_does_not() -> None:
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    assert torch.equal(cpu.linear(x, weight), functional.linear(x, weight))
    columns = drawn(8, 5, seed=1).t()
    assert torch.equal(cpu.linear(x.bfloat16(), columns), functional.linear(x.bfloat16(), columns))
    trained = drawn(5, 8, seed=1).requires_grad_()
    assert cpu.linear(x.bfloat16(), trained).requires_grad


def test_a_processor_without_the_instructions_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "Library", lambda file, tiles: pytest.fail("it was loaded"))
    for flags in (cpu.NEEDED - {"avx512bw"}, frozenset()):
        monkeypatch.setattr(cpu, "flags_of_processor", lambda flags=flags: flags)
        assert cpu._built() is None


@pytest.mark.usefixtures("in_use")
def test_linears_of_a_processor_that_multiplies_bfloat16_itself_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu.library, "linear", lambda *_: pytest.fail("the library multiplied"))
    monkeypatch.setattr(cpu, "multiplies", False)
    x, weight = drawn(3, 8, seed=1), drawn(5, 8, seed=2)
    with torch.inference_mode():
        assert torch.equal(cpu.linear(x, weight), functional.linear(x, weight))


def test_a_model_in_bfloat16_finds_its_prompts_as_likely_with_the_library_as_without(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, config = FAMILIES["qwen2"]
    save(make_model(cls, config()), tmp_path)
    prompt = list(range(3, 40))
    found = []
    for one in (None, Counting(library)):
        monkeypatch.setattr(cpu, "library", one)
        monkeypatch.setattr(cpu, "multiplies", True)
        settings = {"block_size": 8, "max_model_len": 64, "num_gpu_blocks_override": 20, "max_num_batched_tokens": 16}
        core, _ = build_engine(EngineConfig(model=str(tmp_path), device="cpu", dtype="bfloat16", **settings))
        core.add_request(EngineRequest("a", prompt, SamplingParams(temperature=0.0, max_tokens=4, prompt_logprobs=0)))
        outputs = [output for _ in range(20) for output in (core.step() if core.has_work() else [])]
        found.append(torch.tensor([p.logprob for output in outputs for p in output.prompt_logprobs or ()]))
    assert one is not None
    assert one.counts["linear"] > 0
    assert len(found[0]) == len(prompt) - 1
    assert (found[0] - found[1]).abs().mean() < 0.1


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_greedy_answers_in_float32_are_the_same_with_the_library_as_without(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    cls, config = FAMILIES[family]
    settings = config()
    settings.head_dim = 16
    save(make_model(cls, settings), tmp_path)
    prompts = {"a": list(range(3, 60)), "b": [7], "c": list(range(20, 40))}
    found = []
    for one in (None, Counting(library)):
        monkeypatch.setattr(cpu, "library", one)
        flags = {"block_size": 8, "max_model_len": 96, "num_gpu_blocks_override": 40, "max_num_batched_tokens": 24}
        core, _ = build_engine(EngineConfig(model=str(tmp_path), device="cpu", dtype="float32", **flags))
        for name, prompt in prompts.items():
            core.add_request(EngineRequest(name, prompt, SamplingParams(temperature=0.0, max_tokens=20)))
        tokens: dict[str, list[int]] = {name: [] for name in prompts}
        while core.has_work():
            for output in core.step():
                tokens[output.request_id] += output.new_token_ids
        found.append(tokens)
    assert found[0] == found[1]
    assert one is not None
    assert one.counts["attention"] > 0
    assert one.counts["rms_norm"] > 0
    assert one.counts["rotate"] > 0
