"""/v1/completions and /v1/chat/completions through the official client."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from tests.engine.server.conftest import Server, StartServer

HELLO = [{"role": "user", "content": "Hello!"}]


def test_lists_every_served_name(server: Server) -> None:
    models = server.client().models.list().data
    assert [m.id for m in models] == ["tiny", "small"]
    assert server.client().models.retrieve("small").id == "small"


def test_chat_answers_with_text_usage_and_a_finish_reason(server: Server) -> None:
    answer = server.client().chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=60)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content is not None
    assert choice.message.content.startswith("Hello! I am a tiny model")
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens


def test_greedy_completion_equals_transformers(server: Server, tiny_model_dir: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = LlamaForCausalLM.from_pretrained(tiny_model_dir)
    prompt = "Return a string that"
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    expected = model.generate(**ids, max_new_tokens=24, do_sample=False)[0][ids["input_ids"].shape[1] :]
    answer = server.client().completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=24)
    assert answer.choices[0].text == tokenizer.decode(expected, skip_special_tokens=True)


def test_streamed_chat_is_the_same_text_in_pieces(server: Server) -> None:
    client = server.client()
    whole = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=40)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=HELLO,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(bool(p) for p in pieces) > 3
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])


def test_streamed_completion_is_the_same_text_in_pieces(server: Server) -> None:
    client = server.client()
    whole = client.completions.create(model="tiny", prompt="The value", temperature=0, max_tokens=20)
    chunks = list(
        client.completions.create(model="tiny", prompt="The value", temperature=0, max_tokens=20, stream=True)
    )
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text


def test_each_of_several_prompts_gives_n_choices_in_order(server: Server) -> None:
    prompts = ["Return a", "The class"]
    single = [
        server.client().completions.create(model="tiny", prompt=p, temperature=0, max_tokens=8).choices[0].text
        for p in prompts
    ]
    both = server.client().completions.create(model="tiny", prompt=prompts, n=2, temperature=0, max_tokens=8)
    assert [c.index for c in both.choices] == [0, 1, 2, 3]
    assert [c.text for c in both.choices] == [single[0], single[0], single[1], single[1]]


def test_token_ids_are_a_prompt_too(server: Server, tiny_model_dir: object) -> None:
    ids = AutoTokenizer.from_pretrained(tiny_model_dir).encode("Return a string", add_special_tokens=False)
    client = server.client()
    by_ids = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=8)
    by_text = client.completions.create(model="tiny", prompt="Return a string", temperature=0, max_tokens=8)
    assert by_ids.choices[0].text == by_text.choices[0].text


def test_a_seed_gives_the_same_text_again_and_n_different_ones(server: Server) -> None:
    def texts() -> list[str]:
        answer = server.client().completions.create(
            model="tiny", prompt="Return", seed=7, n=4, temperature=1.0, max_tokens=16
        )
        return [c.text for c in answer.choices]

    first = texts()
    assert first == texts()
    assert len(set(first)) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(server: Server, stream: bool) -> None:
    client = server.client()
    whole = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=40)
    text = whole.choices[0].message.content or ""
    stop = text[10:14]
    if stream:
        chunks = list(
            client.chat.completions.create(
                model="tiny", messages=HELLO, temperature=0, max_tokens=40, stop=stop, stream=True
            )
        )
        stopped = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        answer = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=40, stop=stop)
        stopped, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
    assert stopped == text[: text.index(stop)]
    assert reason == "stop"


def test_max_tokens_ends_with_length(server: Server) -> None:
    answer = server.client().completions.create(
        model="tiny", prompt="Return", max_tokens=3, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_wish_beyond_the_room_left_is_answered_up_to_the_context(start_server: object) -> None:
    small = start_server("--max-model-len=64")  # type: ignore[operator]  # a fixture that is called
    answer = small.client().completions.create(
        model="tiny", prompt="Return a", max_tokens=64, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 64


def test_every_token_that_ends_answers_is_left_out(
    start_server: StartServer, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A checkpoint may name more of them than its tokenizer does, and ordinary ones."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = tmp_path / "several-ends"
    shutil.copytree(tiny_model_dir, model)
    prompt = "Return a string that"
    before = LlamaForCausalLM.from_pretrained(model).generate(
        tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids, max_new_tokens=4, do_sample=False
    )[0]
    file = model / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [1, int(before[-1])]}))
    answer = start_server(model=model).client().completions.create(model="tiny", prompt=prompt, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == tokenizer.decode(before[-4:-1])


def test_the_models_own_defaults_hold_where_a_request_says_nothing(
    start_server: StartServer, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = tmp_path / "with-defaults"
    shutil.copytree(tiny_model_dir, model)
    file = model / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "top_k": 1, "max_new_tokens": 5}))
    client = start_server(model=model).client()
    ask = {"model": "tiny", "prompt": "Return a string that", "max_tokens": 20, "extra_body": {"ignore_eos": True}}
    greedy = client.completions.create(**ask, temperature=0)
    by_default = client.completions.create(**ask)
    assert by_default.choices[0].text == greedy.choices[0].text
    assert by_default.usage.completion_tokens == 5
