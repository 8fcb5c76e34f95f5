"""Flags have vLLM's names and habits."""

from __future__ import annotations

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
    ],
)
def test_a_value_out_of_range_names_the_flag_and_the_limit(argv: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        parse(*argv)
