"""A Kubernetes node on this machine, and the images for it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from e2e.cluster import binaries, images, node, quire_images, teardown
from e2e.cluster.addons import catalog
from e2e.cluster.builders import Buildah, Docker
from e2e.cluster.errors import ClusterError
from e2e.cluster.recipes import OF_THE_SUITES, RECIPES


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m e2e.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="build programs from Go modules into the cache")
    build.add_argument("names", nargs="*", metavar="NAME", help=f"default: what a node needs; of {', '.join(RECIPES)}")
    build.add_argument(
        "--for-suites",
        action="store_true",
        help="all that lint, test and e2e need, one by one: each is there for them at once",
    )
    build.set_defaults(run=_build)

    up = commands.add_parser("up", help="bring the node up; does nothing when it is up")
    up.add_argument("--control-plane-only", action="store_true", help="no kubelet: objects, but no pods")
    up.set_defaults(run=_up)

    addons = commands.add_parser("addons", help="start add-ons on the node, which is brought up where it is not")
    addons.add_argument("names", nargs="+", metavar="NAME", help=f"of {', '.join(catalog.ADDONS)}")
    addons.set_defaults(run=_addons)

    down = commands.add_parser("down", help="take it down and leave nothing behind but the cache")
    down.set_defaults(run=lambda options: teardown.down())
    prune = commands.add_parser(
        "prune", help="remove old image layers and the node's copies of images, which only ever grow"
    )
    prune.set_defaults(run=lambda options: node.prune())
    status = commands.add_parser("status", help="what runs")
    status.set_defaults(run=lambda options: _print_status())
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the admin's kubeconfig")
    kubeconfig.set_defaults(run=lambda options: print(node.kubeconfig()))

    image = commands.add_parser("images", help="build images and push them to the node's registry")
    image_commands = image.add_subparsers(required=True, metavar="COMMAND")
    base = image_commands.add_parser("base", help="the pause image and the stand-in for debian:bookworm-slim")
    base.set_defaults(run=_base_images)
    everything = image_commands.add_parser("all", help="Quire's own two, with docker where its engine answers")
    everything.set_defaults(run=_quire_images)
    one = image_commands.add_parser("build", help="build any Dockerfile and push it")
    one.add_argument("reference", metavar="NAME:TAG")
    one.add_argument("dockerfile", type=Path, metavar="DOCKERFILE", help="its folder is the build context")
    one.set_defaults(run=_build_image)
    return parser


def _build(options: argparse.Namespace) -> None:
    if options.for_suites:
        print(binaries.ensure_in_turn(*OF_THE_SUITES, *options.names))
    else:
        print(binaries.ensure(*(options.names or binaries.NODE)))


def _up(options: argparse.Namespace) -> None:
    node.up(control_plane_only=options.control_plane_only)
    _print_status()


def _addons(options: argparse.Namespace) -> None:
    node.up()
    catalog.start(*options.names)
    _print_status()


def _print_status() -> None:
    print("\n".join(filter(None, (node.status(), catalog.status()))))


def _base_images(options: argparse.Namespace) -> None:
    images.base()
    images.push(images.PAUSE)
    images.push(images.BASE)


def _build_image(options: argparse.Namespace) -> None:
    images.base()
    dockerfile = options.dockerfile.absolute()
    Buildah().build(options.reference, dockerfile, dockerfile.parent, arguments={})
    images.push(options.reference)


def _quire_images(options: argparse.Namespace) -> None:
    if Docker.answers():
        for image in quire_images.ALL:
            print(quire_images.build(image, Docker()))
        return
    images.base()
    for image in quire_images.ALL:
        reference = quire_images.build(image, Buildah())
        images.push_if_absent(reference)
        print(reference)


if __name__ == "__main__":
    sys.exit(main())
