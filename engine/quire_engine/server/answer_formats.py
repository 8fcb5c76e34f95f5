"""How the answers of one model are taken apart, by the flags that say what it writes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from quire_engine.reasoning.parser import ReasoningParser
from quire_engine.reasoning.tags import TAGS
from quire_engine.sampling_params import SamplingParams
from quire_engine.server.answer_parser import AnswerParser, NewId, call_id, numbered_call_id, short_call_id
from quire_engine.server.errors import ApiError
from quire_engine.server.protocol.chat import ChatCompletionRequest
from quire_engine.server.protocol.tools import NamedToolChoice
from quire_engine.structured_outputs import AfterReasoning
from quire_engine.tools.calls import CallParser
from quire_engine.tools.events import ToolParser
from quire_engine.tools.forced import REQUIRED, NamedCall
from quire_engine.tools.formats import FORMATS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAIL_TOKENS = 16  # of a prompt, in which a tag may be that its answer goes on from


class AnswerFormats:
    """Makes the parsers of answers."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tool_parser: str | None, reasoning_parser: str | None, *, auto: bool
    ) -> None:
        """`auto` lets models call tools by their own choice, in the format that `tool_parser` names."""
        self._tokenizer = tokenizer
        self._auto = FORMATS[tool_parser] if auto and tool_parser else None
        self._tags = TAGS[reasoning_parser] if reasoning_parser else None
        self._tool_parser = tool_parser
        self._special = frozenset(str(token) for token in tokenizer.all_special_tokens)

    def check(self, request: ChatCompletionRequest) -> None:
        """Raise `ApiError` for tools whose calls would not be found."""
        if request.may_call and self._auto is None:
            raise ApiError(
                400,
                "tool_choice is auto, as it is when unset, and the server looks for no calls: set it to required, to "
                "one tool or to none, or start the server with --enable-auto-tool-choice and --tool-call-parser",
                param="tool_choice",
            )

    def shaped(self, params: SamplingParams, request: ChatCompletionRequest, prompt: list[int]) -> SamplingParams:
        """`params` such that an answer to `prompt` can be read: special tokens that mark something are in its text,
        which is left out otherwise, and its form holds for what follows reasoning."""
        markers = [*self._auto.markers] if request.may_call and self._auto is not None else []
        if self._tags is not None:
            markers += [self._tags.start, self._tags.end]
            if params.structured_outputs is not None and not self._tags.ended_by(tail := self._tail(prompt)):
                after = AfterReasoning(self._tags.start, self._tags.end, self._tags.begun_by(tail))
                params = replace(params, structured_outputs=replace(params.structured_outputs, after_reasoning=after))
        if any(marker in self._special for marker in markers):
            params = replace(params, skip_special_tokens=False)
        return params

    def parser(self, request: ChatCompletionRequest, prompt: list[int]) -> AnswerParser | None:
        """What reads one answer to the tokens `prompt`; None where all of it is content."""
        tools, reasoning = self._tools(request), self._reasoning(prompt)
        if tools is None and reasoning is None:
            return None
        return AnswerParser(
            tools,
            reasoning,
            new_id=self._new_id(request),
            most_calls=1 if request.parallel_tool_calls is False else None,
            tells_calls=not isinstance(request.tool_choice, NamedToolChoice),
            tells_reasoning=request.include_reasoning,
        )

    def _new_id(self, request: ChatCompletionRequest) -> NewId:
        if self._tool_parser == "kimi_k2":
            return numbered_call_id(sum(len(message.tool_calls or ()) for message in request.messages))
        return short_call_id if self._tool_parser == "mistral" else call_id

    def _tools(self, request: ChatCompletionRequest) -> ToolParser | None:
        if isinstance(request.tool_choice, NamedToolChoice):
            return NamedCall(request.tool_choice.function.name)
        offered = {tool.function.name: tool.function.parameters for tool in request.tools or ()}
        if request.tool_choice == "required":
            return CallParser(REQUIRED, offered)
        return CallParser(self._auto, offered) if request.may_call and self._auto is not None else None

    def _reasoning(self, prompt: list[int]) -> ReasoningParser | None:
        if self._tags is None:
            return None
        return ReasoningParser(self._tags, begun=self._tags.begun_by(self._tail(prompt)))

    def _tail(self, prompt: list[int]) -> str:
        return str(self._tokenizer.decode(prompt[-_TAIL_TOKENS:], skip_special_tokens=False))
