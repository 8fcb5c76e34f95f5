"""docs/llmservice.md explains why a service is not planned, each reason once."""

from __future__ import annotations

import re

from tests.docs.pages import LLMSERVICE_PAGE, REPOSITORY, first_cells, section

_GIVEN = re.compile(r'\b(?:Skipped|HubError)\(\s*"([A-Za-z]+)"')


def test_every_reason_of_a_skipped_plan_is_explained_and_none_is_made_up() -> None:
    files = (REPOSITORY / "operator/quire_operator").rglob("*.py")
    given = {reason for file in files for reason in _GIVEN.findall(file.read_text())}
    explained = first_cells(section(LLMSERVICE_PAGE, "## The plan"))
    assert sorted(explained) == sorted(given)
    assert "HubUnreachable" in given
