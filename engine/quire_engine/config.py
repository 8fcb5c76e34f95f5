"""The engine's settings as one frozen dataclass. Flags are derived from it: names, types, defaults and help."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from quire_engine.adapter_modules import adapter_modules
from quire_engine.memory_plan.adapter_sizes import MAX_LORA_RANK, MAX_LORAS
from quire_engine.memory_plan.quantization import SCHEME_OF_FLAG
from quire_engine.multimodal.limits import most_images
from quire_engine.multimodal.processor_kwargs import processor_kwargs

MAX_SWAP_GIB = 4096
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's


def setting(
    default: Any, help: str, *, choices: tuple[str, ...] | None = None, only: Any = ..., repeatable: bool = False
) -> Any:
    """A field with its help text. `only` is the one value that works until the feature behind it is built.

    A flag that is `repeatable` adds its values when it comes again; another one's last values win.
    """
    metadata: dict[str, Any] = {"help": help, "choices": choices, "repeatable": repeatable}
    if only is not ...:
        metadata["only"] = only
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything the engine process needs to know. Sizes are in tokens, pages or bytes, as named."""

    model: str = setting("", "a directory with config.json, or a Hugging Face name such as org/model")
    tokenizer: str | None = setting(None, "directory or name of the tokenizer; the model's own when unset")
    revision: str | None = setting(None, "branch, tag or commit of the model on the hub")
    download_dir: str | None = setting(None, "where downloads are kept; HF_HOME's hub folder when unset")
    load_format: str = setting("auto", "dummy: random weights, for measuring", choices=("auto", "safetensors", "dummy"))
    model_impl: str = setting(
        "auto",
        "whose code runs the model: Quire's, or transformers' where Quire has no such family",
        choices=("auto", "quire", "transformers"),
    )
    trust_remote_code: bool = setting(
        False, "run the tokenizer's and transformers models' own code from the checkpoint"
    )
    task: str = setting(
        "auto",
        "generate text, or embed: make vectors of prompts; auto takes what the checkpoint is for",
        choices=("auto", "generate", "embed"),
    )
    dtype: str = setting(
        "auto",
        "type of weights and activations; auto takes the checkpoint's, and bfloat16 for float32 on a GPU",
        choices=("auto", "float32", "bfloat16", "float16", "float", "half"),
    )
    generation_config: str = setting(
        "auto",
        "defaults of requests: auto takes the model's generation_config.json, vllm none, or a directory with the file",
    )
    max_model_len: int | None = setting(None, "longest prompt plus answer in tokens; the model's own when unset")
    seed: int = setting(0, "seed of the requests that bring none, and of dummy weights")
    device: str = setting("auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))

    block_size: int = setting(16, "tokens in a page of the KV cache: 8, 16, 32, 64 or 128")
    gpu_memory_utilization: float = setting(0.9, "share of the device's memory that the engine may use, in (0, 1]")
    kv_cache_memory_bytes: int | None = setting(None, "bytes of the KV cache; replaces the computed size")
    num_gpu_blocks_override: int | None = setting(None, "pages of the KV cache; replaces the computed number")
    swap_space: float | None = setting(
        None,
        "GiB of host memory, for each GPU, that keeps the pages of preempted requests; with 0 they are computed anew; "
        "when unset 4 on a GPU, or what the host has left, and 0 on CPU",
    )
    kv_cache_dtype: str = setting("auto", "type of the KV cache", choices=("auto", "fp8"), only="auto")
    enable_prefix_caching: bool = setting(True, "reuse the pages of prompts that begin alike")

    max_num_seqs: int = setting(256, "requests that may run at once")
    max_num_batched_tokens: int | None = setting(
        None, "tokens that one step may compute; when unset 8192 on a GPU and 2048 on CPU"
    )
    enable_chunked_prefill: bool = setting(True, "split long prompts over steps, so that decodes never wait for them")
    scheduling_policy: str = setting("fcfs", "order of waiting requests", choices=("fcfs", "priority"))
    limit_mm_per_prompt: str | None = setting(
        None, 'most images in a prompt, as image=4 or {"image": 4}; 16 when unset. With 0 their encoder is not loaded'
    )
    mm_processor_kwargs: str | None = setting(
        None, 'JSON of settings that the image processor has instead of its own, as {"max_pixels": 1003520}'
    )
    async_scheduling: bool | None = setting(
        None, "prepare the next step while the device computes one; when unset on a GPU alone. Of one rank"
    )
    profile_steps: int = setting(
        0, "steps to time from the first request on: then a table is logged, and a trace written for Chrome's viewers"
    )
    enforce_eager: bool = setting(False, "run without CUDA graphs")

    tensor_parallel_size: int = setting(1, "ranks (GPUs, or processes on CPU) that share each layer")
    pipeline_parallel_size: int = setting(1, "groups of such ranks, which share the layers among them")
    enable_expert_parallel: bool = setting(False, "ranks hold whole experts each, instead of a part of all of them")
    distributed_executor_backend: str | None = setting(None, "how ranks are started: as processes", choices=("mp",))
    nnodes: int = setting(1, "machines or pods that the ranks are on, as many ranks on each")
    node_rank: int = setting(0, "number of this node; node 0 serves, the others follow it")
    master_addr: str | None = setting(None, "address or name of node 0, where there are several")
    master_port: int | None = setting(
        None, "port at which ranks find node 0; when unset 29501 with several nodes, else any that is free"
    )
    disable_custom_all_reduce: bool = setting(
        False, "leave all sums over GPUs to NCCL, also small ones, which GPUs that NVLink joins add in one step"
    )
    quantization: str | None = setting(
        None,
        "scheme of quantized weights, the checkpoint's when unset. fp8 and int8 also round float weights while loading",
        choices=tuple(SCHEME_OF_FLAG),
    )
    speculative_config: str | None = setting(None, "JSON of the speculative decoding method", only=None)
    speculative_model: str | None = setting(None, "the model that drafts tokens", only=None)
    num_speculative_tokens: int | None = setting(None, "tokens that are drafted for a step", only=None)
    enable_lora: bool = setting(False, "serve LoRA adapters, which requests choose as their model")
    lora_modules: tuple[str, ...] = setting(
        (),
        'adapters to begin with, as name=folder or {"name": ..., "path": ..., "base_model_name": ..., "revision": ...}',
    )
    max_loras: int = setting(MAX_LORAS, "adapters that requests may run with at once")
    max_lora_rank: int = setting(MAX_LORA_RANK, "largest rank of an adapter")
    max_cpu_loras: int | None = setting(
        None, "adapters that may be loaded at once; when unset --max-loras, or as many as --lora-modules has"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            flag = "--" + f.name.replace("_", "-")
            choices = f.metadata["choices"]
            if choices is not None and value is not None and value not in choices:
                raise ValueError(f"{flag} is {value!r}: it must be one of {', '.join(choices)}")
            if "only" in f.metadata and value != f.metadata["only"]:
                only = f.metadata["only"]
                raise ValueError(
                    f"{flag} {value} is not supported yet: leave it {'out' if only is None else f'at {only}'}"
                )
        if self.block_size not in (8, 16, 32, 64, 128):
            raise ValueError(f"--block-size is {self.block_size}: it must be 8, 16, 32, 64 or 128")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ValueError(
                f"--gpu-memory-utilization is {self.gpu_memory_utilization}: it must be above 0 and at most 1"
            )
        if self.swap_space is not None and not 0.0 <= self.swap_space <= MAX_SWAP_GIB:
            raise ValueError(f"--swap-space is {self.swap_space}: it must be between 0 and {MAX_SWAP_GIB} GiB")
        for name in (
            *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_gpu_blocks_override"),
            *("tensor_parallel_size", "pipeline_parallel_size", "nnodes", "max_loras", "max_cpu_loras"),
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")
        if self.profile_steps < 0:
            raise ValueError(f"--profile-steps is {self.profile_steps}: it must be at least 0")
        most_images(self.limit_mm_per_prompt)
        processor_kwargs(self.mm_processor_kwargs)
        self._check_adapters()
        self._check_ranks()

    @property
    def adapters(self) -> dict[str, str]:
        """The folders of --lora-modules, by name."""
        return {module.name: module.path for module in adapter_modules(self.lora_modules)}

    @property
    def adapter_room(self) -> int:
        """Adapters that may be loaded at once."""
        return self.max_cpu_loras or max(self.max_loras, len(self.lora_modules))

    def overlaps(self, device: str) -> bool:
        """Whether steps are prepared ahead on a `device` of this type."""
        alone = self.tensor_parallel_size * self.pipeline_parallel_size == 1
        return alone and (device == "cuda" if self.async_scheduling is None else self.async_scheduling)

    def _check_adapters(self) -> None:
        if self.max_lora_rank not in LORA_RANKS:
            raise ValueError(
                f"--max-lora-rank is {self.max_lora_rank}: it must be one of {', '.join(map(str, LORA_RANKS))}"
            )
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"--max-cpu-loras is {self.max_cpu_loras}: it must be at least --max-loras, {self.max_loras}"
            )
        modules = adapter_modules(self.lora_modules)
        if modules and not self.enable_lora:
            raise ValueError(f"--lora-modules names {modules[0].name}: set --enable-lora too")
        if len(modules) > self.adapter_room:
            raise ValueError(
                f"--lora-modules has {len(modules)} adapters and --max-cpu-loras is {self.max_cpu_loras}: raise it"
            )

    def _check_ranks(self) -> None:
        ranks = self.tensor_parallel_size * self.pipeline_parallel_size
        if ranks % self.nnodes:
            raise ValueError(
                f"--nnodes is {self.nnodes}: it must divide the {ranks} ranks, "
                "--tensor-parallel-size x --pipeline-parallel-size"
            )
        if self.async_scheduling and ranks > 1:
            raise ValueError(
                f"--async-scheduling is set and --tensor-parallel-size x --pipeline-parallel-size is {ranks}: it works "
                "with one rank, so leave it out"
            )
        if not 0 <= self.node_rank < self.nnodes:
            raise ValueError(
                f"--node-rank is {self.node_rank}: it must be between 0 and {self.nnodes - 1}, for --nnodes"
            )
        if self.nnodes > 1 and not self.master_addr:
            raise ValueError(f"--nnodes is {self.nnodes}: give all nodes the address of node 0 as --master-addr")
        if self.master_port is not None and not 0 < self.master_port < 65536:
            raise ValueError(f"--master-port is {self.master_port}: it must be between 1 and 65535")
