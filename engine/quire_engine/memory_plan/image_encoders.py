"""What encoders of images take, by a model's config.json: tokens of the largest image, and memory for its encoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quire_engine.memory_plan.config_fields import Config, positive_int

MAX_PIXELS = 1 << 25  # of an image that is taken
# For each pixel of a file as it is decoded, turned and converted, and for each byte of what becomes of it: so often is
# it there at once while numbers become fractions, and those are normalised.
_DECODED_BYTES = 12
_COPIES = 3
_MOST_TILES = 64
# Of the image processors of the models as they were published.
_USUAL_CROPS = 36
_USUAL_LEAST_PIXELS = 56 * 56
_USUAL_PIXELS = 16384 * 28 * 28
_LONGEST_TO_SHORTEST = 200  # sides, of an image that Qwen2-VL takes
_USUAL_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """Of the largest image that a model may be shown."""

    tokens: int
    elements: int  # that are there at once while it is encoded, beside the weights
    pixels: int  # values of what is made of it for the encoder


@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """The sizes of CLIP's encoder, those of images in pixels."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    channels: int

    @staticmethod
    def of(config: Config) -> ClipSizes:
        """From config.json's `vision_config`. Raises `ValueError` that names the field that is wrong."""
        found = _vision_config(config)
        return ClipSizes(
            hidden_size=positive_int(found, "hidden_size", default=1024),
            intermediate_size=positive_int(found, "intermediate_size", default=4096),
            num_layers=positive_int(found, "num_hidden_layers", default=24),
            num_heads=positive_int(found, "num_attention_heads", default=16),
            image_size=positive_int(found, "image_size", default=336),
            patch_size=positive_int(found, "patch_size", default=14),
            channels=positive_int(found, "num_channels", default=3),
        )


def image_sizes(
    config: Config, architecture: str, hidden_size: int, settings: Config | None = None
) -> ImageSizes | None:
    """None for a model of text. Raises `ValueError` for a config.json whose encoder has no sizes.

    `settings` are the image processor's, and the usual ones where they are not known: some say how large images may be.
    """
    read = _READERS.get(architecture)
    return None if read is None else read(config, hidden_size, settings or {})


def preparing_bytes(made: int, pixels: int) -> int:
    """What an image of `pixels` takes while it is prepared, where that makes `made` bytes."""
    return _COPIES * made + _DECODED_BYTES * pixels


def tile_grids(config: Config, tile: int) -> tuple[tuple[int, int], ...]:
    """`image_grid_pinpoints`, heights and widths in pixels, in tiles. Raises `ValueError` where they are no tiles."""
    given = config.get("image_grid_pinpoints")
    given = _USUAL_GRIDS if given is None else given
    sizes = [size if isinstance(size, list | tuple) else [] for size in given] if isinstance(given, list) else []
    grids = []
    for size in sizes:
        whole = [n // tile for n in size if isinstance(n, int) and n > 0 and n % tile == 0]
        if len(size) == 2 and len(whole) == 2 and whole[0] * whole[1] <= _MOST_TILES:
            grids.append((whole[0], whole[1]))
    if not grids or len(grids) < len(sizes):
        raise ValueError(
            f"config.json: image_grid_pinpoints is {given!r}: it must be a list of heights and widths, multiples of "
            f"vision_config.image_size, {tile}, with at most {_MOST_TILES} such squares in each"
        )
    return tuple(grids)


def elements_at_once(
    *, patches: int, hidden_size: int, intermediate_size: int, taken: int, decoder_size: int, pixels: int
) -> int:
    """Elements that encoding takes at once where `patches` of all pictures go through the layers together.

    `taken` hidden states of each are projected to `decoder_size`; `pixels` are values of all pictures.
    """
    attention = 9 * hidden_size  # the norm, queries, keys, values, their copies by heads, what is attended to
    mlp = hidden_size + 4 * intermediate_size  # the norm, and an activation with what it is made of
    layer = (2 + taken) * hidden_size + max(attention, mlp)
    projector = 2 * taken * hidden_size + 5 * decoder_size
    return patches * max(layer, projector) + 3 * pixels  # which come in float32, and are converted


def _llava(config: Config, hidden_size: int, _: Config) -> ImageSizes:
    sizes = ClipSizes.of(config)
    with_class = config.get("vision_feature_select_strategy") == "full"
    tokens = (sizes.image_size // sizes.patch_size) ** 2 + with_class
    return _clip_sizes(config, sizes, tokens, 1, hidden_size)


def _llava_next(config: Config, hidden_size: int, _: Config) -> ImageSizes:
    sizes = ClipSizes.of(config)
    side = sizes.image_size // sizes.patch_size
    grids = tile_grids(config, sizes.image_size)
    tokens = side**2 + max(rows * side * (columns * side + 1) for rows, columns in grids)
    pictures = 1 + max(rows * columns for rows, columns in grids)
    return _clip_sizes(config, sizes, tokens, pictures, hidden_size)


def _clip_sizes(config: Config, sizes: ClipSizes, tokens: int, pictures: int, hidden_size: int) -> ImageSizes:
    layers = config.get("vision_feature_layer")
    pixels = pictures * sizes.channels * sizes.image_size**2
    elements = elements_at_once(
        patches=pictures * (1 + (sizes.image_size // sizes.patch_size) ** 2),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        taken=len(layers) if isinstance(layers, list) else 1,
        decoder_size=hidden_size,
        pixels=pixels,
    )
    return ImageSizes(tokens=tokens, elements=elements, pixels=pixels)


def _phi4_multimodal(config: Config, hidden_size: int, settings: Config) -> ImageSizes:
    """One picture at a time goes through the encoder."""
    found = _vision_config(config)
    crops = positive_int(settings, "dynamic_hd", default=_USUAL_CROPS)
    width, size = positive_int(found, "hidden_size", default=1152), positive_int(found, "image_size", default=448)
    patches = (size // positive_int(found, "patch_size", default=14)) ** 2
    pixels, pictures = 3 * size**2, 1 + crops
    layers = elements_at_once(
        patches=patches,
        hidden_size=width,
        intermediate_size=positive_int(found, "intermediate_size", default=4304),
        taken=1,
        decoder_size=0,
        pixels=0,
    )
    # What is seen of what, for each head.
    mask = positive_int(found, "num_attention_heads", default=16) * patches**2
    # A token for four patches; one crop above the other has the most lines, each of which ends with one more.
    side = int(patches**0.5) // 2
    tokens = crops * side * (side + 1) + 1 + side * (side + 1)
    features = pictures * patches // 4 * width
    joined = 4 * features + tokens * (width + 4 * hidden_size)
    elements = 3 * pictures * pixels + max(features + layers + mask, joined)
    return ImageSizes(tokens=tokens, elements=elements, pixels=pictures * pixels)


def _qwen2_vl(config: Config, hidden_size: int, settings: Config) -> ImageSizes:
    found = _vision_config(config)
    width = positive_int(found, "embed_dim", default=1280)
    patch, merge = positive_int(found, "patch_size", default=14), positive_int(found, "spatial_merge_size", default=2)
    size = settings.get("size")
    largest = size.get("longest_edge") if isinstance(size, dict) else None
    pixels = positive_int({"max_pixels": settings.get("max_pixels") or largest}, "max_pixels", default=_USUAL_PIXELS)
    least = size.get("shortest_edge") if isinstance(size, dict) else None
    least = positive_int({"min_pixels": settings.get("min_pixels") or least}, "min_pixels", default=_USUAL_LEAST_PIXELS)
    tokens = _most_squares(least / (patch * merge) ** 2, pixels / (patch * merge) ** 2)
    frames = positive_int(found, "temporal_patch_size", default=2)
    values = tokens * merge**2 * 3 * frames * patch**2
    return ImageSizes(
        tokens=tokens,
        elements=elements_at_once(
            patches=tokens * merge**2,
            hidden_size=width,
            intermediate_size=width * positive_int(found, "mlp_ratio", default=4),
            taken=0,
            decoder_size=hidden_size,
            pixels=values,
        ),
        pixels=values,
    )


def _most_squares(least: float, most: float) -> int:
    """Squares of the image with the most, where images are resized to between `least` and `most`: see `MergedCount`."""
    # The one line that a narrow image has is not made thinner where it is made smaller.
    shrunk = most if most >= _LONGEST_TO_SHORTEST else math.sqrt(_LONGEST_TO_SHORTEST * most)
    # Both sides of one that is enlarged are rounded up: so many lines are longest where the last is barely begun.
    longest = math.sqrt(_LONGEST_TO_SHORTEST * least)
    lines = range(1, math.ceil(math.sqrt(least)) + 1)
    enlarged = (n * math.ceil(longest if n == 1 else min(longest, least / (n - 1))) for n in lines)
    return max(int(shrunk), *enlarged, 1)


def _vision_config(config: Config) -> Config:
    found = config.get("vision_config")
    if not isinstance(found, dict):
        raise ValueError(f"config.json: vision_config is {found!r}: it must be an object")
    return found


_READERS: Mapping[str, Callable[[Config, int, Config], ImageSizes]] = {
    "LlavaForConditionalGeneration": _llava,
    "LlavaNextForConditionalGeneration": _llava_next,
    "Phi4MultimodalForCausalLM": _phi4_multimodal,
    "Qwen2VLForConditionalGeneration": _qwen2_vl,
}
