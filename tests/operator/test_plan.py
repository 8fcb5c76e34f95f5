"""The plan adds up by hand, says what would fit instead, and is skipped where something is not known."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_engine.config import EngineConfig
from quire_engine.memory_plan.model_facts import ModelFacts
from quire_engine.memory_plan.stages import Stage
from quire_operator.api import PlanStatus
from quire_operator.cli import main
from quire_operator.plan.advice import advice_of
from quire_operator.plan.fit import CPU_RESIDENT_BYTES, GPU_RESIDENT_BYTES, layers_of_stage
from quire_operator.plan.gpu_memory import PRODUCTS, Device, KnownGPUs, Skipped, device_of
from quire_operator.plan.hub_source import hub_endpoint, hub_refused
from quire_operator.plan.service_plan import cannot_be_planned, plan_of
from quire_operator.settings import Settings, SettingsError, settings_from
from tests.operator.checkpoints import FACTS, LLAMA_8B, SMALL, write_checkpoint
from tests.operator.services import manifest, service

GIB = 1 << 30
ON_GPU: dict[str, Any] = {"model": {"source": "hf://meta-llama/Llama-3.1-8B"}, "resources": {"gpu": {"count": None}}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return ModelFacts.of_directory(write_checkpoint(tmp_path_factory.mktemp("llama"), LLAMA_8B, files=4))


def gpu_plan(facts: ModelFacts, memory: int, tensor: int = 1, **model: Any) -> PlanStatus:
    spec = service(**ON_GPU, parallelism={"tensor": tensor}).spec
    spec = spec.model_copy(update={"model": spec.model.model_copy(update=model)})
    return plan_of(spec, facts, Device("NVIDIA-TEST", memory * GIB, on_gpu=True))


def test_llama_8b_has_the_parameters_that_its_publisher_counts(llama: ModelFacts) -> None:
    assert llama.parameters == 8_030_261_248
    assert llama.longest == 131072


def test_the_plan_of_llama_8b_on_24_gib_is_the_sum_done_by_hand(llama: ModelFacts) -> None:
    plan = gpu_plan(llama, 24, max_model_len=8192)
    assert plan.weights_bytes == 8_030_261_248 * 2
    assert plan.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2  # keys and values, layers, KV heads, head, bfloat16
    step = 8192 * (3 * 4096 + 4 * 14336) * 2  # tokens of a step x widest residual and gated MLP
    gathered = 32768 * 2 * 8 * 128 * 2
    adjusted = 256 * (8192 + 1024) * 12  # requests x tokens that each can have seen or given a bias
    assert plan.activations_bytes == step + gathered + adjusted
    left = int(24 * GIB * 0.9) - GPU_RESIDENT_BYTES - 16_060_522_496 - step - gathered - adjusted
    assert plan.tokens == left // (131072 * 16) * 16 == 36272
    assert plan.full_length_requests == 36272 // 8192 == 4
    assert (plan.verdict, plan.smallest_tensor, plan.suggestions) == ("Fits", 1, [])


def test_each_of_two_gpus_holds_half_the_matrices_and_all_norms(llama: ModelFacts) -> None:
    norms = (2 * 32 + 1) * 4096
    plan = gpu_plan(llama, 24, tensor=2)
    assert plan.weights_bytes == ((8_030_261_248 - norms) // 2 + norms) * 2
    assert plan.kv_bytes_per_token == 2 * 32 * 4 * 128 * 2


def test_more_gpus_than_kv_heads_repeat_them(llama: ModelFacts) -> None:
    kv = 32 * 2 * 1024 * 4096
    norms = (2 * 32 + 1) * 4096
    plan = gpu_plan(llama, 24, tensor=16)
    assert plan.weights_bytes == ((8_030_261_248 - norms - kv) // 16 + kv // 8 + norms) * 2
    assert plan.kv_bytes_per_token == 2 * 32 * 1 * 128 * 2


def test_what_does_not_fit_is_told_with_each_term_and_the_ways_out(llama: ModelFacts) -> None:
    plan = gpu_plan(llama, 24)
    assert plan.verdict == "DoesNotFit"
    for term in (
        "one GPU (NVIDIA-TEST) has 24.00 GiB x 0.9 = 21.60 GiB",
        "weights 14.96 GiB + activations 1.93 GiB + process 1.00 GiB = 17.89 GiB",
        "3.71 GiB are left for the KV cache",
        "one request of 131072 tokens takes 16.00 GiB at 128 KiB a token",
        "Set spec.parallelism.tensor to 2, and spec.resources.gpu.count with it where it is set, or ",
        "set spec.model.maxModelLen to at most ",
    ):
        assert term in plan.message


def test_what_is_suggested_fits_and_one_step_more_does_not(llama: ModelFacts) -> None:
    refused = gpu_plan(llama, 24)
    assert gpu_plan(llama, 24, tensor=refused.smallest_tensor or 0).verdict == "Fits"
    assert refused.smallest_tensor == 2
    longest = int(refused.suggestions[-1].rsplit(" ", 1)[1])
    assert gpu_plan(llama, 24, max_model_len=longest).verdict == "Fits"
    assert gpu_plan(llama, 24, max_model_len=longest + 16).verdict == "DoesNotFit"


def test_quantization_is_suggested_where_the_model_would_fit_by_it(llama: ModelFacts) -> None:
    rounded = "set spec.model.quantization to fp8, which rounds the weights to 8 bits while they load"
    assert rounded in gpu_plan(llama, 14, max_model_len=8192).suggestions
    assert rounded not in gpu_plan(llama, 10, max_model_len=8192).suggestions
    assert "take a checkpoint quantized to 4 bits (awq)" in gpu_plan(llama, 10, max_model_len=8192).suggestions


def test_more_gpus_and_shorter_requests_are_suggested_together_where_neither_is_enough(llama: ModelFacts) -> None:
    older = replace(llama, stages=None)  # of which only GPUs that share all layers are planned
    (both,) = gpu_plan(older, 4).suggestions
    tensor, longest = map(int, re.findall(r"(?:tensor to|at most) (\d+)", both))
    assert "spec.parallelism.nodes to 2, with 8 GPUs on each" in both
    assert gpu_plan(older, 4, tensor=tensor, max_model_len=longest).verdict == "Fits"
    assert gpu_plan(older, 4, tensor=tensor).verdict == "DoesNotFit"
    assert gpu_plan(older, 4, tensor=tensor // 2, max_model_len=4096).verdict == "DoesNotFit"


LLAMA_405B = LLAMA_8B | {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
}
H100 = Device("NVIDIA-H100-80GB-HBM3", 81559 << 20, on_gpu=True)


@pytest.fixture(scope="module")
def largest_llama(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return ModelFacts.of_directory(write_checkpoint(tmp_path_factory.mktemp("405b"), LLAMA_405B))


def spread_plan(facts: ModelFacts, device: Device, **parallelism: int) -> PlanStatus:
    return plan_of(service(**ON_GPU, parallelism=parallelism).spec, facts, device)


def test_two_nodes_of_eight_gpus_are_planned_by_their_larger_stage(largest_llama: ModelFacts) -> None:
    plan = spread_plan(largest_llama, H100, tensor=8, pipeline=2, nodes=2)
    layer = 2 * 16384 * 16384 + 2 * 1024 * 16384 + 3 * 53248 * 16384
    norms = 63 * 2 * 16384
    # The second stage has as large a head as the first has an embedding, and the norm before it.
    assert plan.weights_bytes == ((63 * layer + 128256 * 16384) // 8 + norms + 16384) * 2
    assert plan.kv_bytes_per_token == 63 * 2 * 1 * 128 * 2
    assert (plan.verdict, plan.tensor, plan.pipeline) == ("Fits", 8, 2)
    assert "each of 8 GPUs of the largest of 2 stages (NVIDIA-H100-80GB-HBM3) has 79.65 GiB" in plan.message


def test_gpus_that_share_a_layer_over_nodes_are_planned_as_on_one(largest_llama: ModelFacts) -> None:
    assert spread_plan(largest_llama, H100, tensor=16, nodes=2) == spread_plan(largest_llama, H100, tensor=16)


def test_a_stage_that_does_not_fit_keeps_the_model_from_fitting(llama: ModelFacts) -> None:
    two, four = (spread_plan(llama, Device("GPU", 14 * GIB, on_gpu=True), pipeline=count) for count in (2, 4))
    assert (two.verdict, four.verdict) == ("DoesNotFit", "Fits")


@pytest.mark.parametrize(("a_node", "says"), [(None, "few nodes have more than 8"), (4, "no node has more than 4")])
def test_more_gpus_than_a_node_has_are_suggested_over_nodes(
    largest_llama: ModelFacts, a_node: int | None, says: str
) -> None:
    device = replace(H100, a_node=a_node)
    plan = spread_plan(largest_llama, device, tensor=a_node or 8)
    way = plan.suggestions[0]
    assert says in way
    names = ("tensor", "pipeline", "nodes")
    parallelism = {name: int(re.findall(rf"spec.parallelism.{name} to (\d+)", way)[0]) for name in names}
    assert parallelism["tensor"] * parallelism["pipeline"] // parallelism["nodes"] == (a_node or 8)
    assert spread_plan(largest_llama, device, **parallelism).verdict == "Fits"
    fewer = parallelism["pipeline"] - 1
    assert spread_plan(largest_llama, device, tensor=a_node or 8, pipeline=fewer, nodes=fewer).verdict == "DoesNotFit"
    advice = [one.message for one in advice_of(service(**ON_GPU), plan) if one.reason == "TensorTooSmall"]
    assert all(f"and the model needs {plan.smallest_tensor}: {way}" in message for message in advice)
    assert advice


def test_as_many_gpus_as_a_node_has_are_suggested_on_one(largest_llama: ModelFacts) -> None:
    (way, *_) = spread_plan(largest_llama, replace(H100, a_node=16), tensor=8).suggestions
    assert way == "set spec.parallelism.tensor to 16, and spec.resources.gpu.count with it where it is set"


def test_more_stages_than_layers_are_not_planned(llama: ModelFacts) -> None:
    plan = spread_plan(llama, H100, pipeline=33)
    assert (plan.verdict, plan.reason) == ("Skipped", "Indivisible")
    assert "spec.parallelism.pipeline is 33 and the model has 32 layers" in plan.message


def test_stages_of_a_model_that_an_older_engine_read_are_not_planned() -> None:
    plan = spread_plan(ModelFacts.from_json(FACTS), H100, pipeline=2)
    assert (plan.verdict, plan.reason) == ("Skipped", "NotPlanned")
    assert spread_plan(ModelFacts.from_json(FACTS), H100).verdict == "Fits"


@pytest.mark.parametrize(
    ("engine", "num_layers", "sizes"),
    [
        ("quire", 10, [3, 3, 2, 2]),
        ("vllm", 10, [2, 3, 3, 2]),
        ("vllm", 9, [2, 2, 3, 2]),
        ("vllm", 11, [3, 3, 3, 2]),
        ("vllm", 7, [4, 3]),
        ("vllm", 8, [2, 2, 2, 2]),
    ],
)
def test_layers_are_shared_out_as_the_engine_does(engine: str, num_layers: int, sizes: list[int]) -> None:
    stages = [layers_of_stage(engine, Stage(index, len(sizes)), num_layers) for index in range(len(sizes))]
    assert [len(layers) for layers in stages] == sizes
    assert [number for layers in stages for number in layers] == list(range(num_layers))


def test_layers_that_the_service_shares_out_itself_are_not_planned() -> None:
    engine = {"type": "vllm", "image": "vllm:1", "env": [{"name": "VLLM_PP_LAYER_PARTITION", "value": "20,12"}]}
    why = cannot_be_planned(service(**ON_GPU, parallelism={"pipeline": 2}, engine=engine).spec)
    assert why is not None
    assert (why.reason, "VLLM_PP_LAYER_PARTITION" in why.message) == ("OwnArguments", True)


def test_several_ranks_on_the_cpu_are_not_planned() -> None:
    spec = service(parallelism={"pipeline": 2}, resources={"gpu": {"count": 0}}).spec
    why = cannot_be_planned(spec)
    assert why is not None
    assert why.reason == "NotPlanned"


def test_a_float32_checkpoint_is_served_in_half_of_its_size_on_a_gpu(tmp_path: Path) -> None:
    config = {**SMALL, "torch_dtype": "float32"}
    facts = ModelFacts.of_directory(write_checkpoint(tmp_path, config, dtype="F32"))
    assert gpu_plan(facts, 24).weights_bytes == (facts.parameters or 0) * 2
    on_cpu = plan_of(service().spec, facts, Device("CPU", 4 * GIB, on_gpu=False))
    assert on_cpu.weights_bytes == (facts.parameters or 0) * 4


def test_a_service_on_the_cpu_is_planned_with_the_pods_memory(llama: ModelFacts) -> None:
    spec = service(model={"source": "hf://a/b", "maxModelLen": 4096}, resources={"memory": "16Gi"}).spec
    device = device_of(spec, KnownGPUs())
    assert device == Device("CPU", 16 * GIB, on_gpu=False)
    plan = plan_of(spec, llama, Device("CPU", 16 * GIB, on_gpu=False))
    assert (plan.verdict, plan.smallest_tensor) == ("DoesNotFit", None)
    assert plan.other_bytes == CPU_RESIDENT_BYTES + (128 << 20)
    (memory,) = [way for way in plan.suggestions if "spec.resources.memory" in way]
    enough = int(memory.rsplit(" ", 1)[1].removesuffix("Gi"))
    assert plan_of(spec, llama, Device("CPU", enough * GIB, on_gpu=False)).verdict == "Fits"
    assert plan_of(spec, llama, Device("CPU", (enough - 1) * GIB, on_gpu=False)).verdict == "DoesNotFit"


def test_int8_is_suggested_on_the_cpu_and_halves_the_weights_of_the_layers(llama: ModelFacts) -> None:
    def on_cpu(scheme: str) -> PlanStatus:
        model = {"source": "hf://a/b", "maxModelLen": 4096, "quantization": scheme}
        return plan_of(service(model=model).spec, llama, Device("CPU", 14 * GIB, on_gpu=False))

    plain, rounded = on_cpu("auto"), on_cpu("int8")
    ways = [way for way in plain.suggestions if "spec.model.quantization" in way]
    assert ways == ["set spec.model.quantization to int8, which rounds the weights to 8 bits while they load"]
    assert (plain.verdict, rounded.verdict) == ("DoesNotFit", "Fits")
    in_layers = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096)
    assert (plain.weights_bytes or 0) - (rounded.weights_bytes or 0) == in_layers


def test_a_tensor_size_that_does_not_divide_the_heads_is_not_planned(llama: ModelFacts) -> None:
    plan = gpu_plan(llama, 24, tensor=3)
    assert (plan.verdict, plan.reason) == ("Skipped", "Indivisible")


def test_a_length_beyond_the_models_positions_is_not_planned(llama: ModelFacts) -> None:
    plan = gpu_plan(llama, 24, max_model_len=131073)
    assert (plan.verdict, plan.reason) == ("Skipped", "BeyondPositions")


def test_a_model_of_another_architecture_is_never_guessed() -> None:
    with pytest.raises(ValueError, match="JambaForCausalLM is not supported: use one of LlamaForCausalLM"):
        ModelFacts.of({**LLAMA_8B, "architectures": ["JambaForCausalLM"]}, {})


NODE = {
    "nvidia.com/gpu.memory": "46068",
    "nvidia.com/gpu.product": "NVIDIA-L40S",
    "zone": "a",
}
BIG = {**NODE, "nvidia.com/gpu.memory": "81559", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "zone": "b"}


def device(gpu: dict[str, Any], *nodes: dict[str, str], zone: str | None = None, **products: int) -> Any:
    selector = {"nodeSelector": {"zone": zone}} if zone else {}
    spec = service(resources={"gpu": {"count": 1, **gpu}}, scheduling=selector).spec
    return device_of(spec, KnownGPUs(nodes, {name.replace("_", "-"): size for name, size in products.items()}))


def test_the_spec_wins_over_the_nodes_and_the_nodes_over_the_table() -> None:
    product = {"product": "NVIDIA-L40S"}
    assert device(product).memory == PRODUCTS["NVIDIA-L40S"] << 20
    assert device(product, {**NODE, "nvidia.com/gpu.memory": "40000"}).memory == 40000 << 20
    assert device({**product, "memoryGiB": 30}, NODE).memory == 30 * GIB
    assert device(product, NVIDIA_L40S=41000).memory == 41000 << 20


def test_the_nodes_that_count_are_those_that_pods_may_run_on() -> None:
    assert device({}, NODE, BIG, zone="b") == Device("NVIDIA-H100-80GB-HBM3", 81559 << 20, on_gpu=True)
    assert device({"product": "NVIDIA-L40S"}, NODE, BIG).memory == 46068 << 20


def test_the_gpus_of_a_node_are_those_of_the_largest_that_pods_may_run_on() -> None:
    four, eight = {**NODE, "nvidia.com/gpu.count": "4"}, {**BIG, "nvidia.com/gpu.count": "8"}
    small = {**NODE, "nvidia.com/gpu.count": "1"}
    assert device({}, four, small, eight, zone="a").a_node == 4
    assert device({}, NODE).a_node is None
    assert device({"resourceName": "nvidia.com/gpu.shared"}, four).a_node is None


def test_gpus_of_several_sizes_are_not_guessed_between() -> None:
    found = device({}, NODE, BIG)
    assert isinstance(found, Skipped)
    assert found.reason == "SeveralGPUs"
    assert "45.0 GiB (NVIDIA-L40S) and 79.6 GiB (NVIDIA-H100-80GB-HBM3)" in found.message


SLICE = "nvidia.com/mig-1g.10gb"


def test_a_slice_has_the_memory_that_its_own_label_says() -> None:
    node = {**BIG, f"{SLICE}.memory": "9856", f"{SLICE}.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}
    found = device({"resourceName": SLICE}, node)
    assert found == Device("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", 9856 << 20, on_gpu=True)
    assert device({"resourceName": SLICE, "memoryGiB": 9}, node).memory == 9 * GIB


@pytest.mark.parametrize("product", [{}, {"product": "NVIDIA-H100-80GB-HBM3"}])
def test_a_slice_is_never_taken_for_its_whole_gpu(product: dict[str, Any]) -> None:
    found = device({"resourceName": SLICE, **product}, BIG)
    assert isinstance(found, Skipped)
    assert found.reason == "UnknownGPU"
    assert f"one {SLICE}: write spec.resources.gpu.memoryGiB" in found.message


def test_a_share_of_a_gpus_time_has_all_of_its_memory() -> None:
    assert device({"resourceName": "nvidia.com/gpu.shared"}, BIG).memory == 81559 << 20


@pytest.mark.parametrize("gpu", [{}, {"product": "NVIDIA-Z9"}])
def test_an_unknown_gpu_is_not_guessed(gpu: dict[str, Any]) -> None:
    found = device(gpu)
    assert isinstance(found, Skipped)
    assert found.reason == "UnknownGPU"
    assert "memoryGiB" in found.message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"engine": {"args": ["--max-model-len=100"]}}, "spec.engine.args has --max-model-len"),
        ({"engine": {"args": ["--num_gpu_blocks_override", "9"]}}, "--num-gpu-blocks-override"),
        ({"podTemplate": {"spec": {"containers": [{"name": "engine", "command": ["x"]}]}}}, "the engine's command"),
    ],
)
def test_a_service_that_goes_around_the_fields_is_not_planned(spec: dict[str, Any], words: str) -> None:
    why = cannot_be_planned(service(**spec).spec)
    assert why is not None
    assert words in why.message


def test_no_flag_that_the_engines_own_plan_reads_is_passed_over() -> None:
    found = importlib.util.find_spec("quire_engine.starting.memory")
    assert found is not None
    assert found.origin is not None
    read = set(re.findall(r"config\.(\w+)", Path(found.origin).read_text())) & {f.name for f in fields(EngineConfig)}
    # Those of `adapter_room`, but for what adapters are planned with. Without a prefix cache, embeddings take less and
    # all else as much.
    read = (read | {"enable_lora", "lora_modules"}) - {"max_lora_rank", "enable_prefix_caching"}
    assert {"swap_space", "block_size", "max_model_len"} < read
    for name in read:
        flag = f"--{name.replace('_', '-')}"
        why = cannot_be_planned(service(engine={"args": [f"{flag}=1"]}).spec)
        assert why is not None, f"{flag} changes the sum"
        assert f"spec.engine.args has {flag}" in why.message


@pytest.mark.parametrize(
    ("flag", "num_adapters", "rank"),
    [("--max-lora-rank=64", 4, 64), ("--max_loras=5", 5, 16), ("--max-cpu-loras=8", 8, 16)],
)
def test_adapters_are_planned_by_the_flags_that_no_field_has(
    llama: ModelFacts, flag: str, num_adapters: int, rank: int
) -> None:
    adapters = [{"name": "sql", "source": "hf://example-org/sql"}]
    spec = service(
        **{**ON_GPU, "model": {**ON_GPU["model"], "maxModelLen": 8192, "adapters": adapters}}, engine={"args": [flag]}
    ).spec
    assert cannot_be_planned(spec) is None
    others = plan_of(spec, llama, Device("NVIDIA-TEST", 24 * GIB, on_gpu=True)).other_bytes or 0
    linears = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)  # inputs and outputs of a layer's seven
    widest = 4096 + 2 * 14336 + rank
    one_more = num_adapters + 1  # which is being loaded
    assert others - GPU_RESIDENT_BYTES == (one_more * rank * 32 * linears + 8192 * widest) * 2


def test_swap_space_is_beside_what_is_planned_of_a_gpu() -> None:
    assert cannot_be_planned(service(**ON_GPU, engine={"args": ["--swap-space=4"]}).spec) is None


def test_flags_that_cost_no_memory_do_not_keep_a_service_from_being_planned() -> None:
    spec = {"engine": {"args": ["--seed=3"]}, "podTemplate": {"spec": {"containers": [{"name": "sidecar"}]}}}
    assert cannot_be_planned(service(**spec).spec) is None


def test_the_hub_that_is_asked_is_the_one_that_the_pods_ask() -> None:
    def endpoint(settings: Settings, *env: dict[str, Any]) -> Any:
        return hub_endpoint(service(engine={"env": list(env)}), settings)

    mirror = Settings(hub_endpoint="https://mirror.example/hf/")
    assert endpoint(Settings()) == "https://huggingface.co"
    assert endpoint(mirror) == "https://mirror.example/hf"
    assert endpoint(mirror, {"name": "HF_ENDPOINT", "value": "http://hub:8080"}) == (
        "http://hub.default.svc.cluster.local:8080"
    )
    for env in ({"valueFrom": {}}, {"value": "file:///etc/passwd"}):
        assert endpoint(mirror, {"name": "HF_ENDPOINT", **env}).reason == "HubUnknown"


def test_a_hub_that_a_service_chose_is_asked_only_by_leave() -> None:
    own = service(engine={"env": [{"name": "HF_ENDPOINT", "value": "http://169.254.169.254"}]})
    assert hub_refused(service(), Settings()) is None
    assert hub_refused(own, Settings()).reason == "ForeignHub"
    assert hub_refused(own, Settings(hub_endpoint="https://mirror.example")).reason == "ForeignHub"
    assert hub_refused(own, Settings(plan_reads_any_hub=True)) is None


def test_products_come_from_the_settings() -> None:
    settings = settings_from({"QUIRE_OPERATOR_GPU_PRODUCTS": "My-GPU=1000,Other=2000"})
    assert settings.products() == {"My-GPU": 1000, "Other": 2000}
    with pytest.raises(SettingsError, match="--gpu-product: 'My-GPU' is no GPU product: write NAME=MIB"):
        settings_from({}, gpu_products=("My-GPU",))


def plan_file(tmp_path: Path, **spec: Any) -> str:
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump(manifest(**spec)))
    return str(file)


def test_the_command_prints_the_sum_of_a_checkpoint_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", LLAMA_8B)
    gpu = {"count": 1, "product": "NVIDIA-L4"}
    file = plan_file(tmp_path, model={"maxModelLen": 4096}, resources={"gpu": gpu})
    main(["plan", file, "--config", str(checkpoint)])
    table = capsys.readouterr().out
    assert table.startswith("llama: fits\n")
    assert "  weights                     14.96 GiB\n" in table
    assert "  KV cache of a token       128.000 KiB\n" in table


def test_the_command_fails_for_a_model_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", LLAMA_8B)
    file = plan_file(tmp_path, resources={"gpu": {"count": 1}})
    with pytest.raises(SystemExit) as ended:
        main(["plan", file, "--config", str(checkpoint), "--gpu-memory-gib", "24"])
    assert ended.value.code == 1
    table = capsys.readouterr().out
    assert table.startswith("llama: does not fit\n")
    assert "GPUs needed" in table
    assert "  - set spec.parallelism.tensor to 2" in table


def test_the_command_fails_for_weights_that_the_engine_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", SMALL | {"quantization_config": {"quant_method": "modelopt"}})
    file = plan_file(tmp_path, resources={"gpu": {"count": 1}})
    with pytest.raises(SystemExit) as ended:
        main(["plan", file, "--config", str(checkpoint), "--gpu-memory-gib", "24"])
    assert ended.value.code == 1
    told = capsys.readouterr().out
    assert told.startswith("llama: cannot be served: ")
    assert "quant_method 'modelopt' is not supported" in told


def test_what_the_engine_cannot_read_is_said_whether_or_not_the_gpu_is_known(llama: ModelFacts) -> None:
    unreadable = replace(llama, unreadable="its weights are of clay")
    unknown = Skipped("UnknownGPU", "nothing says which")
    plan = plan_of(service(**ON_GPU).spec, unreadable, unknown)
    assert (plan.verdict, plan.reason) == ("UnsupportedModel", None)
    assert plan.message.endswith("its weights are of clay")
    vllm = service(**ON_GPU, engine={"type": "vllm", "image": "engine:1"}).spec
    assert plan_of(vllm, unreadable, unknown).reason == "UnknownGPU"


def test_the_command_says_why_there_is_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", plan_file(tmp_path)])
    assert "not planned (NotPlanned)" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="has no config"):
        main(["plan", plan_file(tmp_path), "--config", str(tmp_path / "empty")])
