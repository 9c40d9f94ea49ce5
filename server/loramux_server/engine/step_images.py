"""Images in a step: embeddings, positions, and what is added between layers."""

from collections.abc import Sequence
from itertools import chain, zip_longest

import numpy as np
import torch

from loramux_server.engine.plan import Chunk
from loramux_server.lora.segments import Int32
from loramux_server.lora.virtual import VirtualRun
from loramux_server.models.vision.prompt_images import NO_IMAGES, Int64, positions


def positions_of(
    chunks: Sequence[Chunk], position: Int64
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the positions of tokens by time, and all by time, height and width if these differ.

    Args:
        chunks: What is computed.
        position: Index of each token in its text.
    """
    if all(chunk.request.prompt_images is None for chunk in chunks):
        return torch.from_numpy(position), None
    prompts = [chunk.request.prompt_images or NO_IMAGES for chunk in chunks]
    if not any(map(_has_images, chunks)):
        shifts = [images.shift for images in prompts]
        return torch.from_numpy(position + np.repeat(shifts, [c.length for c in chunks])), None
    pairs = zip(prompts, chunks, strict=True)
    mrope = [
        images.mrope_positions(chunk.start, chunk.start + chunk.length) for images, chunk in pairs
    ]
    return positions(np.concatenate(mrope, axis=1))


def image_ranges(chunks: Sequence[Chunk]) -> Int32 | None:
    """Return the range of its image that each token sees; None if attention is causal for all."""
    if not any(
        c.request.prompt_images and c.request.prompt_images.is_bidirectional
        for c in chunks
        if _has_images(c)
    ):
        return None
    own_T2 = np.concatenate(
        [
            (c.request.prompt_images or NO_IMAGES).bidirectional_ranges(c.start, c.start + c.length)
            for c in chunks
        ]
    )
    return own_T2 if (own_T2[:, 1] - own_T2[:, 0] > 1).any() else None


def image_embeddings(chunks: Sequence[Chunk], query_start: Int32) -> list[VirtualRun]:
    """Return the embeddings of image tokens."""
    return [
        run
        for row, chunk in zip(query_start.tolist(), chunks, strict=False)
        if chunk.request.prompt_images and _has_images(chunk)
        for run in chunk.request.prompt_images.embedded(chunk.start, chunk.end, row)
    ]


def layer_additions(
    chunks: Sequence[Chunk], query_start: Int32
) -> tuple[tuple[VirtualRun, ...], ...]:
    """Return what image tokens add to the outputs of each of the first layers."""
    found = [
        chunk.request.prompt_images.added(chunk.start, chunk.end, row)
        for row, chunk in zip(query_start.tolist(), chunks, strict=False)
        if chunk.request.prompt_images and _has_images(chunk)
    ]
    return tuple(tuple(chain.from_iterable(runs)) for runs in zip_longest(*found, fillvalue=[]))


def _has_images(chunk: Chunk) -> bool:
    """Return whether `chunk` may have image tokens: it starts before the last image's end."""
    images = chunk.request.prompt_images
    return images is not None and chunk.start < images.end
