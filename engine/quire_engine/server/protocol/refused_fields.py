"""Fields of OpenAI's and vLLM's requests that are not built, and would change the answer: refused when set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refused:
    """`instead` says what to write; the values in `harmless` ask for nothing, beside those that do for every field."""

    instead: str = "leave it out"
    harmless: tuple[Any, ...] = ()


RefusedFields = Mapping[str, Refused]

OF_ALL: RefusedFields = {
    "ec_transfer_params": Refused("embeddings are not moved between servers here, leave it out", ({},)),
    "kv_transfer_params": Refused("pages are not moved between servers here, leave it out", ({},)),
    "media_io_kwargs": Refused(harmless=({},)),
    "mm_payload": Refused(harmless=("none",)),
    "mm_processor_kwargs": Refused("start the server with --mm-processor-kwargs instead", ({},)),
    "moderation": Refused("nothing is moderated here, leave it out"),
    "return_mm_kwargs": Refused(),
    "vllm_xargs": Refused(harmless=({},)),
    "watermarking": Refused(),
}
OF_GENERATION: RefusedFields = {
    **OF_ALL,
    "logprob_token_ids": Refused("the likeliest tokens are told, of which logprobs or top_logprobs say how many"),
    "repetition_detection": Refused("set frequency_penalty or repetition_penalty instead"),
    "return_token_offsets": Refused("set return_token_ids instead"),
    "routed_experts_prompt_start": Refused(harmless=(0,)),
    "thinking_token_budget": Refused("bound the whole answer with max_tokens instead"),
}
OF_COMPLETIONS: RefusedFields = {
    **OF_GENERATION,
    "prompt_embeds": Refused("send text or token ids in prompt instead"),
    "suffix": Refused(
        "write the text before and behind the gap into prompt, between the tokens that your model has for them, such "
        "as <|fim_prefix|>, <|fim_suffix|> and <|fim_middle|>",
        ("",),
    ),
}
OF_CHATS: RefusedFields = {
    **OF_GENERATION,
    "audio": Refused("answers are text, leave it out"),
    "function_call": Refused("set tool_choice instead", ("auto", "none")),
    "functions": Refused("offer them in tools instead"),
    "modalities": Refused('answers are text, leave it out or set it to ["text"]', (["text"],)),
    "return_prompt_text": Refused("set return_token_ids, or ask /tokenize"),
    "verbosity": Refused("say in a system message how long answers are to be", ("medium",)),
    "web_search_options": Refused("nothing is searched here, leave it out"),
}
# What chats alone have, or responses by another name: OpenAI refuses these too.
_OF_OTHER_APIS: RefusedFields = {
    "best_of": Refused("ask /v1/chat/completions for it", (1,)),
    "logprobs": Refused("set include to message.output_text.logprobs, and top_logprobs", (0,)),
    "max_completion_tokens": Refused("set max_output_tokens instead"),
    "max_tokens": Refused("set max_output_tokens instead"),
    "messages": Refused("send them in input instead"),
    "n": Refused("send one request for each answer", (1,)),
    "prompt_logprobs": Refused("ask /v1/chat/completions for them"),
    "reasoning_effort": Refused("set reasoning.effort instead"),
    "response_format": Refused("set text.format instead", ({"type": "text"},)),
    "use_beam_search": Refused("ask /v1/chat/completions for it"),
}
_STORED = "nothing is stored here, send the earlier items in input instead"
OF_RESPONSES: RefusedFields = {
    **OF_ALL,
    **_OF_OTHER_APIS,
    "access_programs": Refused(),
    "background": Refused("nothing is stored here, leave it out or set stream to true"),
    "background_options": Refused("nothing is stored here, leave it out"),
    "context_management": Refused("set truncation to auto, or send fewer items in input"),
    "conversation": Refused(_STORED),
    "enable_response_messages": Refused(),
    "image": Refused(),
    "previous_input_messages": Refused(_STORED),
    "previous_response_id": Refused(_STORED),
    "prompt": Refused("nothing is stored here, send the prompt's text in instructions or input instead"),
}


def refuse(given: Mapping[str, Any], refused: RefusedFields) -> None:
    """Raise `ValueError` for the first of the `refused` fields that asks for something."""
    for name, field in refused.items():
        value = given.get(name)
        if not (value is None or value is False or value == [] or value in field.harmless):
            raise ValueError(f"{name} is not supported: {field.instead}")
