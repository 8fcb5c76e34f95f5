"""Steps that are handed to the device before the tokens of the step before them have come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quire_engine import engine
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineRequest
from quire_engine.execution import model_runner
from quire_engine.execution.model_runner import ModelRunner
from quire_engine.execution.padded_decodes import Run
from quire_engine.sampling.greatest import by_torch
from quire_engine.sampling_params import SamplingParams
from tests.engine.execution.test_padded_decodes import LLAMA, MORE_FAMILIES, answers, build, device, recorded
from tests.engine.models.checkpoints import ALL, greedy_reference, make_model, mixed_prompts, save

__all__ = ["device", "recorded"]  # fixtures

pytestmark = pytest.mark.usefixtures("one_thread")

# What has the host look at a tensor, or at how large one becomes.
LOOKS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")


class Refusing(TorchDispatchMode):
    """Has no operation look at a tensor from the host, which on a GPU would wait for all that was launched before."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        assert name not in LOOKS, f"{name} waits for the device"
        assert not masks, f"{name} with a mask waits for the device"
        return func(*args, **kwargs or {})


class Watch:
    """Refuses reads while it is `on`, but for what stands for the device's own work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        self.num_watched = 0
        for name in READS:
            monkeypatch.setattr(torch.Tensor, name, self._refusing(name, getattr(torch.Tensor, name)))

    def _refusing(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            assert not self.on, f"Tensor.{name} waits for the device"
            return method(tensor, *args, **kwargs)

        return read

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.on, self.num_watched = True, self.num_watched + 1
        try:
            with Refusing():
                yield
        finally:
            self.on = False

    def of_device(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, which kernels do on a GPU."""

        def unwatched(*args: Any) -> Any:
            before, self.on = self.on, False
            try:
                with torch.utils._python_dispatch._disable_current_modes():
                    return work(*args)
            finally:
                self.on = before

        return unwatched


PARAMS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True),
    "drawn": SamplingParams(temperature=0.8, seed=1, max_tokens=12, ignore_eos=True),
    "within limits": SamplingParams(top_k=20, top_p=0.9, min_p=0.01, seed=2, max_tokens=12, ignore_eos=True),
    "biased": SamplingParams(logit_bias={3: 2.0}, allowed_token_ids=[*range(60)], seed=3, max_tokens=12),
}


def until_all_decode(core: EngineCore, params: list[SamplingParams]) -> None:
    for i, one in enumerate(params):
        core.add_request(EngineRequest(str(i), [5, i + 1, 7], one))
    while core.stats().num_running < len(params) or core.stats().num_scheduled_tokens != len(params):
        core.step()
    core.step()


@pytest.mark.parametrize("name", [*PARAMS, "all of them"])
def test_from_the_latest_tokens_to_the_next_ones_the_host_looks_at_no_tensor(
    name: str, device: torch.device, recorded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does by itself, the recorded layers and the drawing of tokens, is not looked at here."""
    if device.type == "cuda":
        pytest.skip("CUDA itself says there what waits")
    watch = Watch(monkeypatch)

    def capture(run: Run) -> Run:
        return watch.of_device(run)

    monkeypatch.setattr(engine, "capture_for", lambda device: capture)
    monkeypatch.setattr(model_runner, "greatest", by_torch)  # as on a GPU
    drawing_on = model_runner.drawing_on
    monkeypatch.setattr(model_runner, "drawing_on", lambda device: watch.of_device(drawing_on(device)))
    cls, config = ALL[LLAMA]
    save(make_model(cls, config()), tmp_path)
    core = build(tmp_path, device, async_scheduling=True)
    until_all_decode(core, [*PARAMS.values()] if name == "all of them" else [PARAMS[name]] * 3)
    submit, recorded_before = ModelRunner.submit, len(recorded)

    def watched(self: ModelRunner, step: Any) -> None:
        with watch.watching():
            submit(self, step)

    monkeypatch.setattr(ModelRunner, "submit", watched)
    for _ in range(3):
        core.step()
    assert watch.num_watched == 3
    assert len(recorded) == recorded_before + 3
    looks: list[Callable[[torch.Tensor], object]] = [torch.Tensor.tolist, bool, torch.nonzero, lambda t: t[t > 0]]
    for look in looks:
        with pytest.raises(AssertionError, match="waits for the device"), watch.watching():
            look(torch.ones(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_nothing_waits_between_the_latest_tokens_and_the_next_ones(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, config = ALL[LLAMA]
    save(make_model(cls, config()), tmp_path)
    core = build(tmp_path, device)
    until_all_decode(core, [*PARAMS.values()])
    submit = ModelRunner.submit

    def watched(self: ModelRunner, step: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            submit(self, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(ModelRunner, "submit", watched)
    for _ in range(3):
        core.step()


@pytest.mark.parametrize("family", [LLAMA, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES)])
def test_recorded_decodes_that_take_tokens_of_the_device_answer_as_transformers(
    family: str, device: torch.device, recorded: list[int], tmp_path: Path
) -> None:
    cls, config = ALL[family]
    model, prompts = make_model(cls, config()), mixed_prompts(5, 12)
    save(model, tmp_path)
    counts = [2, 3, 4, 5, 6]
    wanted = [greedy_reference(model, [p], n)[0] for p, n in zip(prompts, counts, strict=True)]
    assert answers(build(tmp_path, device, async_scheduling=True), prompts, counts) == wanted
    assert {5, 3, 1} <= set(recorded)
