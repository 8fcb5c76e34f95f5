"""The engine in this process: prompts in, answers out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

from quire_engine.chat_messages import Message, holds_images, without_images
from quire_engine.config import EngineConfig
from quire_engine.core.images import PromptImage
from quire_engine.core.messages import BeamAnswer, EngineOutput, EngineRequest
from quire_engine.core.pooling import PoolingParams
from quire_engine.core.step import TokenLogprobs
from quire_engine.engine import build_engine
from quire_engine.interrupts import interrupts_held
from quire_engine.logs import parts_of
from quire_engine.lora.request import LoRARequest
from quire_engine.lora.residents import Residents
from quire_engine.multimodal.image_files import ImageFile
from quire_engine.multimodal.placeholders import expanded
from quire_engine.multimodal.prompt_data import files_of
from quire_engine.request_embedding import EmbeddingRequestOutput, embed_all
from quire_engine.request_output import (
    BeamSearchOutput,
    BeamSearchSequence,
    CompletionOutput,
    Logprob,
    RequestMetrics,
    RequestOutput,
)
from quire_engine.sampling_params import BeamSearchParams, SamplingParams
from quire_engine.startup_error import StartupError
from quire_engine.text.bad_words import with_bad_words
from quire_engine.text.detokenizer import IncrementalDetokenizer
from quire_engine.text.image_parts import takes_parts
from quire_engine.text.token_bytes import TokenBytes
from quire_engine.text.tokenizer import check_vocabulary, load_tokenizer

log = logging.getLogger(__name__)


class PromptDict(TypedDict, total=False):
    """A prompt as text or as token ids; token ids win. Prompts of different `cache_salt` share no cached pages.

    `multi_modal_data` is `{"image": image}` or a list of them, PIL images or bytes of files. The prompt has the
    model's image token once for each.
    """

    prompt: str
    prompt_token_ids: list[int]
    cache_salt: str
    multi_modal_data: Mapping[str, object]


Prompt = str | PromptDict
AdapterChoices = LoRARequest | Sequence[LoRARequest | None] | None


@dataclass
class _Sequence:
    """One answer on its way."""

    request: EngineRequest
    parent: RequestOutput
    output: CompletionOutput
    detokenizer: IncrementalDetokenizer
    started: float = field(default_factory=time.monotonic)


class LLM:
    """A model that generates. `config` are the fields of `EngineConfig`: names, meanings and defaults as the flags'.

    Where a flag takes JSON, a dict is as good.

    Raises `ValueError` for a setting that is wrong and `StartupError` for a model that cannot be run.
    """

    def __init__(self, model: str, **config: Any) -> None:
        config |= {name: json.dumps(value) for name, value in config.items() if isinstance(value, dict)}
        self.config = EngineConfig(model=model, **config)
        begun = time.monotonic()
        self.core, self.info = build_engine(self.config, on_model=self._load_tokenizer)
        log.info("ready after %.1f s (%s)", time.monotonic() - begun, parts_of(self.info.startup_seconds))
        self._token_bytes = TokenBytes(self._tokenizer)
        self._adapters = Residents(self.core, self.config.adapters)
        self._num_requests = 0

    def _load_tokenizer(self, directory: str, vocab_size: int) -> None:
        own, config = self.config.tokenizer, self.config
        try:
            self._tokenizer = load_tokenizer(
                own or directory, trust_remote_code=config.trust_remote_code, download_dir=config.download_dir
            )
            check_vocabulary(self._tokenizer, vocab_size, own or config.model)
        except ValueError as error:
            raise StartupError("InvalidTokenizer", str(error)) from error

    def get_tokenizer(self) -> Any:
        """The tokenizer, a `transformers.PreTrainedTokenizerBase`."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What holds where no sampling parameters are given: the model's own, by `generation_config`."""
        return SamplingParams(**self.info.sampling_defaults)  # type: ignore[arg-type]  # checked when read

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        lora_request: AdapterChoices = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answer `prompts`, all at once, and return the answers in their order.

        `sampling_params` holds for all prompts, or is a list of one each; so does `lora_request`, the adapter, with
        `enable_lora`. `priority` has one number a prompt: lower ones run first, with `scheduling_policy="priority"`.
        Raises `ValueError` for a prompt that can never run, or an adapter that cannot be loaded; nothing is answered
        then.
        """
        every = [prompts] if isinstance(prompts, str | dict) else list(prompts)
        params = self._params_for(every, sampling_params)
        texts = [p if isinstance(p, str) else p.get("prompt") for p in every]
        token_ids = [self._token_ids(p) for p in every]
        images = [self._add_images(_files_of(p), ids) for p, ids in zip(every, token_ids, strict=True)]
        salts = [_salt(p) for p in every]
        if priority is not None and self.config.scheduling_policy != "priority":
            raise ValueError('priority is given and scheduling_policy is not "priority": set it, or leave priority out')
        if priority is not None and len(priority) != len(every):
            raise ValueError(f"there are {len(every)} prompts and {len(priority)} priorities: give as many")
        return self._run(texts, token_ids, params, use_tqdm, salts, priority, images, lora_request)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: AdapterChoices = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them, each a list of `{"role": ..., "content": ...}`.

        A content may be a list of parts: texts, and images as `image_url` with a data URL or as `image_pil`. `tools`
        are for the template: what the model writes of them is in the answers' texts. `lora_request` is as `generate`'s.
        Raises `ValueError` when the tokenizer has no chat template and none is given, and for what cannot be taken.
        """
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: list[Any] = list(messages) if several else [messages]
        conversations, files = self._images_apart(conversations, chat_template)
        texts = [
            str(
                self._tokenizer.apply_chat_template(
                    list(conversation),
                    tools=[*tools] if tools else None,
                    chat_template=chat_template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
            for conversation in conversations
        ]
        # The template writes the special tokens itself.
        token_ids = [self._encode(text, add_special_tokens=False) for text in texts]
        images = [self._add_images(own, ids) for own, ids in zip(files, token_ids, strict=True)]
        params = self._params_for(texts, sampling_params)
        return self._run(texts, token_ids, params, use_tqdm, images=images, adapters=lora_request)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        lora_request: AdapterChoices = None,
        use_tqdm: bool = False,
    ) -> list[BeamSearchOutput]:
        """The `beam_width` best answers to each prompt, as `transformers` finds them with as many beams.

        Raises `ValueError` for a prompt that can never run; nothing is answered then.
        """
        outputs = []
        for result in self.generate(prompts, params.as_sampling_params(), use_tqdm, lora_request=lora_request):
            sequences = []
            for answer in result.outputs:
                tokens = [*result.prompt_token_ids, *answer.token_ids]
                assert answer.finish_reason is not None
                sequences.append(
                    BeamSearchSequence(
                        tokens,
                        answer.cumulative_logprob or 0.0,
                        str(self._tokenizer.decode(tokens)),
                        answer.finish_reason,
                        answer.stop_reason,
                    )
                )
            outputs.append(BeamSearchOutput(sequences))
        return outputs

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        use_tqdm: bool = True,
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """The vector of each prompt, as `outputs.embedding`, in their order.

        Raises `ValueError` for a prompt that can never run, and where the model generates text: no vector is made then.
        """
        every = [prompts] if isinstance(prompts, str | dict) else list(prompts)
        if pooling_params is None or isinstance(pooling_params, PoolingParams):
            params = [pooling_params or PoolingParams()] * len(every)
        else:
            params = list(pooling_params)
        if len(params) != len(every):
            raise ValueError(f"there are {len(every)} prompts and {len(params)} pooling_params: give one or as many")
        if any(not isinstance(p, str) and p.get("multi_modal_data") for p in every):
            raise ValueError("embed takes text alone: leave multi_modal_data out")
        first = self._num_requests
        self._num_requests += len(every)
        token_ids = [self._token_ids(p) for p in every]
        return embed_all(self.core, token_ids, params, first, use_tqdm, [_salt(p) for p in every])

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """As `embed`."""
        return self.embed(prompts, use_tqdm, pooling_params=pooling_params)

    def _params_for(
        self, prompts: Sequence[object], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [with_bad_words(params or self.get_default_sampling_params(), self._tokenizer)] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts and {len(params)} sampling_params: give one or as many")
        return [with_bad_words(own, self._tokenizer) for own in params]

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._encode(prompt)
        if "prompt_token_ids" in prompt:
            return list(prompt["prompt_token_ids"])
        if "prompt" in prompt:
            return self._encode(prompt["prompt"])
        raise ValueError(f"a prompt has the keys {sorted(prompt)}: it needs prompt or prompt_token_ids")

    def _images_apart(self, conversations: list[Any], template: str | None) -> tuple[list[Any], list[list[ImageFile]]]:
        """Conversations as the chat template reads them, and the images in each."""
        images = self.info.images
        if images is None:
            if any(holds_images(message) for conversation in conversations for message in conversation):
                raise ValueError(f"{self.info.no_images}: leave the images out")
            return conversations, [[] for _ in conversations]
        token = str(self._tokenizer.convert_ids_to_tokens(images.token_id))
        in_parts = takes_parts(self._tokenizer, template, token)
        apart = [without_images(conversation, token, in_parts=in_parts) for conversation in conversations]
        return [messages for messages, _ in apart], [files for _, files in apart]

    def _add_images(self, files: Sequence[ImageFile], token_ids: list[int]) -> tuple[PromptImage, ...]:
        """The prompt's images. Their places in `token_ids` become as long as they are."""
        if not files:
            return ()
        if self.info.images is None:
            raise ValueError(f"{self.info.no_images}: leave multi_modal_data out")
        token_ids[:], images = expanded(token_ids, files, self.info.images)
        return tuple(images)

    def _encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def _run(
        self,
        texts: Sequence[str | None],
        token_ids: Sequence[list[int]],
        params: Sequence[SamplingParams],
        use_tqdm: bool,
        salts: Sequence[str | None] | None = None,
        priorities: Sequence[int] | None = None,
        images: Sequence[tuple[PromptImage, ...]] | None = None,
        adapters: AdapterChoices = None,
    ) -> list[RequestOutput]:
        with interrupts_held():
            chosen = self._adapters.choose(adapters, len(texts))
        results: list[RequestOutput] = []
        sequences: dict[str, _Sequence] = {}
        for i, (text, ids, own) in enumerate(zip(texts, token_ids, params, strict=True)):
            self._num_requests += 1
            name = str(self._num_requests - 1)
            answers = [CompletionOutput(index) for index in range(own.num_answers)]
            results.append(RequestOutput(name, text, ids, answers, False, RequestMetrics(time.time())))
            results[-1].lora_request = chosen[i]
            if own.prompt_logprobs is not None:
                results[-1].prompt_logprobs = [None]
            children = own.children()
            first = EngineRequest(
                f"{name}-0",
                ids,
                children[0],
                time.monotonic(),
                priority=priorities[i] if priorities else 0,
                cache_salt=salts[i] if salts else None,
                images=images[i] if images else (),
                adapter=None if (adapter := chosen[i]) is None else adapter.lora_name,
            )
            for answer, child in zip(answers, children, strict=False):
                request = first.another(f"{name}-{answer.index}", child) if answer.index else first
                detokenizer = IncrementalDetokenizer(self._tokenizer, ids, request.params)
                sequences[request.request_id] = _Sequence(request, results[-1], answer, detokenizer)
        with tqdm(total=len(results), desc="prompts", disable=not use_tqdm) as bar:
            try:
                for sequence in sequences.values():
                    with interrupts_held():
                        self.core.add_request(sequence.request)
                while self.core.has_work():
                    with interrupts_held():
                        outputs = self.core.step()
                    for output in outputs:
                        self._advance(sequences[output.request_id], output)
                        bar.update(sequences[output.request_id].parent.finished)
            finally:
                # After an error or Ctrl-C, the next call must not meet what is left of this one.
                with interrupts_held():
                    self.core.abort([*sequences])
        for result, own in zip(results, params, strict=True):
            _keep_the_best(result, own)
        return results

    def _advance(self, sequence: _Sequence, output: EngineOutput) -> None:
        """Add a step's output to an answer. Raises `ValueError` where the engine refused the request."""
        parent, answer = sequence.parent, sequence.output
        if output.finish_reason == "error":
            raise ValueError(f"prompt {parent.request_id}: {output.error}")
        elapsed = time.monotonic() - sequence.started
        if output.beams is not None:
            self._take_beams(sequence, output.beams)
            parent.num_cached_tokens, parent.finished = output.num_cached_tokens, True
            times = parent.metrics
            times.first_token_time = times.last_token_time = times.finished_time = elapsed
            return
        text, stop = sequence.detokenizer.update(
            output.new_token_ids, output.finish_reason is not None, ended_by_token=output.ended_by_token
        )
        answer.text += text
        answer.token_ids += output.new_token_ids
        if output.prompt_logprobs is not None and parent.prompt_logprobs is not None:
            parent.prompt_logprobs += [self._by_token(entry) for entry in output.prompt_logprobs]
        if output.logprobs is not None:
            answer.logprobs = answer.logprobs or []
            answer.logprobs += [self._by_token(entry) for entry in output.logprobs]
            answer.cumulative_logprob = sum((e.logprob for e in output.logprobs), answer.cumulative_logprob or 0.0)
        if not output.new_token_ids:
            return
        answer.finish_reason, answer.stop_reason = output.finish_reason, output.stop_reason
        if stop is not None:
            answer.finish_reason, answer.stop_reason = "stop", stop
            if output.finish_reason is None:
                self.core.abort([output.request_id])
        if answer.index == 0:  # the others find what the first one just computed
            parent.num_cached_tokens = output.num_cached_tokens
        metrics = parent.metrics
        metrics.first_token_time = elapsed if metrics.first_token_time is None else metrics.first_token_time
        metrics.last_token_time = elapsed
        if all(a.finish_reason is not None for a in parent.outputs):
            parent.finished, metrics.finished_time = True, elapsed

    def _take_beams(self, sequence: _Sequence, beams: Sequence[BeamAnswer]) -> None:
        """The answers of a beam search, which come all at once."""
        parent, params = sequence.parent, sequence.request.params
        del parent.outputs[len(beams) :]
        for answer, found in zip(parent.outputs, beams, strict=True):
            detokenizer = IncrementalDetokenizer(self._tokenizer, parent.prompt_token_ids, params)
            answer.text, stop = detokenizer.update(found.token_ids, True, ended_by_token=found.ended_by_token)
            answer.token_ids, answer.cumulative_logprob = found.token_ids, found.cumulative_logprob
            answer.finish_reason, answer.stop_reason = found.finish_reason, found.stop_reason
            if stop is not None:
                answer.finish_reason, answer.stop_reason = "stop", stop

    def _by_token(self, entry: TokenLogprobs) -> dict[int, Logprob]:
        """The token first, then the likeliest ones that are not it."""
        made = {entry.token_id: Logprob(entry.logprob, entry.rank, self._token_bytes.text(entry.token_id))}
        for i, (token, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True)):
            made.setdefault(token, Logprob(logprob, i + 1, self._token_bytes.text(token)))
        return made


def _files_of(prompt: Prompt) -> list[ImageFile]:
    data = None if isinstance(prompt, str) else prompt.get("multi_modal_data")
    return files_of(data) if data else []


def _salt(prompt: Prompt) -> str | None:
    return None if isinstance(prompt, str) else prompt.get("cache_salt")


def _keep_the_best(result: RequestOutput, params: SamplingParams) -> None:
    """Of more answers than `n` keep those with the highest sum of logprobs, the best one first."""
    if params.use_beam_search or params.num_sequences == params.n:
        return
    result.outputs = sorted(result.outputs, key=lambda a: -(a.cumulative_logprob or 0.0))[: params.n]
    for index, answer in enumerate(result.outputs):
        answer.index = index
        if params.logprobs is None:
            answer.logprobs = None
