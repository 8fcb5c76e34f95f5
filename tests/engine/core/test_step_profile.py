"""Where the time of steps goes."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from quire_engine.core.step import ScheduledSequence, Step
from quire_engine.core.step_profile import StepProfile

PROMPT = Step(scheduled=[ScheduledSequence("a", [1, 2], 0, [0], samples=True)])
DECODE = Step(scheduled=[ScheduledSequence("a", [3], 2, [], samples=True)])


def test_a_table_and_a_trace_tell_each_part_once_the_steps_are_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, ended = tmp_path / "steps.json", []
    profile = StepProfile(2, file)
    profile.when_done(lambda: ended.append(True))
    with caplog.at_level(logging.INFO):
        with profile.span("outer"), profile.span("inner"):
            time.sleep(0.002)
        profile.end_step(PROMPT)
        assert not ended
        with profile.span("outer"):
            pass
        profile.end_step(DECODE)
    assert ended
    assert not profile.active
    table = caplog.messages[0].splitlines()
    assert "1 steps decoding" in table[0]
    assert "1 steps with prompts" in table[0]
    assert [line.split()[0] for line in table] == ["milliseconds", "inner", "outer", "all"]  # the largest first
    events = json.loads(file.read_text())["traceEvents"]
    assert [(event["name"], event["ph"], event["args"]["step"]) for event in events] == [
        ("outer", "X", 0),
        ("inner", "X", 0),
        ("outer", "X", 1),
    ]
    assert events[0]["dur"] >= events[1]["dur"] >= 2000  # microseconds
    assert str(file) in caplog.messages[1]


def test_time_within_another_span_counts_once() -> None:
    profile = StepProfile(2)
    with profile.span("outer"), profile.span("inner"):
        time.sleep(0.01)
    profile.end_step(DECODE)
    own = {line.split()[0]: float(line.split()[1]) for line in profile.table().splitlines()[1:]}
    assert own["inner"] >= 10.0
    assert own["all"] == pytest.approx(own["inner"] + own["outer"], abs=0.01)


def test_nothing_is_timed_when_no_steps_are_asked_for_and_after_they_are_over() -> None:
    off, over = StepProfile(0), StepProfile(1)
    over.end_step(DECODE)
    for profile in (off, over):
        with profile.span("a"):
            pass
        profile.end_step(DECODE)
        assert profile.trace() == []


def test_a_trace_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile = StepProfile(1, tmp_path / "none" / "steps.json")
    profile.end_step(DECODE)
    assert "could not be written" in caplog.text


def test_what_was_timed_elsewhere_counts_within_the_span_that_is_open() -> None:
    profile = StepProfile(2)
    with profile.span("outer"):
        profile.add({"first": 3_000_000, "second": 5_000_000})
    profile.add({"third": 1})  # outside of any
    profile.end_step(DECODE)
    names = [line.split()[0] for line in profile.table().splitlines()[1:]]
    assert names == ["second", "first", "outer", "all"]
    assert float(profile.table().splitlines()[1].split()[1]) == 5.0
    first, second = (event for event in profile.trace() if event["name"] != "outer")
    assert isinstance(first["ts"], float)
    assert isinstance(first["dur"], float)
    assert first["ts"] + first["dur"] == pytest.approx(second["ts"])
