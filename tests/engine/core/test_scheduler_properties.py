"""Whatever arrives, in whatever order: nothing leaks, nothing is lost, and the limits hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.core.core_config import CoreConfig
from quire_engine.core.loop import EngineCore
from quire_engine.core.messages import EngineOutput, EngineRequest
from quire_engine.sampling_params import SamplingParams
from tests.engine.core.fake_model import VOCAB_SIZE, PagedExecutor, generate, search
from tests.engine.core.test_adapters import AdaptingStages, Files

EOS = (11, 12)
ADAPTERS = "abc"


@st.composite
def configs(draw: st.DrawFn) -> CoreConfig:
    stages = draw(st.sampled_from([0, 0, 1, 1, 2, 3]))  # 0: one, which feeds back
    return CoreConfig(
        num_blocks=draw(st.integers(2, 24)),
        num_swap_blocks=draw(st.sampled_from([0, 0, 3, 40])),
        block_size=draw(st.sampled_from([1, 2, 4, 8])),
        max_num_seqs=draw(st.integers(1, 8)),
        max_num_batched_tokens=draw(st.integers(2, 40)),
        max_model_len=draw(st.integers(4, 48)),
        enable_chunked_prefill=draw(st.booleans()),
        enable_prefix_caching=draw(st.booleans()),
        use_priority=draw(st.booleans()),
        num_stages=stages or 1,
        runs_ahead=stages == 0,
        vocab_size=VOCAB_SIZE,
        max_adapters=draw(st.integers(1, 2)),
        adapter_room=len(ADAPTERS),
        eos_token_ids=EOS,
    )


@st.composite
def requests(draw: st.DrawFn) -> list[EngineRequest]:
    """Prompts that often begin alike."""
    made = []
    for i in range(draw(st.integers(1, 14))):
        prompt = [1] * draw(st.integers(0, 20)) + draw(st.lists(st.integers(0, 3), max_size=6))
        beams = draw(st.sampled_from([0, 0, 1, 3, 4]))
        params = SamplingParams(
            n=beams or 1,
            use_beam_search=beams > 0,
            max_tokens=draw(st.one_of(st.none(), st.integers(1, 20))),
            ignore_eos=draw(st.booleans()),
        )
        salt = draw(st.sampled_from([None, None, "salt"]))
        priority, adapter = draw(st.integers(0, 2)), draw(st.sampled_from([None, None, *ADAPTERS]))
        made.append(EngineRequest(str(i), prompt, params, priority=priority, cache_salt=salt, adapter=adapter))
    return made


@settings(max_examples=200, deadline=None)
@given(
    config=configs(),
    arriving=requests(),
    arrivals=st.lists(st.integers(0, 12), min_size=14, max_size=14),
    aborts=st.dictionaries(st.integers(0, 40), st.integers(0, 13), max_size=4),
)
def test_every_request_ends_with_its_own_tokens_and_every_block_comes_back(
    config: CoreConfig, arriving: list[EngineRequest], arrivals: list[int], aborts: dict[int, int]
) -> None:
    """`arrivals[i]` is the turn before which request i arrives; before turn t, request `aborts[t]` is aborted."""
    core = EngineCore(AdaptingStages(PagedExecutor(config), config.num_stages), config, adapter_files=Files())
    for name in ADAPTERS:
        core.load_adapter(name, name)
    outputs: list[EngineOutput] = []
    aborted = set[str]()
    for turn in range(3000):
        for request, arrival in zip(arriving, arrivals, strict=False):
            if arrival == turn:
                core.add_request(request)
        if turn in aborts:
            core.abort([str(aborts[turn])])
            aborted.add(str(aborts[turn]))
        if core.has_work():
            outputs += core.step()
            core.check_integrity()
            assert core.stats().num_running <= config.max_num_seqs
        elif turn > 12:
            break
    assert not core.has_work(), "the requests do not end"
    assert (core.stats().kv_cache_usage, core.stats().swap_usage) == (0.0, 0.0)

    for request in arriving:
        mine = [o for o in outputs if o.request_id == request.request_id]
        if request.request_id in aborted:
            continue
        assert [o.finish_reason is not None for o in mine] == [False] * (len(mine) - 1) + [True]
        got = [t for o in mine for t in o.new_token_ids]
        if mine[-1].finish_reason == "error":
            assert len(mine) == 1
            assert not got
            continue
        eos = () if request.params.ignore_eos else EOS
        room = min(config.max_model_len, config.max_request_tokens) - len(request.prompt_token_ids)
        if request.params.use_beam_search:
            width = request.params.n
            room = min(room, config.num_blocks // width * config.block_size - len(request.prompt_token_ids))
            count = min(request.params.max_tokens or room, room)
            assert [b.token_ids for b in mine[0].beams or []] == search(
                request.prompt_token_ids, width, count, eos, n=width
            )
            continue
        assert got == generate(request.prompt_token_ids, min(request.params.max_tokens or room, room), eos)
        assert mine[-1].finish_reason == ("stop" if got[-1] in eos else "length")
