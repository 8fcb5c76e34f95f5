"""POST /v1/embeddings, by the openai client, of an encoder."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.engine.models.checkpoints import ENCODERS, make_model, save
from tests.engine.server.conftest import Server, launch

CLS, SEP = 1, 2


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a letter, between [CLS] and [SEP], as BERT has it."""
    vocabulary = {"[UNK]": 0, "[CLS]": CLS, "[SEP]": SEP} | {chr(97 + i): 3 + i for i in range(26)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    cls, config = ENCODERS["BertModel: learned positions, token types"]
    return make_model(cls, config())


@pytest.fixture(scope="module")
def embedder(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = save(model, tmp_path_factory.mktemp("bert"))
    tokenizer().save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(written | {"is_matryoshka": True}))
    started = launch(tmp_path_factory.mktemp("embedder"), directory, "--served-model-name", "bert")
    started.wait_until_ready()
    yield started
    started.stop()


def ids(text: str) -> list[int]:
    return [CLS, *(ord(c) - 94 for c in text), SEP]


@torch.no_grad()
def vector(model: PreTrainedModel, tokens: list[int], size: int = 64) -> torch.Tensor:
    one = torch.tensor([tokens])
    found: torch.Tensor = model(one, attention_mask=torch.ones_like(one)).last_hidden_state[0, 0, :size]
    return found / found.norm()


def same(found: Any, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-5, rtol=0)


def post(server: Server, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/embeddings", json={"model": "bert", **body}, timeout=60)


def test_texts_and_tokens_alone_and_several_give_vectors_in_their_order(
    embedder: Server, model: PreTrainedModel
) -> None:
    client = embedder.client()
    inputs: list[tuple[Any, list[list[int]]]] = [
        ("hello", [ids("hello")]),
        (["hello", "you", "a" * 100], [ids("hello"), ids("you"), ids("a" * 100)]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6, 7], [8]], [[5, 6, 7], [8]]),
    ]
    for given, tokens in inputs:
        answer = client.embeddings.create(model="bert", input=given)
        assert [entry.index for entry in answer.data] == list(range(len(tokens)))
        for entry, own in zip(answer.data, tokens, strict=True):
            same(entry.embedding, vector(model, own))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
        assert (answer.model, answer.object) == ("bert", "list")


def test_base64_holds_the_floats_of_the_other_format(embedder: Server) -> None:
    as_floats = post(embedder, input="abc").json()["data"][0]["embedding"]
    as_text = post(embedder, input="abc", encoding_format="base64").json()["data"][0]["embedding"]
    read = struct.unpack("<64f", base64.b64decode(as_text))
    same(read, torch.tensor(as_floats))


def test_a_vector_is_cut_to_the_dimensions_that_are_asked_for(embedder: Server, model: PreTrainedModel) -> None:
    answer = embedder.client().embeddings.create(model="bert", input="abc", dimensions=16)
    same(answer.data[0].embedding, vector(model, ids("abc"), 16))


def test_a_long_text_is_cut_between_what_the_tokenizer_puts_around_it(embedder: Server, model: PreTrainedModel) -> None:
    answer = post(embedder, input="abcdefgh" * 100, truncate_prompt_tokens=10).json()
    same(answer["data"][0]["embedding"], vector(model, ids("abcdefgh")))
    assert answer["usage"]["prompt_tokens"] == 10
    assert post(embedder, input="a" * 1000, truncate_prompt_tokens=-1).json()["usage"]["prompt_tokens"] == 128
    assert post(embedder, input=[7, 8, 9], truncate_prompt_tokens=2).json()["usage"]["prompt_tokens"] == 2


def test_prompt_tokens_are_counted_and_requests_end_well(embedder: Server) -> None:
    before = embedder.metric("vllm:prompt_tokens_total")
    ended = embedder.metric("vllm:request_success_total", finished_reason="stop")
    post(embedder, input=["abc", "de"]).raise_for_status()
    assert embedder.metric("vllm:prompt_tokens_total") == before + 9
    assert embedder.metric("vllm:request_success_total", finished_reason="stop") == ended + 2
    assert embedder.metric("vllm:num_requests_running") == 0


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "input is missing"),
        ({"input": []}, "input", "input is empty"),
        ({"input": [[]]}, "input", "empty list"),
        ({"input": [128]}, "input", "ids end at 127"),
        ({"input": [-1]}, None, None),
        ({"input": {"a": 1}}, None, None),
        (
            {"input": "a" * 127},
            "input",
            "This model's maximum context length is 128 tokens. However, input has 129 tokens",
        ),
        ({"input": "abc", "dimensions": 65}, "dimensions", "dimensions is 65: this model's vectors have 64"),
        ({"input": "abc", "dimensions": 0}, "dimensions", None),
        ({"input": "abc", "encoding_format": "hex"}, "encoding_format", "base64"),
        ({"input": "abc", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
        ({"input": "abc", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", None),
        ({"input": "abc", "priority": 3}, "priority", "--scheduling-policy"),
        ({"input": ["a"] * 2049}, None, "2048"),
        ({"input": "abc", "messages": []}, None, "messages is not supported"),
    ],
)
def test_what_is_wrong_with_a_request_is_a_400_that_says_so(
    embedder: Server, body: dict[str, Any], param: str | None, says: str | None
) -> None:
    answer = post(embedder, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "BadRequestError"
    assert says is None or says in error["message"], error
    assert param is None or error["param"] == param, error


def test_another_models_name_is_a_404(embedder: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        embedder.client().embeddings.create(model="gpt-4", input="a")


def test_a_model_of_vectors_refuses_to_generate_and_says_what_to_use(embedder: Server) -> None:
    client = embedder.client()
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
        client.completions.create(model="bert", prompt="a")
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
        client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "a"}])


def test_a_model_of_text_refuses_to_embed_and_says_what_to_use(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match=r"use /v1/chat/completions .*--task embed"):
        server.client().embeddings.create(model="tiny", input="a")


def test_a_score_is_the_cosine_of_two_texts_vectors(embedder: Server, model: PreTrainedModel) -> None:
    def cosines(pairs: list[tuple[str, str]]) -> torch.Tensor:
        return torch.stack([vector(model, ids(a)) @ vector(model, ids(b)) for a, b in pairs])

    def scores(path: str, text_1: Any, text_2: Any) -> list[float]:
        answer = httpx.post(f"{embedder.url}{path}", json={"model": "bert", "text_1": text_1, "text_2": text_2}).json()
        assert [one["index"] for one in answer["data"]] == [*range(len(answer["data"]))]
        tokens = sum(len(ids(text)) for one in (text_1, text_2) for text in ([one] if isinstance(one, str) else one))
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == tokens
        return [one["score"] for one in answer["data"]]

    same(scores("/score", "abc", "abd"), cosines([("abc", "abd")]))
    same(scores("/v1/score", "abc", ["x", "abc"]), cosines([("abc", "x"), ("abc", "abc")]))
    same(scores("/score", ["a", "b"], ["x", "y"]), cosines([("a", "x"), ("b", "y")]))


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_the_nearest_documents_come_first(embedder: Server, model: PreTrainedModel, path: str) -> None:
    documents = ["zzzz", {"text": "abc"}, "abd"]
    texts = ["zzzz", "abc", "abd"]
    body = {"model": "bert", "query": "abc", "documents": documents}
    wanted = torch.stack([vector(model, ids("abc")) @ vector(model, ids(text)) for text in texts])
    answer = httpx.post(embedder.url + path, json=body).json()
    order = [one["index"] for one in answer["results"]]
    assert order == wanted.argsort(descending=True).tolist()
    assert order[0] == 1
    same([one["relevance_score"] for one in answer["results"]], wanted[order])
    assert [one["document"]["text"] for one in answer["results"]] == [texts[i] for i in order]
    best = httpx.post(embedder.url + path, json={**body, "top_n": 1}).json()["results"]
    assert best == answer["results"][:1]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/score", {"text_1": ["a", "b"], "text_2": ["a"]}, "text_1 holds 2 texts and text_2 1"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2 is empty"),
        ("/score", {"text_1": "a", "text_2": "a" * 500}, "text_1 or text_2 has 502 tokens"),
        ("/score", {"text_1": "a"}, "text_2 is missing"),
        ("/score", {"text_1": "a", "text_2": ["a"] * 2048}, "hold 2049 texts: one request takes 2048"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/rerank", {"query": "a", "documents": [5]}, "documents.0"),
    ],
)
def test_what_cannot_be_scored_is_a_400(embedder: Server, path: str, body: dict[str, Any], says: str) -> None:
    answer = httpx.post(embedder.url + path, json=body)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]
