"""Images go to the executor with the first step that has a part of their request, may fail at that, and are let go."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from quire_engine.core.image_preparation import ImagePreparation
from quire_engine.core.images import PromptImage
from quire_engine.core.request import Request
from quire_engine.core.step import Step

log = logging.getLogger(__name__)


def hand_over_images(
    images: ImagePreparation, step: Step, running: Mapping[str, Request], block_size: int
) -> dict[Request, str]:
    """Put into the step what is made of the images of the requests that are new to it.

    Returns those that have to end, by the first of each search, with what is wrong: who has an image that cannot be
    made, and who begins in this step on pages from that image on. The step computes these as text, for nobody.
    """
    if not any(new.images for new in step.new):
        return {}
    starts = {s.request_id: s.start for s in step.scheduled}
    wrong: dict[Request, str] = {}
    for new in step.new:
        request = running[new.request_id]
        if request.unit[0] in wrong:
            new.images = ()
            continue
        for place, image in enumerate(request.images):
            if image.end <= starts[new.request_id] or image.digest in new.prepared:
                continue
            try:
                new.prepared |= images.take([image])
            except Exception as error:
                log.exception("images of request %s could not be prepared", request.unit[0].request_id)
                # Others of the step may share the pages before it, so that those are computed as they should.
                new.images = new.images[:place]
                spoilt = _blocks_from(image, request.unit, starts, block_size)
                ends = {r.unit[0]: None for r in running.values() if not spoilt.isdisjoint(r.held_block_ids)}
                ends[request.unit[0]] = None
                wrong |= dict.fromkeys(ends, f"images: {type(error).__name__}: {error}")
                break
    return wrong


def leave_computed_images(unit: Sequence[Request]) -> None:
    """Let go of a request's images once all of its `unit` have computed them."""
    first = unit[0]
    if first.pending_images is not None:
        end = first.images[-1].end
        if all(member.num_computed_tokens >= end for member in unit):
            leave_images(first)


def leave_images(request: Request) -> None:
    if request.pending_images is not None:
        request.pending_images.leave()
        request.pending_images = None


def _blocks_from(image: PromptImage, unit: Sequence[Request], starts: Mapping[str, int], block_size: int) -> set[int]:
    """The blocks that the step writes for `unit` at `image` and behind it."""
    blocks: set[int] = set()
    for member in unit:
        if member.request_id in starts:
            first = max(image.start, starts[member.request_id]) // block_size
            blocks.update(member.block_ids[max(first, member.num_let_go) :])
    return blocks
