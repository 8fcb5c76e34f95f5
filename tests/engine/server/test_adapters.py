"""Adapters over HTTP: listed, chosen by name, loaded and unloaded while the server runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from quire_engine.core.messages import EngineOutput
from quire_engine.server.errors import refused
from tests.engine.lora.adapters import make_adapter
from tests.engine.server.conftest import Server, StartServer, launch

PROMPT, COUNT = "def first(x):", 8
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def folders(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("sql", "poems", "late")):
        make_adapter(model, folder / name, seed=seed, target_modules=EVERY)
    return {name: folder / name for name in ("sql", "poems", "late")}


@pytest.fixture(scope="module")
def server(
    tiny_model_dir: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    poems = json.dumps({"name": "poems", "path": str(folders["poems"]), "base_model_name": "tiny"})
    started = launch(
        tmp_path_factory.mktemp("server"),
        tiny_model_dir,
        "--served-model-name=tiny",
        "--enable-lora",
        "--allow-runtime-lora-updating",
        "--max-cpu-loras=4",
        "--dtype=float32",
        "--lora-modules",
        f"sql={folders['sql']}",
        poems,
    )
    try:
        started.wait_until_ready()
        yield started
    finally:
        started.stop()


def text(server: Server, model: str) -> str:
    answer = server.client().completions.create(model=model, prompt=PROMPT, max_tokens=COUNT, temperature=0.0)
    assert answer.model == model
    return answer.choices[0].text


def change(server: Server, what: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{what}_lora_adapter", json=body, timeout=60)


def error(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


def test_adapters_are_listed_below_their_model(server: Server, folders: dict[str, Path]) -> None:
    cards = {card["id"]: card for card in httpx.get(f"{server.url}/v1/models").json()["data"]}
    assert list(cards) == ["tiny", "sql", "poems"]
    assert cards["tiny"]["parent"] is None
    for name in ("sql", "poems"):
        assert (cards[name]["root"], cards[name]["parent"]) == (str(folders[name]), "tiny")
        assert httpx.get(f"{server.url}/v1/models/{name}").json()["id"] == name


def test_each_name_has_an_answer_of_its_own_on_every_endpoint(server: Server) -> None:
    names = ("tiny", "sql", "poems")
    assert len({text(server, name) for name in names}) == 3
    client, message = server.client(), "Hello"
    chats = [
        client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": message}], max_tokens=COUNT, temperature=0.0
        )
        for name in names
    ]
    assert [chat.model for chat in chats] == list(names)
    said = [chat.choices[0].message.content for chat in chats]
    assert len(set(said)) == 3
    for name, same in zip(names, said, strict=True):
        response = client.responses.create(model=name, input=message, max_output_tokens=COUNT, temperature=0.0)
        assert response.output_text == same


def test_one_is_loaded_used_replaced_and_unloaded(server: Server, folders: dict[str, Path]) -> None:
    loaded = change(server, "load", lora_name="late", lora_path=str(folders["late"]))
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'late' added successfully.")
    own = text(server, "late")
    assert own not in {text(server, name) for name in ("tiny", "sql", "poems")}
    again = change(server, "load", lora_name="late", lora_path=str(folders["sql"]))
    assert (again.status_code, error(again), again.json()["error"]["param"]) == (
        400,
        "the adapter 'late' is loaded already: unload it, or set load_inplace",
        "lora_name",
    )
    assert text(server, "late") == own
    replaced = change(server, "load", lora_name="late", lora_path=str(folders["sql"]), load_inplace=True)
    assert replaced.status_code == 200
    assert text(server, "late") == text(server, "sql")
    gone = change(server, "unload", lora_name="late")
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'late' removed successfully.")
    with pytest.raises(openai.NotFoundError, match="'late' is not served here: use tiny, sql, poems"):
        text(server, "late")
    assert change(server, "unload", lora_name="late").status_code == 404


def test_one_more_than_there_is_room_for_is_refused(server: Server, folders: dict[str, Path]) -> None:
    path = str(folders["late"])
    assert [change(server, "load", lora_name=name, lora_path=path).status_code for name in ("c", "d")] == [200, 200]
    refused = change(server, "load", lora_name="e", lora_path=path)
    assert refused.status_code == 400
    assert "4 adapters are loaded" in error(refused)
    assert "--max-cpu-loras is 4: unload one, or raise it" in error(refused)
    assert [change(server, "unload", lora_name=name).status_code for name in ("c", "d")] == [200, 200]


def _setting(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return write


def _settings_of(written: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "adapter_config.json").write_text(written)


def _overlapping(folder: Path) -> None:
    """Have all tensors begin where the first does."""
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for entry in header.values():
        if "data_offsets" in entry:
            first, end = entry["data_offsets"]
            entry["data_offsets"] = [0, end - first]
    written = json.dumps(header).encode()
    file.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])


def _doubled(folder: Path) -> None:
    """Have all tensors be float64, of twice the bytes that are planned for a file."""
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.double() for name, tensor in load_file(file).items()}, file)


def _with_a_hole(folder: Path) -> None:
    """Have the last tensor be said to be 200 GiB, of a file that takes no room on disk for them."""
    file, hole = folder / "adapter_model.safetensors", 200 << 30
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    last = max((entry for name, entry in header.items() if name != "__metadata__"), key=lambda e: e["data_offsets"][1])
    last["data_offsets"][1] += hole
    written = json.dumps(header).encode()
    file.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + length :])
    os.truncate(file, file.stat().st_size + hole)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "there is no folder"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "lacks adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "lacks adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"no"), "is not a safetensors file"),
        (_setting(use_dora=True), "adapter_config.json: use_dora is True: only False is supported"),
        (_setting(bias="all"), "bias is 'all': only 'none' is supported"),
        (_setting(modules_to_save=["lm_head"]), "modules_to_save is ['lm_head']: only None is supported"),
        (_setting(peft_type="IA3"), "peft_type is 'IA3': only 'LORA' is supported"),
        (_settings_of("[" * 100_000), "maximum recursion depth exceeded"),
        (_settings_of("[]"), "adapter_config.json holds no JSON object"),
        (_overlapping, "nvalid"),
        (_setting(r=64), "has the rank 64 and --max-lora-rank is 16: raise it"),
        (_setting(r=8), "lora_A.weight has the shape [4, "),
        (_setting(rank_pattern={"[": 4}), "rank_pattern holds '[', which is no regular expression"),
        (_setting(rank_pattern={"(.+)+X": 4}), "rank_pattern holds '(.+)+X': write names of modules"),
        (_setting(rank_pattern={"q_proj": 2.5}), "rank_pattern, q_proj is 2.5: it must be a whole number"),
        (_setting(use_rslora="false"), "use_rslora is 'false': it must be true or false"),
        (_settings_of(" " * (1 << 20) + "{}"), "has more than 1048576 bytes"),
        (_doubled, "has the type F64: it must be one of F32, F16, BF16"),
        (_with_a_hole, "bytes in the file: its shape and type ask for"),
    ],
)
def test_a_broken_one_is_refused_with_the_reason_and_the_server_goes_on(
    server: Server, folders: dict[str, Path], tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders["sql"], broken)
    spoil(broken)
    refused = change(server, "load", lora_name="broken", lora_path=str(broken))
    assert refused.status_code == 400
    assert message in error(refused)
    assert str(broken) in error(refused)
    assert text(server, "sql")


@pytest.mark.parametrize(
    "path", ["/nowhere", "~nobody-of-that-name/x", "a\0b", "/dev/zero", "x" * 4000, "/tmp/.." * 583]
)
def test_a_path_that_is_no_folder_is_refused(server: Server, path: str) -> None:
    refused = change(server, "load", lora_name="x", lora_path=path)
    assert (refused.status_code, error(refused)[:18]) == (400, "there is no folder")


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "lora_name"), ({"lora_name": "x"}, "lora_path"), ({"lora_name": "", "lora_path": "y"}, "lora_name")],
)
def test_a_field_that_is_missing_is_named(server: Server, body: dict[str, str], param: str) -> None:
    refused = change(server, "load", **body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_no_adapter_is_called_like_the_model(server: Server, folders: dict[str, Path]) -> None:
    refused = change(server, "load", lora_name="tiny", lora_path=str(folders["late"]))
    assert (refused.status_code, error(refused)) == (400, "'tiny' is the model: give the adapter another name")


def test_a_request_whose_adapter_goes_while_it_is_read_is_told_as_one_that_comes_later() -> None:
    """Both are a 404 that names the field."""
    gone = refused(EngineOutput("r", [], "error", error="the adapter is not loaded", error_kind="missing"))
    assert (gone.status, gone.param, gone.message) == (404, "model", "the adapter is not loaded")


def test_metrics_tell_which_adapters_are_in_use(server: Server) -> None:
    with server.client().completions.create(
        model="sql", prompt=PROMPT, max_tokens=1900, n=4, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))
        labels = {"max_lora": "4", "running_lora_adapters": "sql", "waiting_lora_adapters": ""}
        assert server.metric("vllm:lora_requests_info", **labels) > 1e9
    assert server.metric("vllm:request_success_total", model_name="tiny") > 0


@pytest.mark.parametrize("flags", [(), ("--enable-lora",)])
def test_nobody_loads_adapters_unless_the_server_is_told_so(start_server: StartServer, flags: tuple[str, ...]) -> None:
    server = start_server(*flags)
    for answer in (change(server, "load", lora_name="x", lora_path="/etc"), change(server, "unload", lora_name="x")):
        assert answer.status_code == 403
        wanted = "--allow-runtime-lora-updating, or VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" if flags else "--enable-lora"
        assert wanted in error(answer)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lora-modules", "x=/nowhere"), "--lora-modules names x: set --enable-lora too"),
        (("--enable-lora", "--lora-modules", "x"), "--lora-modules is 'x': write name=folder"),
        (
            ("--enable-lora", "--lora-modules", "x=/nowhere"),
            "InvalidAdapter: --lora-modules x: there is no folder /now",
        ),
        (
            ("--enable-lora", "--lora-modules", '{"name": "x", "path": "/nowhere", "revision": "v1"}'),
            "InvalidAdapter: --lora-modules x: /nowhere is a folder, which has no revision: leave it out",
        ),
        (("--enable-lora", "--lora-modules", '{"name": "x", "path": "a/b", "revision": 1}'), '"revision": ...}'),
        (("--enable-lora", "--lora-modules", "tiny=/nowhere"), "is the model: give the adapter another name"),
        (("--enable-lora", "--max-lora-rank=12"), "--max-lora-rank is 12: it must be one of 1, 8, 16"),
        (("--enable-lora", "--max-cpu-loras=2"), "--max-cpu-loras is 2: it must be at least --max-loras, 4"),
    ],
)
def test_a_start_that_fails_says_what_to_write(start_server: StartServer, flags: tuple[str, ...], message: str) -> None:
    server = start_server(*flags, wait=False)
    assert server.process.wait(60) != 0
    assert message in server.log
    assert "Traceback" not in server.log
