"""Adapters that prompts choose offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from quire_engine import LLM, BeamSearchParams, LoRARequest, SamplingParams
from quire_engine.lora import request as as_in_scripts
from tests.engine.lora.adapters import MODULES, NEW_TOKENS, PROMPTS, Adapted, make, make_adapter
from tests.engine.models.checkpoints import MAX_MODEL_LEN

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA = "LlamaForCausalLM: grouped heads"
PARAMS = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
SETTINGS: dict[str, Any] = {
    "max_model_len": MAX_MODEL_LEN,
    "block_size": 8,
    "dtype": "float32",
    "device": "cpu",
    "num_gpu_blocks_override": 60,
}
INPUTS: list[Any] = [{"prompt_token_ids": ids} for ids in PROMPTS]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    made = make(tmp_path_factory.mktemp("llama"), LLAMA)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(100)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(made.directory)
    return made


@pytest.fixture(scope="module")
def llm(adapted: Adapted) -> LLM:
    return LLM(str(adapted.directory), enable_lora=True, max_loras=1, max_cpu_loras=2, **SETTINGS)


def lora(adapted: Adapted, name: str, number: int = 1) -> LoRARequest:
    return LoRARequest(name, number, str(adapted.folders[name]))


def ids(outputs: Any) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_one_adapter_is_for_all_prompts(llm: LLM, adapted: Adapted) -> None:
    outputs = llm.generate(INPUTS, PARAMS, use_tqdm=False, lora_request=lora(adapted, "a"))
    assert ids(outputs) == adapted.answers["a"]
    assert {output.lora_request for output in outputs} == {lora(adapted, "a")}
    assert ids(llm.generate(INPUTS, PARAMS, use_tqdm=False)) == adapted.answers[None]


def test_each_prompt_may_have_its_own(llm: LLM, adapted: Adapted) -> None:
    names = [("a", "b", None)[i % 3] for i in range(len(INPUTS))]
    choices = [None if name is None else lora(adapted, name) for name in names]
    outputs = llm.generate(INPUTS, PARAMS, use_tqdm=False, lora_request=choices)
    assert ids(outputs) == [adapted.answers[name][i] for i, name in enumerate(names)]


def test_more_than_there_is_room_for_take_turns(llm: LLM, adapted: Adapted, tmp_path: Path) -> None:
    make_adapter(adapted.model, tmp_path, seed=7, target_modules=MODULES[LLAMA])
    for request, name in (
        (lora(adapted, "a"), "a"),
        (lora(adapted, "b"), "b"),
        (LoRARequest("third", 3, str(tmp_path)), None),
        (lora(adapted, "b"), "b"),
        (lora(adapted, "a"), "a"),
    ):
        found = ids(llm.generate(INPUTS[:2], PARAMS, use_tqdm=False, lora_request=request))
        assert (found == adapted.answers[name][:2]) == (name is not None)


def test_a_name_may_come_to_mean_another_folder(llm: LLM, adapted: Adapted) -> None:
    for name in ("a", "b"):
        request = LoRARequest("one", 1, str(adapted.folders[name]))
        outputs = llm.generate(INPUTS[:2], PARAMS, use_tqdm=False, lora_request=request)
        assert ids(outputs) == adapted.answers[name][:2]


def test_beams_and_conversations_take_one_too(llm: LLM, adapted: Adapted) -> None:
    beams = [
        llm.beam_search(INPUTS[:1], BeamSearchParams(beam_width=2, max_tokens=4), lora_request=choice)
        for choice in (None, lora(adapted, "a"))
    ]
    assert beams[0][0].sequences[0].tokens != beams[1][0].sequences[0].tokens
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    said = [
        llm.chat([{"role": "user", "content": "w1 w2"}], PARAMS, False, choice, chat_template=template)
        for choice in (None, lora(adapted, "a"))
    ]
    assert ids(said[0]) != ids(said[1])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([LoRARequest("x", 1, "/nowhere")] * len(INPUTS), "lora_request x: there is no folder /nowhere"),
        ([None], "9 prompts and 1 lora_request: give one or as many"),
        ([LoRARequest(str(i), i, "/x") for i in range(len(INPUTS))], "9 adapters and max_cpu_loras is 2: raise it"),
        (
            [LoRARequest("x", i, f"/{i}") for i in range(len(INPUTS))],
            "'x' in /0 and in /1: give one of them another lora_name",
        ),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_runs(llm: LLM, choices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(INPUTS, PARAMS, use_tqdm=False, lora_request=choices)
    assert not llm.core.has_work()


def test_without_enable_lora_it_is_refused_however_many_there_are(adapted: Adapted) -> None:
    llm = LLM(str(adapted.directory), **SETTINGS)
    for count in (1, len(INPUTS)):
        choices = [LoRARequest(str(i), i, "/x") for i in range(count)]
        with pytest.raises(ValueError, match="lora_request is set and adapters are off: set enable_lora=True"):
            llm.generate(INPUTS[:count], PARAMS, use_tqdm=False, lora_request=choices)


def test_an_adapter_has_a_name_and_a_folder() -> None:
    assert as_in_scripts.LoRARequest is LoRARequest
    with pytest.raises(ValueError, match="lora_path is empty"):
        LoRARequest("sql", 1)
