"""llama.cpp as a process that answers loads, run by the Python of an environment with llama-cpp-python and gguf.

`PYTHON cpu_llama_cpp.py MODEL TYPE THREADS FILE`: the model in the directory MODEL, a Llama, is written to FILE in
llama.cpp's format with weights of TYPE (bf16 or q8_0), unless it is there. Then one JSON list a line in (streams,
output_len and the prompts' tokens), one object of figures a line out. Prompts are taken in rounds of so many streams,
each a batch, as a server does whose requests come at once; nothing is kept from one round to the next.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
_ERROR = 4  # of ggml's levels of logs
MOST_TOKENS = 8192 + 64 * 512
"""Places in the cache: of the longest prompt, or of 64 streams of 512 tokens."""


def main() -> None:
    """Answer until the input ends."""
    model, weights, threads, file = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    if not file.is_file():
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        write_gguf(model, weights, unfinished)
        unfinished.rename(file)
    engine = Engine(file, threads)
    for line in sys.stdin:
        streams, output_len, prompts = json.loads(line)
        firsts, later, begun = [], [], time.perf_counter()
        for at in range(0, len(prompts), streams):
            first, rest = engine.generate(prompts[at : at + streams], output_len)
            firsts.append(first)
            later.append(rest / max(1, output_len - 1))
        figures = {
            "output_throughput": len(prompts) * output_len / (time.perf_counter() - begun),
            "median_ttft_ms": statistics.median(firsts) * 1000,
            "median_tpot_ms": statistics.median(later) * 1000,
        }
        print(json.dumps(figures), flush=True)


class Engine:
    """A model and its cache, with llama.cpp's own settings but for threads and room."""

    def __init__(self, file: Path, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self._log = llama_cpp.llama_log_callback(errors_alone)  # kept, since C does not
        llama_cpp.llama_log_set(self._log, None)
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_seq_max = MOST_TOKENS, 8192, 64
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True  # one stream may then have the room of all
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot run {file}")
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)

    def generate(self, prompts: list[list[int]], output_len: int) -> tuple[float, float]:
        """Greedy answers to all prompts together: seconds to the first token of each, and from there to the last."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        begun, answers = time.perf_counter(), self.first_tokens(prompts)
        first = time.perf_counter()
        for step in range(output_len - 1):
            row = [(token, len(prompts[i]) + step, i, True) for i, token in enumerate(answers)]
            answers = self._run(row)
        return first - begun, time.perf_counter() - first

    def first_tokens(self, prompts: list[list[int]]) -> list[int]:
        """The first token after each prompt, from as many batches as it takes."""
        answers: list[int] = []
        rows = [
            (token, at, i, at == len(prompt) - 1) for i, prompt in enumerate(prompts) for at, token in enumerate(prompt)
        ]
        for at in range(0, len(rows), 8192):
            answers += self._run(rows[at : at + 8192])
        return answers

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run tokens, each with its position, sequence and whether the next is wanted; the next of those wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise RuntimeError(f"llama.cpp refused a batch of {len(rows)} tokens")
        return [self._greedy(i) for i, row in enumerate(rows) if row[3]]

    def _greedy(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._words,)).argmax())


def write_gguf(model: Path, weights: str, file: Path) -> None:
    """Write a checkpoint of Llama's architecture in llama.cpp's format, without a tokenizer."""
    config = json.loads((model / "config.json").read_text())
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config.get("head_dim") or width // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, values in checkpoint_tensors(model):
        if name.endswith("q_proj.weight"):
            values = rotated(values, heads)
        elif name.endswith("k_proj.weight"):
            values = rotated(values, kv_heads)
        add(writer, WHOLE.get(name) or layer_name(name), values, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def checkpoint_tensors(model: Path) -> list[tuple[str, Any]]:
    """Names and values, in float32, of a checkpoint in bfloat16."""
    found = []
    for file in sorted(model.glob("*.safetensors")):
        content = file.read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:begin]).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                halves = np.frombuffer(content[begin + start : begin + end], np.uint16)
                found.append((name, (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])))
    return found


def layer_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` as `blk.3.ffn_up.weight`."""
    layer, _, inner = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{layer}.{TENSORS[inner]}.weight"


def rotated(values: Any, heads: int) -> Any:
    """Rows in the order of llama.cpp, which rotates neighbours where the checkpoint's rotation is of halves."""
    rows = values.reshape(heads, 2, len(values) // heads // 2, -1)
    return rows.swapaxes(1, 2).reshape(values.shape)


def add(writer: Any, name: str, values: Any, weights: str) -> None:
    """Add a tensor: matrices in the type asked for, vectors in float32."""
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    kind = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[weights]
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def errors_alone(level: int, text: bytes, user_data: Any) -> None:
    """Say what went wrong and nothing else."""
    if level == _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    main()
