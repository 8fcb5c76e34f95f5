"""The memory plan adds up, agrees with real checkpoints, and refuses with the numbers and the flag."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from quire_engine.memory_plan.host_memory import cpu_limit, memory_limit
from quire_engine.memory_plan.model_shape import ModelShape
from quire_engine.memory_plan.plan import (
    CPU_POOL_AT_MOST,
    GIB,
    MemoryRequest,
    activation_bytes,
    plan_memory,
    score_bytes,
)
from quire_engine.memory_plan.weight_files import checkpoint_bytes

LLAMA_8B = ModelShape(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    kv_width=256,
    num_experts=1,
    experts_per_token=1,
    expert_size=14336,
    max_position_embeddings=131072,
    dtype="bfloat16",
    tied_embeddings=False,
)
ON_GPU = MemoryRequest(
    shape=LLAMA_8B,
    dtype="bfloat16",
    on_gpu=True,
    limit=80 * GIB,
    resident=1 * GIB,
    weights=LLAMA_8B.weight_bytes(),
    utilization=0.9,
    block_size=16,
    max_model_len=8192,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
)


def test_the_sizes_of_llama_8b_are_the_known_ones() -> None:
    assert LLAMA_8B.kv_bytes_per_token() == 128 * 1024
    assert LLAMA_8B.weight_bytes() / 2 == pytest.approx(8.03e9, rel=0.001)


def test_all_of_the_allowed_memory_is_given_out_and_no_more() -> None:
    plan = plan_memory(ON_GPU)
    total = plan.resident + plan.weights + plan.activations + plan.kv_cache
    block = LLAMA_8B.kv_bytes_per_token() * 16
    assert 72 * GIB - block < total <= 72 * GIB
    assert plan.kv_cache == plan.num_blocks * block


def test_the_tokens_that_requests_adjust_have_their_place_in_the_plan() -> None:
    columns = 8192 + 1024  # a sequence's, and those with a bias
    penalized = activation_bytes(ON_GPU) - 256 * columns * 12
    step, gathered = 8192 * (3 * 4096 + 4 * 14336) * 2, 32768 * 2 * 8 * 128 * 2
    assert penalized == step + gathered


def test_scores_that_are_written_out_have_their_place_in_the_plan() -> None:
    narrow = replace(
        ON_GPU, shape=replace(LLAMA_8B, intermediate_size=1), max_model_len=131072, max_num_batched_tokens=512
    )
    bent = replace(narrow, shape=replace(narrow.shape, writes_scores=True))
    scores = 32 * 131072 * 128 * 2 + 17 * max(1 << 24, 32 * 131072)  # copied keys, and scores of 17 bytes
    assert activation_bytes(bent) - activation_bytes(narrow) <= scores
    assert score_bytes(bent) - score_bytes(narrow) == scores
    assert score_bytes(narrow) == 512 * 131072 * 4


def test_the_http_server_beside_the_engine_has_its_share_on_cpu() -> None:
    plan = plan_memory(replace(ON_GPU, on_gpu=False, limit=22 * GIB))
    total = plan.resident + plan.http_server + plan.weights + plan.activations + plan.kv_cache
    assert plan.http_server > 0
    assert plan.kv_cache < CPU_POOL_AT_MOST
    assert total <= 22 * GIB * 0.9


def test_the_cache_on_cpu_is_4_gib_at_most() -> None:
    plan = plan_memory(replace(ON_GPU, on_gpu=False))
    assert CPU_POOL_AT_MOST - LLAMA_8B.kv_bytes_per_token() * 16 < plan.kv_cache <= CPU_POOL_AT_MOST


def test_bytes_win_over_the_computed_size_and_blocks_win_over_bytes() -> None:
    by_bytes = replace(ON_GPU, kv_cache_memory_bytes=2 * GIB)
    assert plan_memory(by_bytes).num_blocks == 2 * GIB // (16 * 128 * 1024)
    assert plan_memory(replace(by_bytes, num_blocks=600)).num_blocks == 600


def test_swap_space_is_what_was_asked_for_or_4_gib_or_what_the_host_has_left() -> None:
    page = LLAMA_8B.kv_bytes_per_token() * 16
    roomy = replace(ON_GPU, host_room=50 * GIB)
    assert plan_memory(roomy).num_swap_blocks == 4 * GIB // page
    assert plan_memory(replace(ON_GPU, host_room=GIB)).num_swap_blocks == GIB // page
    assert plan_memory(replace(ON_GPU, host_room=-GIB)).num_swap_blocks == 0
    assert plan_memory(replace(roomy, swap_space=0)).num_swap_blocks == 0
    assert plan_memory(replace(roomy, swap_space=20 * GIB)).swap_space == 20 * GIB
    assert plan_memory(roomy).num_blocks == plan_memory(replace(roomy, swap_space=0)).num_blocks


def test_swap_space_on_cpu_is_off_unless_asked_for_and_leaves_less_to_the_pool() -> None:
    on_cpu = replace(ON_GPU, on_gpu=False, limit=22 * GIB, host_room=50 * GIB)
    asked = plan_memory(replace(on_cpu, swap_space=GIB))
    assert plan_memory(on_cpu).num_swap_blocks == 0
    assert asked.swap_space == GIB
    assert asked.kv_cache <= plan_memory(on_cpu).kv_cache - GIB


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(ON_GPU, limit=16 * GIB), "holds 0 tokens.*: raise --gpu-memory-utilization$"),
        (
            replace(ON_GPU, swap_space=9 * GIB, host_room=8 * GIB),
            "--swap-space asks for 9.00 GiB .* 8.00 GiB left for each: lower it, or raise the container's memory",
        ),
        (
            replace(ON_GPU, on_gpu=False, limit=22 * GIB, swap_space=8 * GIB),
            "swap space 8.00 GiB.*: raise the container's memory limit, or lower --swap-space$",
        ),
        (
            replace(ON_GPU, num_blocks=100),
            "holds 1600 tokens.*need 8192.*raise --num-gpu-blocks-override to 512, or set --max-model-len to.* 1600",
        ),
        (replace(ON_GPU, limit=16 * GIB, on_gpu=False), "14.40 GiB: weights 14.96 GiB.*the container's memory limit"),
    ],
)
def test_too_little_is_refused_with_the_numbers_and_the_way_out(request_: MemoryRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_memory(request_)


def test_the_table_names_every_part() -> None:
    table = plan_memory(ON_GPU).table()
    for part in ("limit x 0.90", "weights", "activations", "KV cache", "pages of 16 tokens"):
        assert part in table


def test_weights_of_a_checkpoint_are_known_from_its_headers(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(10, 3), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    save_file({"c": torch.zeros(99)}, tmp_path / "consolidated.safetensors")
    assert checkpoint_bytes(tmp_path) == 10 * 3 * 4 + 7 * 2


def cgroup(tmp_path: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    (tmp_path / "self").write_text(lines)
    for name, content in files.items():
        file = tmp_path / "root" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    return tmp_path / "root", tmp_path / "self"


def test_limits_of_cgroup_v2_are_the_lowest_on_the_way_up(tmp_path: Path) -> None:
    files = {
        "pods/one/memory.max": "max",
        "pods/memory.max": "1073741824",
        "pods/one/cpu.max": "50000 100000",
        "pods/cpu.max": "max 100000",
    }
    root, own = cgroup(tmp_path, "0::/pods/one\n", files)
    assert memory_limit(root, own) == GIB
    assert cpu_limit(root, own) == 0.5


def test_limits_of_a_container_are_at_the_root_of_its_view(tmp_path: Path) -> None:
    root, own = cgroup(tmp_path, "0::/\n", {"memory.max": "2147483648", "cpu.max": "25000 100000"})
    assert memory_limit(root, own) == 2 * GIB
    assert cpu_limit(root, own) == 0.25


def test_limits_of_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "memory/pod/memory.limit_in_bytes": "1073741824",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "cpu/pod/cpu.cfs_quota_us": "30000",
        "cpu/pod/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    }
    root, own = cgroup(tmp_path, "5:memory:/pod\n4:cpu,cpuacct:/pod\n", files)
    assert memory_limit(root, own) == GIB
    assert cpu_limit(root, own) == 0.3


def test_without_a_limit_the_machine_is_the_limit(tmp_path: Path) -> None:
    root, own = cgroup(tmp_path, "0::/\n", {"memory.max": "max"})
    assert memory_limit(root, own) > GIB // 4
    assert cpu_limit(root, own) >= 1.0


def test_the_plan_needs_only_the_standard_library() -> None:
    code = (
        "import sys; import quire_engine.memory_plan.plan, quire_engine.memory_plan.model_facts; "
        "bad = {m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'quire_engine', '__main__'}; "
        "print(sorted(bad))"
    )
    engine = Path(__file__).parents[3] / "engine"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(engine)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
