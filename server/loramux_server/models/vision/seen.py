"""What a base model has seen in the images of a prompt, and where in a step it goes.

Legend: V tokens that have an embedding of an image, L tokens of an image, P tokens of a prompt,
K width of an embedding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from loramux_server.lora.segments import Int32
from loramux_server.lora.virtual import Virtual, VirtualRun

Int64 = npt.NDArray[np.int64]


def positions(turn_3T: Int64) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the positions of a step's tokens by time, and all where height and width differ."""
    turn_3T = np.ascontiguousarray(turn_3T)
    differ = bool((turn_3T != turn_3T[0]).any())
    return torch.from_numpy(turn_3T[0]), torch.from_numpy(turn_3T) if differ else None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a base model makes of one image."""

    place_V: Int64
    """Which of the image's tokens have an embedding, ascending; the others are ordinary tokens."""
    embeddings: Virtual
    """The embeddings, [V, K]."""
    added: tuple[Virtual, ...] = ()
    """What is added for these tokens to what the first layers make, [V, K] for each layer."""
    is_whole: bool = False
    """Whether those of its tokens that lie side by side see each other, so that all of them have to
    be in one step."""
    turn_3L: Int64 | None = None
    """Positions of the image's tokens by time, height and width, from 0 on; None where they are
    counted like those of text."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        held = [virtual.embedding_VK for virtual in (self.embeddings, *self.added)]
        return sum(tensor.nbytes for tensor in held if tensor is not None)


@dataclass(frozen=True, slots=True)
class View:
    """The images of one prompt, as its base model sees them."""

    images: tuple[tuple[int, Seen], ...]
    """Position of each image's first token, and what was seen; in order."""
    turn_3P: Int64 | None
    """Positions of the prompt's tokens by time, height and width; None where all are as in text."""
    end: int = 0
    """Position behind the last token of an image: from there on a text is one as any other, but for
    `shift`."""
    shift: int = 0
    """How much larger than its place in the text the position of a later token is."""

    @staticmethod
    def of(num_tokens: int, images: Sequence[tuple[int, int, Seen]]) -> "View":
        """Return the view of a prompt.

        Args:
            num_tokens: Tokens of the prompt.
            images: Position of the first token, number of tokens, and what was seen, of each.
        """
        placed = tuple((start, seen) for start, _, seen in images)
        end = max(start + length for start, length, _ in images)
        if all(seen.turn_3L is None for _, seen in placed):
            return View(placed, None, end)
        turn_3P = np.empty((3, num_tokens), np.int64)
        done = turn = 0
        for start, length, seen in images:
            turn_3P[:, done:start] = np.arange(start - done) + turn
            turn += start - done
            own_3L = np.arange(length)[None] if seen.turn_3L is None else seen.turn_3L
            turn_3P[:, start : start + length] = own_3L + turn
            turn += int(own_3L.max()) + 1
            done = start + length
        turn_3P[:, done:] = np.arange(num_tokens - done) + turn
        return View(placed, turn_3P, end, turn - done)

    def turns(self, start: int, end: int) -> Int64:
        """Return the positions of tokens `start` to `end` by time, height and width, [3, ·]."""
        own_T = np.broadcast_to(np.arange(start, end), (3, end - start))
        if self.turn_3P is None:
            return own_T
        known_3T = self.turn_3P[:, start:end]
        return np.concatenate([known_3T, own_T[:, known_3T.shape[1] :] + self.shift], axis=1)

    @property
    def is_whole(self) -> bool:
        """Whether the tokens of an image have to be in one step."""
        return any(seen.is_whole for _, seen in self.images)

    def together(self, start: int, end: int) -> Int32:
        """Return which positions tokens `start` to `end` see in any case, from and to, [·, 2]."""
        own_T2 = np.arange(start, end, dtype=np.int32)[:, None] + np.array([0, 1], np.int32)
        for at, seen in self.images:
            if not seen.is_whole:
                continue
            for run_V in np.split(seen.place_V, np.flatnonzero(np.diff(seen.place_V) > 1) + 1):
                first, last = int(run_V[0]) + at, int(run_V[-1]) + at + 1
                own_T2[max(0, first - start) : max(0, last - start)] = first, last
        return own_T2

    def embedded(self, start: int, end: int, row: int) -> list[VirtualRun]:
        """Return the embeddings of a step's tokens.

        Args:
            start: The first token of this prompt in the step.
            end: The token after its last.
            row: Where in the step the first one is.
        """
        return [
            VirtualRun(seen.embeddings, first, place_V)
            for seen, first, place_V in self._between(start, end, row)
        ]

    def added(self, start: int, end: int, row: int) -> list[list[VirtualRun]]:
        """Return what is added behind each of the first layers; arguments as in `embedded`."""
        layers: list[list[VirtualRun]] = []
        for seen, first, place_V in self._between(start, end, row):
            for number, virtual in enumerate(seen.added):
                if number == len(layers):
                    layers.append([])
                layers[number].append(VirtualRun(virtual, first, place_V))
        return layers

    def _between(self, start: int, end: int, row: int) -> Iterator[tuple[Seen, int, torch.Tensor]]:
        """Return each image with embeddings there: the number of the first, and their rows."""
        for at, seen in self.images:
            first, last = np.searchsorted(seen.place_V, (start - at, end - at)).tolist()
            if first < last:
                place_V = seen.place_V[first:last] + (at - start + row)
                yield seen, first, torch.from_numpy(place_V)


PLAIN = View((), None)
"""Of a prompt of text."""
