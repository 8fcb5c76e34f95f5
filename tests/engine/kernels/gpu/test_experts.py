"""One product for all experts gives what each expert's own would."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.kernels.gpu.paged_cases import TOLERANCES

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(deadline=None, max_examples=20)
@given(
    num_tokens=st.sampled_from([1, 2, 17, 90]),
    num_experts=st.integers(1, 5),
    inputs=st.sampled_from([8, 70]),
    outputs=st.sampled_from([4, 72]),
    dtype=st.sampled_from(list(TOLERANCES)),
    data=st.data(),
)
def test_every_pair_is_multiplied_by_its_expert_and_others_are_zero(
    device: torch.device,
    num_tokens: int,
    num_experts: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    from quire_engine.kernels.gpu.experts import multiply, route

    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    top_k = data.draw(st.integers(1, 3))
    # Experts of another rank are chosen too.
    chosen = torch.randint(-1, num_experts + 2, (num_tokens, top_k), generator=generator)
    x = torch.randn(num_tokens, inputs, generator=generator).to(dtype)
    up = torch.randn(num_experts, outputs, inputs, generator=generator).to(dtype)
    down = torch.randn(num_experts, inputs, outputs, generator=generator).to(dtype)
    routes = route(chosen.to(device), num_experts)
    inner = multiply(x.to(device), up.to(device), routes, of_tokens=True)
    found = multiply(inner, down.to(device), routes, of_tokens=False).cpu()
    inner = inner.cpu()
    near = TOLERANCES[dtype] * 4
    for pair, expert in enumerate(chosen.flatten().tolist()):
        if 0 <= expert < num_experts:
            wanted = up[expert].double() @ x[pair // top_k].double()
            torch.testing.assert_close(inner[pair].double(), wanted, atol=near, rtol=near)
            wanted = down[expert].double() @ inner[pair].double()
            torch.testing.assert_close(found[pair].double(), wanted, atol=near * 8, rtol=near)
        else:
            assert not inner[pair].any()
            assert not found[pair].any()
