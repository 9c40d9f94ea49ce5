"""Encoded images of a prompt, and where they go in a step.

Legend: V tokens that have an embedding of an image, L tokens of an image, P tokens of a prompt, K
width of an embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from loramux_server.lora.segments import Int32
from loramux_server.lora.virtual import Virtual, VirtualRun

Int64 = npt.NDArray[np.int64]


def positions(mrope_3T: Int64) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the temporal positions of tokens, [T], and all three, [3, T], if they differ."""
    mrope_3T = np.ascontiguousarray(mrope_3T)
    differ = bool((mrope_3T != mrope_3T[0]).any())
    return torch.from_numpy(mrope_3T[0]), torch.from_numpy(mrope_3T) if differ else None


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """What a base model's vision modules make of one image."""

    place_V: Int64
    """Which of the image's tokens have an embedding, ascending; the others are ordinary tokens."""
    embeddings: Virtual
    """The embeddings, [V, K]."""
    added: tuple[Virtual, ...] = ()
    """Features added to these tokens after each of the first layers (DeepStack), [V, K] per
    layer."""
    is_bidirectional: bool = False
    """Whether adjacent tokens of the image attend to each other, so that all must be in one
    step."""
    mrope_3L: Int64 | None = None
    """Temporal, height and width positions of the image's tokens (M-RoPE), from 0 on; None if they
    are those of text."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        held = [virtual.embedding_VK for virtual in (self.embeddings, *self.added)]
        return sum(tensor.nbytes for tensor in held if tensor is not None)


@dataclass(frozen=True, slots=True)
class PromptImages:
    """The encoded images of one prompt."""

    images: tuple[tuple[int, EncodedImage], ...]
    """Position of each image's first token, and the encoded image; in order."""
    mrope_3P: Int64 | None
    """Temporal, height and width positions of the prompt's tokens; None if all are those of
    text."""
    end: int = 0
    """Position after the last image token. From there on, the text is plain except for `shift`."""
    shift: int = 0
    """Added to the index of later tokens to get their position."""

    @staticmethod
    def of(num_tokens: int, images: Sequence[tuple[int, int, EncodedImage]]) -> "PromptImages":
        """Return the view of a prompt.

        Args:
            num_tokens: Tokens of the prompt.
            images: Position of the first token, number of tokens, and encoded image, for each.
        """
        placed = tuple((start, encoded) for start, _, encoded in images)
        end = max(start + length for start, length, _ in images)
        if all(encoded.mrope_3L is None for _, encoded in placed):
            return PromptImages(placed, None, end)
        mrope_3P = np.empty((3, num_tokens), np.int64)
        done = position = 0
        for start, length, encoded in images:
            mrope_3P[:, done:start] = np.arange(start - done) + position
            position += start - done
            own_3L = np.arange(length)[None] if encoded.mrope_3L is None else encoded.mrope_3L
            mrope_3P[:, start : start + length] = own_3L + position
            position += int(own_3L.max()) + 1
            done = start + length
        mrope_3P[:, done:] = np.arange(num_tokens - done) + position
        return PromptImages(placed, mrope_3P, end, position - done)

    def mrope_positions(self, start: int, end: int) -> Int64:
        """Return the temporal, height and width positions of tokens `start` to `end`, [3, ·]."""
        own_T = np.broadcast_to(np.arange(start, end), (3, end - start))
        if self.mrope_3P is None:
            return own_T
        known_3T = self.mrope_3P[:, start:end]
        return np.concatenate([known_3T, own_T[:, known_3T.shape[1] :] + self.shift], axis=1)

    @property
    def is_bidirectional(self) -> bool:
        """Whether the tokens of an image must be in one step."""
        return any(encoded.is_bidirectional for _, encoded in self.images)

    def bidirectional_ranges(self, start: int, end: int) -> Int32:
        """Return the range that each of tokens `start` to `end` sees beyond causality, [·, 2].

        It is the token's run of image tokens, or the token itself.
        """
        own_T2 = np.arange(start, end, dtype=np.int32)[:, None] + np.array([0, 1], np.int32)
        for at, encoded in self.images:
            if not encoded.is_bidirectional:
                continue
            for run_V in np.split(
                encoded.place_V, np.flatnonzero(np.diff(encoded.place_V) > 1) + 1
            ):
                first, last = int(run_V[0]) + at, int(run_V[-1]) + at + 1
                own_T2[max(0, first - start) : max(0, last - start)] = first, last
        return own_T2

    def embedded(self, start: int, end: int, row: int) -> list[VirtualRun]:
        """Return the image embeddings in a step.

        Args:
            start: First token of this prompt in the step.
            end: Token after its last.
            row: Row of the first one in the step.
        """
        return [
            VirtualRun(encoded.embeddings, first, place_V)
            for encoded, first, place_V in self._between(start, end, row)
        ]

    def added(self, start: int, end: int, row: int) -> list[list[VirtualRun]]:
        """Return the features added after each of the first layers; arguments as in `embedded`."""
        layers: list[list[VirtualRun]] = []
        for encoded, first, place_V in self._between(start, end, row):
            for number, virtual in enumerate(encoded.added):
                if number == len(layers):
                    layers.append([])
                layers[number].append(VirtualRun(virtual, first, place_V))
        return layers

    def _between(
        self, start: int, end: int, row: int
    ) -> Iterator[tuple[EncodedImage, int, torch.Tensor]]:
        """Yield each image with embeddings in the range, the index of the first, and their rows."""
        for at, encoded in self.images:
            first, last = np.searchsorted(encoded.place_V, (start - at, end - at)).tolist()
            if first < last:
                place_V = encoded.place_V[first:last] + (at - start + row)
                yield encoded, first, torch.from_numpy(place_V)


NO_IMAGES = PromptImages((), None)
"""The view of a prompt without images."""
