"""When a program counts as built."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster import binaries, versions
from e2e.cluster.addons.catalog import ADDONS
from e2e.cluster.errors import ClusterError
from e2e.cluster.recipes import OF_THE_SUITES


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    (tmp_path / "bin").mkdir()
    (tmp_path / "stamp").mkdir()
    return tmp_path


def test_a_program_of_this_version_is_not_built_again(cache: Path) -> None:
    (cache / "bin" / "helm").touch()
    (cache / "stamp" / f"helm@{versions.HELM}").touch()
    assert binaries.ensure("helm") == cache / "bin"


def test_a_program_of_another_version_is_built_again(cache: Path) -> None:
    (cache / "bin" / "helm").touch()
    (cache / "stamp" / "helm@v3.0.0").touch()
    with pytest.raises(ClusterError, match="helm must be built and there is no `go`"):
        binaries.ensure("helm")


def test_a_stamp_without_its_file_does_not_count(cache: Path) -> None:
    (cache / "stamp" / f"helm@{versions.HELM}").touch()
    with pytest.raises(ClusterError, match="install Go"):
        binaries.require("helm")


def test_a_link_to_a_folder_that_was_cleaned_away_is_made_anew(cache: Path) -> None:
    (cache / "keda-crds").symlink_to(cache / "modules")
    (cache / "stamp" / f"keda-crds@{versions.KEDA}").touch()
    with pytest.raises(ClusterError, match="keda-crds must be built"):
        binaries.folder("keda-crds")
    (cache / "modules").mkdir()
    assert binaries.folder("keda-crds").exists()


def test_builds_in_turn_begin_with_the_first_that_is_named(cache: Path) -> None:
    (cache / "bin" / "helm").touch()
    (cache / "stamp" / f"helm@{versions.HELM}").touch()
    with pytest.raises(ClusterError, match=r"^kubelet, kube-proxy must be built"):  # one build of both, and keda waits
        binaries.ensure_in_turn("helm", "kubelet", "keda", "kube-proxy")


def test_the_suites_have_all_that_nodes_and_add_ons_need() -> None:
    needed = {*binaries.NODE, *(program for addon in ADDONS.values() for program in addon.programs)}
    assert needed <= set(OF_THE_SUITES)
