"""Flags have vLLM's names and habits."""

from __future__ import annotations

import re

import pytest

from quire_engine.config import EngineConfig
from quire_engine.flags import FlagParser, from_namespace
from quire_engine.server.settings import ServerSettings


def parse(*argv: str) -> tuple[EngineConfig, ServerSettings]:
    parser = FlagParser("test")
    parser.add_settings(EngineConfig)
    parser.add_settings(ServerSettings)
    found = parser.parse_args(list(argv))
    return from_namespace(EngineConfig, found), from_namespace(ServerSettings, found)


def test_the_arguments_of_a_deployment_for_vllm_are_taken() -> None:
    engine, server = parse(
        "--model=/models/tiny",
        "--tensor-parallel-size=1",
        "--gpu-memory-utilization=0.90",
        "--max-num-seqs=64",
        "--enable-chunked-prefill",
        "--disable-log-stats=false",
    )
    assert (engine.model, engine.max_num_seqs, engine.enable_chunked_prefill) == ("/models/tiny", 64, True)
    assert server.disable_log_stats is False


@pytest.mark.parametrize(
    "flag",
    [
        *("--model=org/model", "--served-model-name=a", "--revision=main", "--tokenizer=org/model", "--dtype=bfloat16"),
        *("--max-model-len=512", "--load-format=auto", "--download-dir=/tmp", "--trust-remote-code", "--host=::"),
        *("--port=8000", "--api-key=a", "--uvicorn-log-level=info", "--root-path=/llm", "--chat-template=chat.jinja"),
        *("--response-role=assistant", "--gpu-memory-utilization=0.8", "--kv-cache-dtype=auto", "--block-size=32"),
        *("--kv-cache-memory-bytes=1000000", "--swap-space=4", "--max-num-seqs=8", "--max-num-batched-tokens=512"),
        *("--enable-prefix-caching", "--no-enable-prefix-caching", "--enable-chunked-prefill", "--enforce-eager"),
        *("--no-enable-chunked-prefill", "--tensor-parallel-size=2", "--pipeline-parallel-size=2", "--nnodes=1"),
        *("--distributed-executor-backend=mp", "--node-rank=0", "--master-addr=127.0.0.1", "--quantization=fp8"),
        *("--enable-lora", "--lora-modules=a=b", "--max-loras=2", "--max-lora-rank=16", "--reasoning-parser=qwen3"),
        *("--tool-call-parser=hermes", "--enable-prompt-tokens-details", "--limit-mm-per-prompt=image=2", "--seed=1"),
        *("--generation-config=vllm", "--disable-log-stats", "--disable-log-requests", "--shutdown-timeout=10"),
        *("--device=cpu", "--disable-custom-all-reduce", "--scheduling-policy=priority", "--max-waiting=1", "--no-ui"),
        *("--log-format=json", "--otlp-traces-endpoint=http://a:4317", "--profile-steps=2", "--no-legacy-metrics"),
    ],
)
def test_each_flag_that_is_promised_is_taken(flag: str) -> None:
    more = {"--lora-modules": ["--enable-lora"]}.get(flag.split("=")[0], [])
    parse(flag, *more)
    parse(*(part for part in flag.split("=", 1)), *more)


@pytest.mark.parametrize(
    "flag", ['--speculative-config={"method": "ngram"}', "--speculative-model=org/model", "--num-speculative-tokens=5"]
)
def test_flags_of_what_is_not_there_yet_are_known_and_refused(flag: str) -> None:
    name, value = flag.split("=")
    with pytest.raises(ValueError, match=re.escape(f"{name} {value} is not supported yet: leave it out")):
        parse(flag)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--enforce-eager"], True),
        (["--enforce-eager=true"], True),
        (["--enforce-eager=False"], False),
        (["--no-enforce-eager"], False),
        (["--enforce_eager"], True),
        ([], False),
    ],
)
def test_booleans_are_written_in_each_usual_way(argv: list[str], expected: bool) -> None:
    assert parse(*argv)[0].enforce_eager is expected


def test_values_follow_after_a_blank_or_an_equals_sign() -> None:
    assert parse("--max-model-len", "5")[0].max_model_len == parse("--max_model_len=5")[0].max_model_len == 5


def test_several_names_are_one_flag() -> None:
    assert parse("--served-model-name", "a", "b")[1].served_model_name == ("a", "b")


def test_the_last_names_win_and_keys_add_up() -> None:
    assert parse("--served-model-name", "a", "--served-model-name", "b")[1].served_model_name == ("b",)
    assert parse("--api-key", "a", "b", "--api-key=c")[1].api_key == ("a", "b", "c")


def test_lists_for_browsers_are_json_as_in_vllm_or_words() -> None:
    server = parse("--allowed-origins", '["https://a", "https://b"]', "--allowed-methods", "GET", "POST")[1]
    assert server.allowed_origins == ("https://a", "https://b")
    assert server.allowed_methods == ("GET", "POST")
    assert server.allowed_headers == ("*",)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--max-model-length=5"], "did you mean --max-model-len?"),
        (["--zzz"], "there is no flag --zzz"),
        (["--frobnicate"], "there is no flag --frobnicate\n"),
        (["--dtype=int3"], "--dtype"),
        (["--enforce-eager=perhaps"], "neither true nor false"),
    ],
)
def test_a_wrong_flag_says_what_to_write(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*argv)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--tensor-parallel-size=0"], "--tensor-parallel-size is 0: it must be at least 1"),
        (["--block-size=7"], "8, 16, 32, 64 or 128"),
        (["--gpu-memory-utilization=1.5"], "at most 1"),
        (["--max-num-seqs=0"], "at least 1"),
        (["--port=70000"], "between 0 and 65535"),
        (["--async-scheduling", "--tensor-parallel-size=2"], "works with one rank, so leave it out"),
    ],
)
def test_a_value_out_of_range_names_the_flag_and_the_limit(argv: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        parse(*argv)
