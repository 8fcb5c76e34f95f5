"""What is wrong with a quantized checkpoint is said in one line, with the tensor, the field or the flag."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_engine.config import EngineConfig
from quire_engine.distributed.ranks import TensorRanks, build_for
from quire_engine.engine import StartupError, build_engine
from quire_engine.layers.linear import ColumnLinear, Rows
from quire_engine.memory_plan.quantization import Awq, quantization_of, skips
from quire_engine.quantization.awq import AwqLinear
from tests.engine.models.checkpoints import FAMILIES, make_model, save
from tests.engine.quantization.formats import FORMATS, awq_config, compressed, edit_config, gptq_config, save_quantized

pytestmark = pytest.mark.usefixtures("one_thread")

AWQ, GPTQ, FP8 = "awq, groups of 32", "gptq, 4 bits, act-order", "fp8 by blocks"
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def directory(form: str) -> Path:
        if form not in made:
            cls, config = FAMILIES["llama"]
            made[form] = save_quantized(make_model(cls, config()), tmp_path_factory.mktemp("sound"), FORMATS[form])
        return made[form]

    return directory


def start(model: Path, **changes: Any) -> None:
    build_engine(EngineConfig(model=str(model), device="cpu", num_gpu_blocks_override=64, **changes))


def change(end: str, edit: Callable[[torch.Tensor], torch.Tensor | None], of: str = Q) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        file = directory / "model.safetensors"
        tensors = load_file(file)
        changed = edit(tensors.pop(f"{of}.{end}"))
        if changed is not None:
            tensors[f"{of}.{end}"] = changed.contiguous()
        save_file(tensors, file, metadata={"format": "pt"})

    return apply


def add(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        file = directory / "model.safetensors"
        save_file(load_file(file) | {name: tensor}, file, metadata={"format": "pt"})

    return apply


@pytest.mark.parametrize(
    ("form", "break_it", "message"),
    [
        (AWQ, change("qweight", lambda t: None), rf"lacks 1 of .* tensors, {Q}.qweight"),
        (AWQ, change("qzeros", lambda t: None), rf"{Q}.qzeros"),
        (AWQ, change("scales", lambda t: t[:1]), rf"{Q}.scales has the shape \[1, 64\] and .* asks for \[2, 64\]"),
        (AWQ, change("qzeros", lambda t: t[:, :4]), rf"{Q}.qzeros has the shape \[2, 4\] and .* asks for \[2, 8\]"),
        (AWQ, change("qweight", lambda t: t.t()), rf"{Q}.qweight has the shape \[8, 64\] and .* asks for \[64, 8\]"),
        (AWQ, change("qweight", lambda t: t.float()), rf"{Q}.qweight has the type F32 and config.json asks for I32"),
        (AWQ, add(f"{Q}.g_idx", torch.zeros(64, dtype=torch.int32)), rf"holds {Q}.g_idx, which the model"),
        (GPTQ, change("g_idx", lambda t: None), rf"{Q}.g_idx"),
        (GPTQ, change("g_idx", lambda t: t + 1), rf"{Q}.g_idx has the group 4: it must be from 0 to 3"),
        (GPTQ, change("g_idx", lambda t: t[:-1]), rf"{Q}.g_idx has the shape \[63\] and .* asks for \[64\]"),
        (GPTQ, change("g_idx", lambda t: t - 1, DOWN), rf"{DOWN}.g_idx has the group -1"),
        (GPTQ, change("qweight", lambda t: t[:4]), rf"{Q}.qweight has the shape \[4, 64\] and .* asks for \[8, 64\]"),
        (GPTQ, add(f"{Q}.bias", torch.ones(64)), rf"holds {Q}.bias, which the model"),
        (FP8, change("weight_scale_inv", lambda t: None), rf"lacks 1 of .* tensors, {Q}.weight_scale_inv"),
        (FP8, change("weight_scale_inv", lambda t: t[:1]), rf"{Q}.weight_scale_inv has the shape \[1, 2\]"),
        (FP8, change("weight", lambda t: t.float()), rf"{Q} is not: this is not supported|{Q}.weight"),
        (FP8, change("weight", lambda t: t[:32]), rf"{Q}.weight has the shape \[32, 64\]"),
        (FP8, lambda d: edit_config(d, quantization_config=None), "quantized, and nothing says how"),
        (FP8, lambda d: edit_config(d, quantization_config=awq_config(32)), "tensors|holds"),
        (AWQ, lambda d: edit_config(d, quantization_config=gptq_config(4, 32)), "qweight has the shape"),
        (GPTQ, lambda d: edit_config(d, quantization_config=gptq_config(8, 16, desc_act=True)), "has the shape"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    sound: Callable[[str], Path], tmp_path: Path, form: str, break_it: Callable[[Path], object], message: str
) -> None:
    directory = Path(shutil.copytree(sound(form), tmp_path / "model"))
    break_it(directory)
    with pytest.raises(StartupError, match=message) as caught:
        start(directory)
    assert caught.value.reason == "InvalidCheckpoint"
    assert "\n" not in str(caught.value)


def test_biases_of_zeros_that_autogptq_adds_are_no_fault(sound: Callable[[str], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(sound(GPTQ), tmp_path / "model"))
    add(f"{Q}.bias", torch.zeros(64))(directory)
    start(directory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not supported: there are awq and gptq of 4"),
        ({"quant_method": ["awq"]}, r"quant_method \['awq'\] is not supported"),
        ("awq", "quantization_config is 'awq': it must be an object"),
        (awq_config(32) | {"bits": 8}, "awq's bits 8 is not supported: only 4"),
        (awq_config(32) | {"version": "gemv"}, "version gemv is not supported: only gemm"),
        (awq_config(32) | {"zero_point": False}, "zero_point False is not supported: only true"),
        (awq_config(0), "group_size 0 is not supported: only -1 or a whole number"),
        (gptq_config(3, 32), "gptq's bits 3 is not supported: only 2, 4 or 8"),
        (gptq_config(4, 32, checkpoint_format="marlin"), "checkpoint_format marlin is not supported"),
        (gptq_config(4, 32, lm_head=True), "lm_head True is not supported: only an output head that is not quantized"),
        (gptq_config(4, 32, dynamic={"-:.*": {}}), "dynamic set is not supported: only the same settings"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt e5m2 is not supported: only e4m3"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size \[128\] is not supported"),
        (compressed("group"), "strategy group is not supported: only tensor, channel or block"),
        (compressed("channel", num_bits=4, type="int"), "of 4 bits and type 'int' is not supported: only 8 bits"),
        (compressed("channel") | {"config_groups": {}}, "config_groups of 0 groups is not supported: only one group"),
        (compressed("channel") | {"ignore": ["re:("]}, r"ignore re:\( is not supported: only a regular expression"),
    ],
)
def test_a_scheme_or_a_setting_that_is_not_there_is_named(
    sound: Callable[[str], Path], tmp_path: Path, settings: object, message: str
) -> None:
    directory = Path(shutil.copytree(sound(AWQ), tmp_path / "model"))
    edit_config(directory, quantization_config=settings)
    with pytest.raises(StartupError, match=message) as caught:
        start(directory)
    assert caught.value.reason == "UnsupportedModel"


def test_the_flag_has_to_agree_with_the_checkpoint(sound: Callable[[str], Path], tmp_path: Path) -> None:
    start(sound(AWQ), quantization="awq")
    start(sound(AWQ), quantization="awq_marlin")
    start(sound(FP8), quantization="fp8")
    with pytest.raises(
        StartupError, match="InvalidFlag: --quantization is gptq and the checkpoint is quantized by awq"
    ):
        start(sound(AWQ), quantization="gptq")
    cls, config = FAMILIES["llama"]
    plain = save(make_model(cls, config()), tmp_path)
    with pytest.raises(StartupError, match="InvalidFlag: --quantization is awq and the checkpoint is not quantized"):
        start(plain, quantization="awq")
    with pytest.raises(ValueError, match="--quantization is 'int3': it must be one of awq, "):
        EngineConfig(model=str(plain), quantization="int3")


def test_ranks_that_would_cut_a_packed_word_are_refused_with_the_flag_and_the_numbers() -> None:
    with build_for(TensorRanks(1, 4)):
        layer = ColumnLinear(64, Rows(16))
    with pytest.raises(
        ValueError, match="--tensor-parallel-size gives a rank the rows 4 to 8 of up_proj, of which 8 are packed as one"
    ):
        layer.create(AwqLinear(Awq(group_size=32), "up_proj"))


@pytest.mark.parametrize(
    ("entry", "path", "skipped"),
    [
        ("lm_head", "lm_head", True),
        ("gate", "model.layers.0.mlp.gate", True),
        ("gate", "model.layers.0.mlp.gate_proj", False),
        ("model.layers.1", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1", "model.layers.10.mlp.up_proj", False),
        ("re:.*up_proj", "model.layers.10.mlp.up_proj", True),
        ("re:up_proj", "model.layers.10.mlp.up_proj", False),
    ],
)
def test_a_layer_is_left_alone_by_its_name_or_an_expression(entry: str, path: str, skipped: bool) -> None:
    quantization = quantization_of({"quantization_config": compressed("channel") | {"ignore": [entry]}})
    assert quantization is not None
    assert skips(quantization, path) is skipped


@pytest.mark.parametrize("form", [FP8, AWQ])
def test_quantized_weights_of_which_config_says_nothing_are_named(
    sound: Callable[[str], Path], tmp_path: Path, form: str
) -> None:
    """As ModelOpt writes them, with a file of its own."""
    shutil.copytree(sound(form), tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, quantization_config=None)
    (tmp_path / "hf_quant_config.json").write_text('{"producer": {"name": "modelopt"}}')
    says = "its weights are quantized, and nothing says how: config.json has no quantization_config; hf_quant_config"
    with pytest.raises(StartupError, match=says) as raised:
        start(tmp_path)
    assert "model.safetensors holds model.layers.0." in str(raised.value)


@pytest.mark.parametrize("scheme", ["fp8", "int8"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_weight_that_cannot_be_rounded_is_named(tmp_path: Path, scheme: str, value: float) -> None:
    cls, config = FAMILIES["llama"]
    file = save(make_model(cls, config()), tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{Q}.weight"][3, 5] = value
    save_file(tensors, file, metadata={"format": "pt"})
    says = rf"model.safetensors: {Q}.weight holds an infinity or NaN, which cannot be rounded to 8 bits"
    with pytest.raises(StartupError, match=says) as raised:
        start(tmp_path, quantization=scheme)
    assert raised.value.reason == "InvalidCheckpoint"
