"""No field of OpenAI's or vLLM's requests that changes the answer is passed over in silence."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from quire_engine.server.protocol.chat import ChatCompletionRequest
from quire_engine.server.protocol.completions import CompletionRequest
from quire_engine.server.protocol.refused_fields import OF_CHATS, OF_COMPLETIONS, OF_RESPONSES, refuse
from quire_engine.server.protocol.responses import ResponsesRequest
from quire_engine.server.response_prompts import as_chat
from tests.docs.pages import REPOSITORY
from tests.engine.server.conftest import Server

# The names of the fields in openai 3.57 and vLLM 0.32, as both write them.
OF_VLLM = """
    add_special_tokens allowed_token_ids bad_words cache_salt ec_transfer_params ignore_eos include_stop_str_in_output
    kv_transfer_params length_penalty logprob_token_ids min_p min_tokens mm_payload priority prompt_logprobs
    repetition_detection repetition_penalty request_id response_format return_mm_kwargs return_token_ids
    return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start session_id skip_special_tokens
    spaces_between_special_tokens stop_token_ids stream_interval structured_outputs thinking_token_budget top_k
    truncate_prompt_tokens truncation_side use_beam_search vllm_xargs watermarking
"""
SAMPLING = "frequency_penalty logit_bias n presence_penalty seed stop stream stream_options temperature top_p user"
NAMES = {
    "/v1/completions": f"{OF_VLLM} {SAMPLING} best_of echo logprobs max_tokens model prompt prompt_embeds suffix",
    "/v1/chat/completions": f"""{OF_VLLM} {SAMPLING}
        add_generation_prompt audio chat_template chat_template_kwargs continue_final_message documents echo
        function_call functions include_reasoning logprobs max_completion_tokens max_tokens media_io_kwargs messages
        metadata mm_processor_kwargs modalities model moderation parallel_tool_calls prediction prompt_cache_key
        prompt_cache_options prompt_cache_retention reasoning_effort return_prompt_text safety_identifier service_tier
        store tool_choice tools top_logprobs verbosity web_search_options""",
    "/v1/responses": """
        access_programs background background_options cache_salt chat_template_kwargs context_management conversation
        ec_transfer_params enable_response_messages frequency_penalty ignore_eos image include include_reasoning
        include_stop_str_in_output input instructions kv_transfer_params logit_bias max_output_tokens max_tool_calls
        media_io_kwargs metadata min_p mm_payload mm_processor_kwargs model moderation parallel_tool_calls
        presence_penalty previous_input_messages previous_response_id priority prompt prompt_cache_key
        prompt_cache_options prompt_cache_retention reasoning repetition_penalty request_id return_mm_kwargs
        safety_identifier seed service_tier session_id skip_special_tokens stop stop_token_ids store stream
        stream_options structured_outputs temperature text tool_choice tools top_k top_logprobs top_p truncation user
        vllm_xargs watermarking""",
}
REFUSED = {"/v1/completions": OF_COMPLETIONS, "/v1/chat/completions": OF_CHATS, "/v1/responses": OF_RESPONSES}
TAKEN = {
    "/v1/completions": {*CompletionRequest.model_fields},
    "/v1/chat/completions": {*ChatCompletionRequest.model_fields},
    "/v1/responses": {*ResponsesRequest.model_fields},
}
LEAST: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 1},
}
# Beside what the requests' classes say, /v1/responses takes these over into the chat that it is.
GIVEN_TO_CHATS: dict[str, Any] = {
    "cache_salt": "a",
    "chat_template_kwargs": {"a": 1},
    "frequency_penalty": 0.5,
    "ignore_eos": True,
    "include_reasoning": False,
    "include_stop_str_in_output": True,
    "logit_bias": {"5": 1.0},
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "priority": 3,
    "repetition_penalty": 1.5,
    "seed": 4,
    "skip_special_tokens": False,
    "stop": "x",
    "stop_token_ids": [4],
    "top_k": 5,
}


def without_effect() -> set[str]:
    """The fields of which docs/engine.md says so."""
    _, _, rest = (REPOSITORY / "docs" / "engine.md").read_text().partition("changes no answer: `")
    assert rest
    return {*rest.partition("`")[0].split()}


@pytest.mark.parametrize("path", NAMES)
def test_every_field_is_taken_or_refused_or_said_to_have_no_effect(path: str) -> None:
    # the stream_options of responses can only ask for obfuscation
    given = {*GIVEN_TO_CHATS, "structured_outputs", "stream_options"} if path == "/v1/responses" else set()
    for name in NAMES[path].split():
        taken = name in TAKEN[path] or name in given or name in without_effect()
        assert taken != (name in REFUSED[path]), name


def test_the_table_of_refused_fields_has_each_of_them() -> None:
    _, _, rest = (REPOSITORY / "docs" / "http.md").read_text().partition("## Refused fields\n")
    rows = [row.split("|")[1] for row in rest.partition("\n## ")[0].splitlines() if row.startswith("| `")]
    listed = [name for row in rows for name in re.findall("`(.*?)`", row)]
    assert len(listed) == len({*listed})
    assert {*listed} - {"text.verbosity"} == {name for refused in REFUSED.values() for name in refused}


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, refused in REFUSED.items() for name in refused])
def test_a_refused_field_is_a_400_that_names_it_and_what_to_write(server: Server, path: str, name: str) -> None:
    asked = {"id": "x"} if name in ("prompt", "conversation") else "x"
    answer = httpx.post(server.url + path, json={**LEAST[path], name: asked})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == name
    assert error["message"] == f"{name} is not supported: {REFUSED[path][name].instead}"


@pytest.mark.parametrize("path", NAMES)
def test_what_asks_for_nothing_is_let_pass(server: Server, path: str) -> None:
    own = {name: field.harmless[0] for name, field in REFUSED[path].items() if field.harmless}
    for harmless in (own, *(dict.fromkeys(REFUSED[path], nothing) for nothing in (None, False, []))):
        answer = httpx.post(server.url + path, json={**LEAST[path], **harmless})
        assert answer.status_code == 200, answer.text


def test_zero_is_not_taken_for_false() -> None:
    with pytest.raises(ValueError, match="thinking_token_budget is not supported"):
        refuse({"thinking_token_budget": 0}, OF_CHATS)


def test_a_response_gives_its_fields_to_the_chat_that_it_is() -> None:
    chat = as_chat(ResponsesRequest.model_validate({"input": "Hi", **GIVEN_TO_CHATS}))
    given = chat.model_dump()
    for name, value in GIVEN_TO_CHATS.items():
        assert given[name] == ({5: 1.0} if name == "logit_bias" else value), name
    regex = as_chat(ResponsesRequest.model_validate({"input": "Hi", "structured_outputs": {"regex": "a"}})).form()
    assert regex is not None
    assert regex.wanted.regex == "a"


def test_an_effort_is_told_to_the_template_and_an_own_word_wins() -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": "none"}
    kwargs = ChatCompletionRequest.model_validate(chat).template_kwargs
    assert kwargs == {"reasoning_effort": "none", "enable_thinking": False}
    chat["chat_template_kwargs"] = {"enable_thinking": True}
    assert ChatCompletionRequest.model_validate(chat).template_kwargs["enable_thinking"] is True
    response = ResponsesRequest.model_validate({"input": "Hi", "reasoning": {"effort": "low"}})
    assert as_chat(response).template_kwargs == {"reasoning_effort": "low", "enable_thinking": True}


def test_prompts_are_cut_on_the_side_that_is_asked_for(server: Server) -> None:
    body = {"prompt": [5, 6, 7, 8], "max_tokens": 0, "echo": True, "logprobs": 0, "truncate_prompt_tokens": 2}
    texts = {
        side: httpx.post(f"{server.url}/v1/completions", json={**body, "truncation_side": side}).json()["choices"][0]
        for side in ("left", "right", None)
    }
    whole = httpx.post(f"{server.url}/v1/completions", json={**body, "truncate_prompt_tokens": None}).json()
    tokens = whole["choices"][0]["logprobs"]["tokens"]
    assert texts["left"]["logprobs"]["tokens"] == tokens[2:] == texts[None]["logprobs"]["tokens"]
    assert texts["right"]["logprobs"]["tokens"] == tokens[:2]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_token_ids_are_told_whole_and_streamed_alike(server: Server, path: str) -> None:
    body = {**LEAST[path], "max_tokens": 6, "n": 2, "seed": 3, "return_token_ids": True, "ignore_eos": True}
    whole = httpx.post(server.url + path, json=body).json()
    answer = httpx.post(server.url + path, json={**body, "stream": True}).text
    chunks = [json.loads(line.removeprefix("data: ")) for line in answer.split("\n\n") if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for choice in whole["choices"]:
        own = [one for one in choices if one["index"] == choice["index"]]
        assert [i for one in own for i in one.get("token_ids") or []] == choice["token_ids"]
        assert len(choice["token_ids"]) == 6
    holders = whole["choices"] if path == "/v1/completions" else [whole]
    streamed = [one["prompt_token_ids"] for one in [*chunks, *choices] if "prompt_token_ids" in one]
    assert streamed == [one["prompt_token_ids"] for one in holders]
    asked = {"prompt": "Hi"} if path == "/v1/completions" else {"messages": LEAST[path]["messages"]}
    assert httpx.post(f"{server.url}/tokenize", json=asked).json()["tokens"] == streamed[0]
    assert whole["usage"]["completion_tokens_details"] is None
    without = httpx.post(server.url + path, json={**body, "return_token_ids": False}).json()
    assert without["choices"][0]["token_ids"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_name_tokens_by_id_where_that_is_asked_for(server: Server, stream: bool) -> None:
    tells = {"return_tokens_as_token_ids": True, "return_token_ids": True, "logprobs": True, "stream": stream}
    for path, count in (("/v1/completions", {"logprobs": 1}), ("/v1/chat/completions", {"top_logprobs": 1})):
        answer = httpx.post(server.url + path, json={**LEAST[path], **tells, **count}).text
        parts = [line.removeprefix("data: ") for line in answer.split("\n\n") if "token_ids" in line]
        (choice,) = [
            one for part in parts if "[DONE]" not in part for one in json.loads(part)["choices"] if one.get("logprobs")
        ]
        (token,) = choice["token_ids"]
        if path == "/v1/completions":
            assert choice["logprobs"]["tokens"] == [f"token_id:{token}"]
            assert f"token_id:{token}" in choice["logprobs"]["top_logprobs"][0]
        else:
            (entry,) = choice["logprobs"]["content"]
            assert entry["token"] == f"token_id:{token}"
            assert entry["top_logprobs"][0]["token"].startswith("token_id:")
