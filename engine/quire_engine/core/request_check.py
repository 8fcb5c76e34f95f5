"""Whether a request can run, looked at before it is queued: nothing that a request holds can harm the others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from quire_engine.core.core_config import CoreConfig
from quire_engine.core.images import PromptImage
from quire_engine.core.messages import EngineRequest
from quire_engine.core.request import Request
from quire_engine.sampling_params import MAX_LOGPROBS, SamplingParams

_WRONG_TYPE = re.compile(
    r"(?P<message>Expected .*|Invalid .*) - at (?:`\w+` in )?`\$\.(?:params\.)?(?P<field>.*)`", re.S
)


def check_request(request: EngineRequest, config: CoreConfig, sibling: Request | None = None) -> None:
    """Raise `ValueError`, which names the field, for a request that can never run.

    Its fields are of their types. `sibling` is the request of `sibling_id`, whose prompt was looked at before.
    """
    if "\0" in request.request_id:
        raise ValueError(f"request_id {request.request_id!r} holds a NUL: leave it out")
    params = request.params
    for name, ids in (
        ("the prompt", request.prompt_token_ids),
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias or ()),
        ("allowed_token_ids", params.allowed_token_ids or ()),
    ):
        if ids and (min(ids) < 0 or max(ids) >= config.vocab_size):
            wrong = next(i for i in ids if not 0 <= i < config.vocab_size)
            raise ValueError(f"{name} holds the token {wrong}: it must be between 0 and {config.vocab_size - 1}")
    if any(token < 0 for word in params.bad_words_token_ids for token in word):
        raise ValueError("bad_words_token_ids holds a token below 0: leave it out")
    _check_kind(request, config)
    length = len(request.prompt_token_ids) if sibling is None else sibling.num_prompt_tokens
    if request.images:
        _check_images(request.images, length, config)
    _check_length(length, config, 1 if request.pooling is None else 0)
    if params.use_beam_search:
        _check_beams(params, length, config)
    elif params.num_sequences > 1:
        raise ValueError(f"n or best_of is {params.num_sequences}: send the engine one request for each answer")


def with_right_types(request: EngineRequest) -> EngineRequest:
    """A copy of `request` whose every field is of its type. Raises `ValueError` that names the first that is not."""
    fields = dict(vars(request))
    if isinstance(request.params, SamplingParams):
        fields["params"] = vars(request.params)
    try:
        return msgspec.convert(fields, EngineRequest)
    except msgspec.ValidationError as error:
        # "Expected `int`, got `str` - at `$.params.top_k`"; what the params refuse themselves names its field.
        found = _WRONG_TYPE.fullmatch(str(error))
        raise ValueError(f"{found['field']}: {found['message']}" if found else str(error)) from error


def _check_kind(request: EngineRequest, config: CoreConfig) -> None:
    """Raise `ValueError` for a text that is wanted of a model of vectors, or the other way round."""
    if config.pooling is not None and request.pooling is None:
        raise ValueError("this model makes embeddings and generates no text: use /v1/embeddings, or LLM.embed")
    if config.pooling is None and request.pooling is not None:
        raise ValueError(
            "this model generates text and makes no embeddings: use /v1/completions or LLM.generate, "
            "or start it with --task embed"
        )
    if config.pooling is not None and request.pooling is not None and request.pooling.dimensions is not None:
        config.pooling.check_dimensions(request.pooling.dimensions)


def _check_images(images: Sequence[PromptImage], length: int, config: CoreConfig) -> None:
    if config.images is None:
        raise ValueError(f"{config.no_images}: leave the images out")
    if len(images) > config.images.most:
        raise ValueError(
            f"the prompt has {len(images)} images and at most {config.images.most} may be in one: leave some out, "
            "or raise --limit-mm-per-prompt"
        )
    end = 0
    for image in images:
        if min(image.width, image.height) < 1:
            raise ValueError(f"images: one has {image.width} x {image.height} pixels: it needs at least one")
        count = config.images.count.of(image.width, image.height)
        if image.num_tokens != count or image.start < end or image.end > length:
            raise ValueError(
                f"images: one has the tokens from {image.start} to {image.end}: it has {count}, behind those of the "
                f"one before it, of the prompt's {length}"
            )
        end = image.end


def _check_length(length: int, config: CoreConfig, more: int) -> None:
    """`more` tokens have to have room beside the prompt."""
    if length == 0:
        raise ValueError("the prompt is empty: it needs at least one token")
    if length > config.max_model_len - more:
        both = ", prompt and answer together" if more else ""  # clients look for these words of OpenAI's
        raise ValueError(
            f"This model's maximum context length is {config.max_model_len} tokens{both}. However, the prompt has "
            f"{length} tokens: shorten it, or raise --max-model-len"
        )
    pool = config.num_blocks * config.block_size
    if length > pool - more:
        raise ValueError(
            f"the prompt has {length} tokens and the whole KV cache holds {pool}: shorten it, or raise "
            "--gpu-memory-utilization, --kv-cache-memory-bytes or --num-gpu-blocks-override"
        )
    if length > config.max_tokens - more:
        raise ValueError(
            f"the prompt has {length} tokens and a step computes {config.max_num_batched_tokens}: raise "
            "--max-num-batched-tokens, or set --enable-chunked-prefill"
        )


def _check_beams(params: SamplingParams, length: int, config: CoreConfig) -> None:
    width, longest = params.num_sequences, config.max_beam_tokens(params)
    if width > config.max_running:
        raise ValueError(
            f"best_of is {width} and at most {config.max_running} sequences run at once: lower it, or raise "
            "--max-num-seqs and --max-num-batched-tokens"
        )
    if length > longest - 1:
        raise ValueError(
            f"the prompt has {length} tokens and the KV cache holds {width} beams of {longest}: lower best_of, "
            "shorten the prompt, or raise --gpu-memory-utilization, --kv-cache-memory-bytes or "
            "--num-gpu-blocks-override"
        )
    choices, most = width + len(config.ends(params)), min(MAX_LOGPROBS, config.vocab_size)
    if choices > most:
        raise ValueError(f"best_of is {width} and {choices - width} tokens may end an answer: at most {most} together")
