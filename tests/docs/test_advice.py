"""docs/llmservice.md explains each advice that the code can give, once."""

from __future__ import annotations

import re

from tests.docs.pages import LLMSERVICE_PAGE, REPOSITORY, first_cells, section

_GIVEN = re.compile(r'\bAdvice\(reason="([A-Za-z]+)"')


def test_every_advice_is_explained_and_none_is_made_up() -> None:
    files = (REPOSITORY / "operator/quire_operator").rglob("*.py")
    given = {reason for file in files for reason in _GIVEN.findall(file.read_text())}
    assert sorted(first_cells(section(LLMSERVICE_PAGE, "## Advice"))) == sorted(given)
    assert "SingleReplica" in given
