"""What is built, from what."""

from __future__ import annotations

import pytest

from e2e.cluster import versions
from e2e.cluster.errors import ClusterError
from e2e.cluster.recipes import RECIPES, recipes, replaces, wrapper

GO_MOD = """\
module k8s.io/kubernetes

require github.com/a/b v1.0.0 // indirect

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	github.com/x/y => github.com/z/y v1.2.3 // a fork
)

replace example.com/one => example.com/two v0.1.0
"""


def test_replaces_are_found_singly_and_in_blocks() -> None:
    assert replaces(GO_MOD) == [
        ("k8s.io/api", "./staging/src/k8s.io/api"),
        ("github.com/x/y", "github.com/z/y v1.2.3"),
        ("example.com/one", "example.com/two v0.1.0"),
    ]


def test_a_staging_folder_becomes_the_published_module_of_the_same_release() -> None:
    lines = wrapper("k8s", "k8s.io/kubernetes", "v1.34.10", GO_MOD).splitlines()
    assert "require k8s.io/kubernetes v1.34.10" in lines
    assert "replace k8s.io/api => k8s.io/api v0.34.10" in lines
    assert "replace github.com/x/y => github.com/z/y v1.2.3" in lines


def test_a_folder_of_the_module_itself_is_taken_in_the_version_that_it_requires() -> None:
    upstream = "replace github.com/x/operator/pkg/api => ./pkg/api\n"
    assert "replace" not in wrapper("x", "github.com/x/operator", "v0.85.0", upstream)


def test_an_unknown_program_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match=r"'kubelett'.*kubelet"):
        recipes(["kubelett"])


def test_a_name_given_twice_is_built_once() -> None:
    assert [recipe.name for recipe in recipes(["etcd", "kubectl", "etcd"])] == ["etcd", "kubectl"]


def test_helm_is_built_for_the_kubernetes_version_that_runs() -> None:
    minor = versions.minor(versions.KUBERNETES)
    assert f"pkg/chartutil.k8sVersionMinor={minor}" in RECIPES["helm"].ldflags
