"""Decodes that are padded to a size that was recorded give what the batch by itself gives."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine import engine
from quire_engine.attention.context import AttentionContext, PrefillSpan, current_context
from quire_engine.config import EngineConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.execution import model_runner, padded_decodes
from quire_engine.execution.device import Memory
from quire_engine.execution.padded_decodes import PaddedDecodes, Run, padded_sizes
from quire_engine.kernels import choice
from quire_engine.models.language_model import LanguageModel
from quire_engine.sampling_params import SamplingParams
from tests.engine.models.checkpoints import ALL, MAX_MODEL_LEN, greedy_reference, make_model, mixed_prompts, save

pytestmark = pytest.mark.usefixtures("one_thread")

SPARE, WIDTH = 999, 6
LLAMA = "LlamaForCausalLM: grouped heads"
MORE_FAMILIES = [
    "GPT2LMHeadModel: learned positions",
    "Gemma2ForCausalLM: alternating window, soft-capped scores and logits",
    "MixtralForCausalLM: experts",
    "DeepseekV3ForCausalLM: latent attention, corrected choice of experts",
    "LlamaForCausalLM: dynamic rope",
]


def as_it_is(run: Run) -> Run:
    """What stands in for a recording where there is no GPU: the same, run anew."""
    return run


class Echo(LanguageModel):
    """Gives of each row what it was told: token, position, slot, length, rotated length and the sum of its table."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = SimpleNamespace(hidden_size=6)  # type: ignore[assignment]  # all that is asked for
        self.sizes: list[int] = []

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        context = current_context()
        assert context.lengths_on_device is not None
        assert context.lengths is not None
        self.sizes.append(len(token_ids))
        told = (token_ids, positions, context.slots, context.lengths_on_device, context.lengths)
        return torch.stack([*(t.double() for t in told), context.decode_blocks.sum(1).double()], dim=1)


def padded_by(model: LanguageModel, max_num_seqs: int) -> PaddedDecodes:
    return PaddedDecodes(
        model,
        max_num_seqs=max_num_seqs,
        max_blocks_per_seq=WIDTH,
        spare_slot=SPARE,
        rotates_by_length=True,
        dtype=torch.float64,
        device=torch.device("cpu"),
        capture=as_it_is,
    )


def record_all(padded: PaddedDecodes) -> PaddedDecodes:
    for size in reversed(padded.sizes):
        padded.record(size)
    return padded


def decodes(count: int, seed: int = 0, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor, AttentionContext]:
    generator = torch.Generator().manual_seed(seed)
    token_ids, positions, slots, lengths = torch.randint(1, 900, (4, count), generator=generator)
    tables = torch.randint(1, 900, (count, width), generator=generator)
    return token_ids, positions, AttentionContext(slots, count, lengths.tolist(), tables, [], lengths)


@given(most=st.integers(1, 2000), data=st.data())
def test_a_batch_is_padded_by_7_rows_or_an_eighth(most: int, data: st.DataObject) -> None:
    sizes = padded_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(most, padded_decodes.LARGEST)
    count = data.draw(st.integers(1, sizes[-1]))
    assert next(size for size in sizes if size >= count) - count <= max(7, count // 8)


@settings(deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(1, 21), st.integers(1, WIDTH), st.integers(0, 99)), min_size=1, max_size=6)
)
def test_rows_come_back_as_they_were_put_in_and_padding_touches_no_sequence(
    batches: list[tuple[int, int, int]],
) -> None:
    model = Echo()
    padded = record_all(padded_by(model, 21))
    for count, width, seed in batches:
        token_ids, positions, context = decodes(count, seed, width)
        found = padded.run(token_ids, positions, context)
        assert context.lengths is not None
        lengths = torch.tensor(context.decode_lengths)
        wanted = torch.stack([token_ids, positions, context.slots, lengths, context.lengths], dim=1)
        assert torch.equal(found[:, :5], wanted.double())
        assert len(found) == count
        size = model.sizes[-1]
        padding = padded._hidden[count:size]
        assert padding[:, 2].eq(SPARE).all()
        assert padding[:, 3].eq(0).all()


def test_blocks_of_a_sequence_are_where_its_length_looks_for_them() -> None:
    padded = record_all(padded_by(Echo(), 4))
    for width in (WIDTH, 2):
        token_ids, positions, context = decodes(3, width, width)
        padded.run(token_ids, positions, context)
        assert torch.equal(padded._tables[:3, :width], context.decode_blocks)


def test_sizes_that_were_not_recorded_are_padded_to_the_next_larger_one() -> None:
    model = Echo()
    padded = padded_by(model, 20)
    for size in (20, 8):
        padded.record(size)
    for count in (3, 8, 9):
        token_ids, positions, context = decodes(count)
        padded.run(token_ids, positions, context)
    assert model.sizes == [8, 8, 20]


def test_only_decodes_of_the_model_as_it_is_are_taken() -> None:
    padded = padded_by(Echo(), 8)
    assert not padded.takes(decodes(3)[2])  # nothing is recorded
    record_all(padded)
    assert padded.takes(decodes(8)[2])
    assert not padded.takes(decodes(9)[2])
    assert not padded.takes(decodes(0)[2])
    rows = torch.zeros(1, dtype=torch.int64)
    for name, value in {
        "prefills": [PrefillSpan(3, 2, 0, rows)],
        "adapters": ((1, rows),),
        "adapted": rows,
        "axes": rows,
    }.items():
        context = decodes(3)[2]
        setattr(context, name, value)
        assert not padded.takes(context), name


@pytest.fixture
def device() -> torch.device:
    pytest.importorskip("triton", reason="Triton is not installed here, and nothing is recorded")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def recorded(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows of steps that were replayed; on a GPU from CUDA graphs."""
    monkeypatch.setattr(choice, "interpreted_on_cpu", True)
    if device.type == "cpu":
        monkeypatch.setattr(engine, "capture_for", lambda device: as_it_is)
    counts: list[int] = []
    run = PaddedDecodes.run

    def counted(self: Any, token_ids: torch.Tensor, *others: Any) -> torch.Tensor:
        counts.append(len(token_ids))
        return run(self, token_ids, *others)

    monkeypatch.setattr(PaddedDecodes, "run", counted)
    return counts


def build(directory: Path, device: torch.device, **changes: Any) -> EngineCore:
    settings: dict[str, Any] = {"block_size": 8, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 64}
    config = EngineConfig(
        model=str(directory), device=device.type, dtype="float32", max_num_seqs=5, **settings | changes
    )
    return engine.build_engine(config)[0]


def answers(core: EngineCore, prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
    found: dict[str, list[int]] = {}
    for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        found[str(i)] = []
        core.add_request(EngineRequest(str(i), prompt, SamplingParams(temperature=0.0, max_tokens=count)))
    while core.has_work():
        for output in core.step():
            found[output.request_id] += output.new_token_ids
    return list(found.values())


def fill_spare_page(core: EngineCore, value: float) -> None:
    """Whatever lies in the page that padding writes to, nobody reads it."""
    model: Any = core._executor._model  # type: ignore[attr-defined]  # the seam names no model
    for layer in model.attention_layers():
        assert len(layer.k_cache) == 65
        layer.k_cache[64], layer.v_cache[64] = value, value


@pytest.mark.parametrize("family", [LLAMA, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES)])
def test_answers_are_those_of_transformers(
    family: str, device: torch.device, recorded: list[int], tmp_path: Path
) -> None:
    """Of sequences that end one after the other, so that batches of 5, 4, 3 and fewer rows follow."""
    cls, config = ALL[family]
    model, prompts = make_model(cls, config()), mixed_prompts(5, 12)
    save(model, tmp_path)
    core = build(tmp_path, device)
    fill_spare_page(core, float("nan"))
    counts = [2, 3, 4, 5, 6]
    wanted = [greedy_reference(model, [p], n)[0] for p, n in zip(prompts, counts, strict=True)]
    assert answers(core, prompts, counts) == wanted
    assert {5, 3, 1} <= set(recorded)


def test_eager_steps_are_not_padded(device: torch.device, recorded: list[int], tmp_path: Path) -> None:
    cls, config = ALL[LLAMA]
    model, prompts = make_model(cls, config()), mixed_prompts(1, 5)
    save(model, tmp_path)
    assert answers(build(tmp_path, device, enforce_eager=True), prompts, [2]) == greedy_reference(model, prompts, 2)
    assert recorded == []


def test_steps_that_cannot_be_recorded_run_as_before_and_the_log_says_why(
    device: torch.device,
    recorded: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[Run] = []

    def once(run: Run) -> Run:
        if done:
            raise RuntimeError("operation not permitted when stream is capturing")
        done.append(run)
        return run

    monkeypatch.setattr(engine, "capture_for", lambda device: once)
    cls, config = ALL[LLAMA]
    model, prompts = make_model(cls, config()), mixed_prompts(1, 5)
    save(model, tmp_path)
    with caplog.at_level(logging.WARNING, logger="quire_engine"):
        core = build(tmp_path, device)
    assert "costs time between kernels: operation not permitted when stream is capturing" in caplog.text
    assert answers(core, prompts, [2]) == greedy_reference(model, prompts, 2)
    assert recorded == []


def test_recordings_that_take_more_than_the_plan_leaves_are_given_up(
    device: torch.device,
    recorded: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    used = iter((10 << 40, 11 << 40))  # before and after
    monkeypatch.setattr(model_runner, "device_memory", lambda device: Memory(limit=20 << 40, used=next(used)))
    cls, config = ALL[LLAMA]
    model, prompts = make_model(cls, config()), mixed_prompts(1, 5)
    save(model, tmp_path)
    with caplog.at_level(logging.WARNING, logger="quire_engine"):
        core = build(tmp_path, device)
    assert "they take 1024.00 GiB, and --gpu-memory-utilization leaves" in caplog.text
    assert answers(core, prompts, [2]) == greedy_reference(model, prompts, 2)
    assert recorded == []


def test_recording_ends_after_a_while_and_smaller_batches_are_padded_to_what_is_there(
    device: torch.device,
    recorded: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(model_runner, "LONGEST_SECONDS", -1.0)
    cls, config = ALL[LLAMA]
    model, prompts = make_model(cls, config()), mixed_prompts(1, 5)
    save(model, tmp_path)
    with caplog.at_level(logging.INFO, logger="quire_engine"):
        core = build(tmp_path, device)
    assert f"CUDA graphs of decodes: 1, the {len(padded_sizes(5)) - 1} smallest sizes are left" in caplog.text
    assert answers(core, prompts, [3]) == greedy_reference(model, prompts, 3)
    assert recorded == [1, 1]


def test_the_largest_size_is_recorded_first_and_run_once_before(
    device: torch.device, recorded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int]] = []
    for name in ("rehearse", "record"):
        done = getattr(PaddedDecodes, name)

        def told(self: Any, size: int, name: str = name, done: Any = done) -> None:
            steps.append((name, size))
            done(self, size)

        monkeypatch.setattr(PaddedDecodes, name, told)
    cls, config = ALL[LLAMA]
    save(make_model(cls, config()), tmp_path)
    build(tmp_path, device)
    assert steps == [(name, size) for size in reversed(padded_sizes(5)) for name in ("rehearse", "record")]
