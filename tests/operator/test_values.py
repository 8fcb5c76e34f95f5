"""Quantities, durations and sources."""

from __future__ import annotations

from decimal import Decimal

import pytest

from quire_operator.api import ClaimSource, HubSource, ImageSource, parse_source
from quire_operator.api.duration import parse_duration
from quire_operator.api.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [("8", 8), ("500m", "0.5"), ("1.5Gi", 1610612736), ("32Gi", 34359738368), ("1e3", 1000), ("2k", 2000), (4, 4)],
)
def test_a_quantity_is_its_number(text: str, number: int | str) -> None:
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "8 Gi", "Gi", "8gb", "1e", "many", "--1"])
def test_what_is_no_quantity_is_an_error_that_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="500m, 8 or 32Gi"):
        parse_quantity(text)


@pytest.mark.parametrize(("text", "seconds"), [("60ms", 0.06), ("15s", 15), ("1m30s", 90), ("1.5h", 5400)])
def test_a_duration_is_its_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "15", "s", "1d", "1 s"])
def test_what_is_no_duration_is_an_error_that_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="60ms, 15s or 5m"):
        parse_duration(text)


def test_a_source_names_a_repository_a_claim_or_a_directory() -> None:
    assert parse_source("hf://org/name-1.0_x") == HubSource("org/name-1.0_x")
    assert parse_source("pvc://claim/a/b/") == ClaimSource("claim", "a/b")
    assert parse_source("pvc://claim") == ClaimSource("claim", "")
    assert parse_source("image:///models/tiny") == ImageSource("/models/tiny")


@pytest.mark.parametrize("text", ["", "tiny", "hf://tiny", "hf://a/b/c", "pvc://", "image://x", "s3://a/b"])
def test_anything_else_is_an_error_that_lists_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="hf://ORG/NAME, pvc://CLAIM/PATH or image:///PATH"):
        parse_source(text)
