"""Whatever a request holds, it is answered, and the others go on."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.core.messages import EngineRequest
from quire_engine.sampling_params import SamplingParams
from tests.engine.core.fake_model import VOCAB_SIZE, generate
from tests.engine.core.test_loop import make_core, request

PARAMS = [f.name for f in fields(SamplingParams)]
OWN = [f.name for f in fields(EngineRequest) if f.name not in ("params", "arrival_time")]
SAID_AS = {"prompt_token_ids": "the prompt", "pooling": "embeddings", "use_beam_search": "n or best_of"}
NUMBERS = st.one_of(
    st.integers(-3, VOCAB_SIZE + 3), st.integers(), st.sampled_from([2**63, -(2**70)]), st.floats(), st.booleans()
)
LEAVES = st.one_of(st.none(), NUMBERS, st.text(max_size=5), st.binary(max_size=3), st.just(object()))
JUNK = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=4),
    st.lists(st.lists(NUMBERS, max_size=2), max_size=2),
    st.dictionaries(st.one_of(NUMBERS, st.text(max_size=3)), LEAVES, max_size=3),
)


@settings(max_examples=600, deadline=None)
@given(
    own=st.dictionaries(st.sampled_from(OWN), JUNK, max_size=1),
    of_params=st.dictionaries(st.sampled_from(PARAMS), JUNK, max_size=2),
    beams=st.booleans(),
)
def test_no_request_harms_another_and_one_that_cannot_run_is_told_which_field_is_wrong(
    own: dict[str, object], of_params: dict[str, object], beams: bool
) -> None:
    core, _ = make_core(eos_token_ids=(3,))
    bad = EngineRequest("bad", [1, 2], SamplingParams(use_beam_search=beams, n=2 if beams else 1, max_tokens=3))
    for name, value in own.items():
        setattr(bad, name, value)
    for name, value in of_params.items():
        setattr(bad.params, name, value)
    core.add_request(bad)
    core.add_request(request("good", [1, 2, 3]))
    outputs = []
    while core.has_work():
        outputs += core.step()
        core.check_integrity()
    good = [t for o in outputs if o.request_id == "good" for t in o.new_token_ids]
    ends = [o for o in outputs if o.finish_reason is not None and o.request_id != "good"]
    if bad.request_id == "good":  # the second of that name is the one that is refused
        return
    assert good == generate([1, 2, 3], 4)
    assert len(ends) == 1
    if ends[0].finish_reason == "error":
        names = [*own, *of_params, *(words for field, words in SAID_AS.items() if field in own | of_params)]
        assert any(name in (ends[0].error or "") for name in names), ends[0].error


@pytest.mark.parametrize("params", [None, 3, "x", []], ids=repr)
def test_what_are_no_parameters_is_refused(params: object) -> None:
    core, _ = make_core()
    core.add_request(EngineRequest("bad", [1], params))  # type: ignore[arg-type]  # wrong on purpose
    (output,) = core.step()
    assert (output.request_id, output.finish_reason) == ("bad", "error")


def test_a_request_id_that_is_taken_is_refused_and_the_first_request_goes_on() -> None:
    core, _ = make_core()
    core.add_request(request("same", [1, 2]))
    core.add_request(request("same", [3, 4]))
    outputs = core.step()
    assert "request_id 'same'" in (outputs[0].error or "")
    assert outputs[1].new_token_ids == generate([1, 2], 1)
