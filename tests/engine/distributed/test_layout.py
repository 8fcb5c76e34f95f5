"""Ranks over nodes, stages and shares: every part of the model is somewhere, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.config import EngineConfig
from quire_engine.distributed.layout import Layout
from quire_engine.memory_plan.stages import Stage

sizes = st.integers(1, 8)


@given(tensor=sizes, pipeline=sizes)
def test_each_rank_is_in_one_stage_and_rank_0_in_the_last(tensor: int, pipeline: int) -> None:
    layout = Layout(tensor, pipeline)
    of_stages = [list(layout.ranks_of_stage(index)) for index in range(pipeline)]
    assert sorted(rank for ranks in of_stages for rank in ranks) == list(range(layout.size))
    assert all(layout.stage(rank).index == i for i, ranks in enumerate(of_stages) for rank in ranks)
    assert layout.stage(0).last
    assert [ranks[0] % tensor for ranks in of_stages] == [0] * pipeline


@given(count=sizes, num_layers=st.integers(1, 100))
def test_stages_have_all_layers_in_order_and_none_more_than_one_more(count: int, num_layers: int) -> None:
    parts = [Stage(index, count).layers(num_layers) for index in range(count)]
    assert [i for part in parts for i in part] == list(range(num_layers))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(tensor=sizes, pipeline=sizes, data=st.data())
def test_nodes_have_as_many_ranks_each_and_count_them_from_0(tensor: int, pipeline: int, data: st.DataObject) -> None:
    size = tensor * pipeline
    nodes = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    layout = Layout(tensor, pipeline, nodes)
    for node in range(nodes):
        ranks = layout.ranks_of_node(node)
        assert [layout.local_rank(rank) for rank in ranks] == list(range(layout.per_node))
        assert {layout.node(rank) for rank in ranks} == {node}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tensor_parallel_size": 0}, "--tensor-parallel-size is 0"),
        ({"pipeline_parallel_size": -1}, "--pipeline-parallel-size is -1"),
        ({"tensor_parallel_size": 3, "nnodes": 2}, "--nnodes is 2: it must divide the 3 ranks"),
        ({"tensor_parallel_size": 2, "nnodes": 2, "node_rank": 2, "master_addr": "a"}, "--node-rank is 2"),
        ({"node_rank": 1}, "--node-rank is 1: it must be between 0 and 0, for --nnodes"),
        ({"tensor_parallel_size": 2, "nnodes": 2}, "as --master-addr"),
        ({"master_port": 70000}, "--master-port is 70000"),
    ],
)
def test_flags_that_do_not_fit_each_other_are_named(flags: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EngineConfig(model="m", **flags)  # type: ignore[arg-type]  # mixed values
