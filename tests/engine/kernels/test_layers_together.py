"""All layers in one call for CPUs do what they do one by one, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from quire_engine import SamplingParams
from quire_engine.attention.context import AttentionContext, attention_context
from quire_engine.config import EngineConfig
from quire_engine.core.messages import EngineRequest
from quire_engine.engine import build_engine
from quire_engine.kernels import cpu
from quire_engine.layers import linear
from quire_engine.models.layers_together import layers_together
from tests.engine.models.checkpoints import FAMILIES, make_model, save

pytestmark = pytest.mark.usefixtures("one_thread")

Answer = list[tuple[int, float]]


class Watched:
    """The library, and how often it ran all layers at once, for batches of up to `most` tokens."""

    def __init__(self, library: cpu.Library, most: int) -> None:
        self._library, self.most_together, self.calls = library, most, 0

    def __getattr__(self, name: str) -> Any:
        self.calls += name == "run_layers"
        return getattr(self._library, name)


def checkpoint(family: str, directory: Path, head_dim: int = 16, inner: int = 96) -> Path:
    cls, config = FAMILIES[family]
    settings = config()
    settings.hidden_size, settings.head_dim, settings.max_position_embeddings = 64, head_dim, 2048
    settings.num_attention_heads, settings.num_key_value_heads, settings.intermediate_size = 4, 2, inner
    save(make_model(cls, settings), directory)
    return directory


def answers(model: Path, prompts: dict[str, list[int]], flags: dict[str, Any], **asked: Any) -> dict[str, Answer]:
    """Tokens, each with its logprob, and before these what is `asked` of the prompt's."""
    settings = {"block_size": 8, "max_model_len": 1400, "num_gpu_blocks_override": 400, "dtype": "bfloat16"} | flags
    core, _ = build_engine(EngineConfig(model=str(model), device="cpu", **settings))
    for name, prompt in prompts.items():
        params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=0, ignore_eos=True, **asked)
        core.add_request(EngineRequest(name, prompt, params))
    found: dict[str, Answer] = {name: [] for name in prompts}
    while core.has_work():
        for output in core.step():
            of_prompt = output.prompt_logprobs or []
            found[output.request_id] += [(entry.token_id, entry.logprob) for entry in of_prompt]
            entries = [entry.logprob for entry in output.logprobs or ()]
            found[output.request_id] += zip(output.new_token_ids, entries, strict=True)
    return found


def answers_by_ways(
    library: cpu.Library,
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
    prompts: dict[str, list[int]],
    ways: Sequence[tuple[int, int]],
    flags: dict[str, Any],
    **asked: Any,
) -> list[dict[str, Answer]]:
    """Answers with all layers at once for batches of up to so many tokens, 0 for none, and with so many threads."""
    monkeypatch.setattr(cpu, "multiplies", True)
    found = []
    for most, threads in ways:
        watched = Watched(library, most)
        monkeypatch.setattr(cpu, "library", watched)
        torch.set_num_threads(threads)
        try:
            found.append(answers(model, prompts, flags, **asked))
        finally:
            torch.set_num_threads(1)
        assert (watched.calls > 0) == (most > 0)
    return found


PROMPTS = {"a": list(range(3, 60)), "b": [7], "c": [i % 50 + 3 for i in range(1100)]}  # keys of the last are cut up
SHORT = {str(i): list(range(3 + i, 12 + 3 * i)) for i in range(7)}


@pytest.mark.parametrize("prompts", [PROMPTS, SHORT], ids=["long", "many"])
@pytest.mark.parametrize(
    ("family", "flags"),
    [
        ("llama", {}),
        ("llama", {"block_size": 16}),
        ("llama", {"quantization": "int8"}),
        ("llama", {"max_num_batched_tokens": 40}),  # of most chunks no row is read in the end
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_answers_are_the_same_as_by_layers_one_by_one(
    library: cpu.Library,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    flags: dict[str, Any],
    prompts: dict[str, list[int]],
) -> None:
    model = checkpoint(family, tmp_path, head_dim=2 * flags.get("block_size", 8))  # of 32 attention goes by tiles
    ways = (0, 1), (96, 1), (96, 3), (2, 1)  # there are more than two sequences
    found = answers_by_ways(library, monkeypatch, model, prompts, ways, flags)
    assert all(len(answer) == 12 for answer in found[0].values())
    assert found[1:] == [found[0]] * 3


@pytest.mark.parametrize("inner", [72, 80])  # no whole number of tiles, and of what tiles take at once
def test_gates_of_any_width_are_handed_on(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: int
) -> None:
    model = checkpoint("llama", tmp_path, inner=inner)
    apart, together = answers_by_ways(library, monkeypatch, model, SHORT, ((0, 1), (128, 3)), {})
    assert together == apart


def test_weights_whose_rows_lie_apart_give_the_same_answers(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying_apart(outputs: int, inputs: int) -> torch.Tensor:
        made.append(torch.full((outputs, inputs + 32), float("nan"))[:, :inputs])
        return made[-1]

    made: list[torch.Tensor] = []
    model = checkpoint("llama", tmp_path)
    (dense,) = answers_by_ways(library, monkeypatch, model, SHORT, ((128, 3),), {})
    monkeypatch.setattr(linear, "empty_weight", lying_apart)
    found = answers_by_ways(library, monkeypatch, model, SHORT, ((0, 1), (128, 3)), {})
    assert made
    assert found == [dense, dense]


def test_rows_of_prompts_whose_logprobs_are_asked_for_are_read(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint("llama", tmp_path)
    apart, together = answers_by_ways(library, monkeypatch, model, SHORT, ((0, 1), (128, 1)), {}, prompt_logprobs=0)
    assert together == apart
    assert [len(answer) for answer in together.values()] == [12 + len(prompt) - 1 for prompt in SHORT.values()]


def test_a_page_that_one_sequence_fills_may_be_read_by_another(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "num_gpu_blocks_override": 4, "block_size": 8}
    monkeypatch.setattr(cpu, "multiplies", True)
    found = []
    for most in (0, 96):
        monkeypatch.setattr(cpu, "library", Watched(library, most))
        core, _ = build_engine(EngineConfig(model=str(checkpoint("llama", tmp_path)), max_model_len=32, **flags))
        model = core._executor._model  # type: ignore[union-attr]  # a runner's, on one rank
        torch.manual_seed(0)
        for layer in model.attention_layers():
            layer.k_cache.normal_()
            layer.v_cache.normal_()
        tables = torch.tensor([[1, 2], [1, 0]])  # the second sequence fills page 1, and the first has all of it
        context = AttentionContext(torch.tensor([16, 15]), 2, [9, 8], tables, [])
        with torch.inference_mode(), attention_context(context):
            found.append(model(torch.tensor([5, 6]), torch.tensor([8, 7])))
    assert torch.equal(found[0], found[1])


def test_an_id_that_is_no_tokens_is_an_error(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "num_gpu_blocks_override": 4, "block_size": 8}
    monkeypatch.setattr(cpu, "multiplies", True)
    monkeypatch.setattr(cpu, "library", Watched(library, 96))
    core, _ = build_engine(EngineConfig(model=str(checkpoint("llama", tmp_path)), max_model_len=32, **flags))
    model = core._executor._model  # type: ignore[union-attr]  # a runner's, on one rank
    context = AttentionContext(torch.tensor([8]), 1, [1], torch.tensor([[1]]), [])
    size = model.shape.vocab_size
    with torch.inference_mode(), attention_context(context):
        for token in (-1, size):
            with pytest.raises(IndexError, match=f"token ids must be from 0 to {size - 1}: they are \\[{token}\\]"):
                model(torch.tensor([token]), torch.tensor([0]))
        model(torch.tensor([size - 1]), torch.tensor([0]))


@pytest.mark.parametrize("family", ["llama"])
def test_float32_keeps_its_layers_apart(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    watched = Watched(library, 96)
    monkeypatch.setattr(cpu, "library", watched)
    monkeypatch.setattr(cpu, "multiplies", True)
    answers(checkpoint(family, tmp_path), {"a": [5, 6]}, {"dtype": "float32"})
    assert watched.calls == 0


def test_a_processor_that_multiplies_bfloat16_itself_keeps_layers_apart(
    library: cpu.Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(library, 96)
    monkeypatch.setattr(cpu, "library", watched)
    monkeypatch.setattr(cpu, "multiplies", False)
    answers(checkpoint("llama", tmp_path), {"a": [5, 6]}, {})
    assert watched.calls == 0


@pytest.mark.usefixtures("in_use")
def test_norms_of_queries_that_are_not_those_of_keys_keep_layers_apart(library: cpu.Library, tmp_path: Path) -> None:
    flags: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "num_gpu_blocks_override": 4}
    core, _ = build_engine(EngineConfig(model=str(checkpoint("qwen3", tmp_path)), max_model_len=32, **flags))
    model = core._executor._model  # type: ignore[union-attr]  # a runner's, on one rank
    layers = [*model.model.layers.values()]
    (rotary,) = model.model.rotaries
    found = layers_together(layers, rotary, library, embedding=model.model.embed_tokens, norm=model.model.norm)
    assert found is not None
    assert found.normed
    assert found.embeds
    for layer in layers:
        layer.self_attn.k_norm.eps *= 2
    assert layers_together(layers, rotary, library) is None
