"""A request to /v1/responses as one to /v1/chat/completions. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from quire_engine.server.errors import ApiError, describe
from quire_engine.server.protocol.chat import ChatCompletionRequest
from quire_engine.server.protocol.generation import GenerationRequest
from quire_engine.server.protocol.response_input import (
    InputCall,
    InputCallOutput,
    InputImage,
    InputMessage,
    InputPart,
    InputReasoning,
    InputRefusal,
)
from quire_engine.server.protocol.responses import NamedFunction, ResponsesRequest

Message = dict[str, Any]
_NOT_TAKEN = {
    *("n", "best_of", "use_beam_search", "stream", "stream_options", "prompt_logprobs", "max_tokens", "user"),
    *("return_token_ids", "return_tokens_as_token_ids"),
}
_OF_CHATS = (GenerationRequest.model_fields.keys() - _NOT_TAKEN) | {"chat_template_kwargs", "include_reasoning"}
# The names of fields in messages about a chat, and what they are called here.
_NAMES = (
    ("response_format.json_schema", "text.format.schema"),
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    (".function.", "."),
)


def as_chat(request: ResponsesRequest) -> ChatCompletionRequest:
    """The chat whose answer is the response's. Raises `ApiError` for a sampling field out of its range."""
    fields: dict[str, Any] = {
        **{name: value for name, value in (request.model_extra or {}).items() if name in _OF_CHATS},
        "model": request.model,
        "messages": messages_of(request),
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": request.stream,
        "response_format": _response_format(request),
    }
    if request.tools is not None:
        tools = [tool.model_dump(exclude_unset=True, exclude={"type"}) for tool in request.tools]
        fields["tools"] = [{"type": "function", "function": tool} for tool in tools]
        fields["parallel_tool_calls"] = request.parallel_tool_calls
        choice = request.tool_choice
        if isinstance(choice, NamedFunction):
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            fields["tool_choice"] = choice
    if request.tells_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.reasoning is not None and request.reasoning.effort is not None:
        fields["reasoning_effort"] = request.reasoning.effort
    try:
        return ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        message, param = describe(error.errors())
        raise in_its_words(ApiError(400, message, param=param)) from error


def in_its_words(error: ApiError) -> ApiError:
    """An error of a chat as one of the request that the client has sent."""
    message, param = error.message, error.param
    for chats, own in _NAMES:
        message, param = message.replace(chats, own), param and param.replace(chats, own)
    if param is not None and param.partition(".")[0] in ("messages", "prompt"):
        param = "input"
    return ApiError(error.status, message, param=param, headers=error.headers)


def messages_of(request: ResponsesRequest) -> list[Message]:
    """The messages of the chat: instructions first, and items that make up one message together."""
    made: list[Message] = []
    if request.instructions is not None:
        made.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*made, {"role": "user", "content": request.input}]
    for item in request.input:
        match item:
            case InputMessage():
                _add_message(made, item)
            case InputReasoning():
                thought = "".join(part.text for part in item.content or ())
                if thought:
                    made.append({"role": "assistant", "reasoning": thought})
            case InputCall():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                _open_answer(made).setdefault("tool_calls", []).append(call)
            case InputCallOutput():
                content = item.output if isinstance(item.output, str) else [_part(part) for part in item.output]
                made.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
    return made


def _add_message(made: list[Message], item: InputMessage) -> None:
    role = "system" if item.role == "developer" else item.role
    content = item.content if isinstance(item.content, str) else [_part(part) for part in item.content]
    # Many templates take one message of the system's, and only as the first.
    if role == "system" and len(made) == 1 and made[0]["role"] == "system":
        made[0]["content"] = [*_as_parts(made[0]["content"]), {"type": "text", "text": "\n\n"}, *_as_parts(content)]
    elif role == "assistant" and made and made[-1].keys() == {"role", "reasoning"}:
        made[-1]["content"] = content
    else:
        made.append({"role": role, "content": content})


def _open_answer(made: list[Message]) -> Message:
    """The last message where it is an answer; else a new one."""
    if not made or made[-1]["role"] != "assistant":
        made.append({"role": "assistant"})
    return made[-1]


def _as_parts(content: str | list[Message]) -> list[Message]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _part(part: InputPart) -> Message:
    if isinstance(part, InputImage):
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    return {"type": "text", "text": part.refusal if isinstance(part, InputRefusal) else part.text}


def _response_format(request: ResponsesRequest) -> Message | None:
    wanted = request.text.format if request.text is not None else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    schema = {"name": wanted.name, "schema": wanted.json_schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}
