"""What models with an encoder know of texts with which other requests may begin."""

import copy
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from loramux_server.kernels.whole_text import Owner, Recall

KEPT_BYTES = 64 << 20
"""Memory for it."""
Tokens = tuple[int, ...]


class KeptTexts:
    """What was known of sources, and of beginnings of what was written to them, last.

    Only requests of one tenant and adapter know of each other.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Owner, Tokens, Tokens], Recall] = OrderedDict()
        self._num_bytes = 0

    def find(self, owner: Owner, source: Tokens, written: Tokens) -> Recall | None:
        """Return what is known of `source` and most of `written`, less its last token at least."""
        for length in range(len(written) - 1, -1, -1):
            key = (owner, source, written[:length])
            if key in self._kept:
                self._kept.move_to_end(key)
                return replace(self._kept[key])
        return None

    def keep(self, owner: Owner, source: Tokens, written: Tokens, *, recall: Recall) -> None:
        """Keep what is known of that, and let go of what was not asked for longest."""
        key = (owner, source, written)
        if key in self._kept:
            return
        self._kept[key] = replace(recall, before=None)
        self._num_bytes += _num_bytes(recall)
        while self._num_bytes > KEPT_BYTES:
            _, let_go = self._kept.popitem(last=False)
            self._num_bytes -= _num_bytes(let_go)


def copied(cache: Any) -> Any:  # noqa: ANN401
    """Return a cache to which can be added while `cache` stays as it is; they share their numbers.

    transformers makes new tensors when it adds to one.
    """
    if cache is None:
        return None
    other = copy.copy(cache)
    other.is_updated = dict(cache.is_updated)
    for name in ("self_attention_cache", "cross_attention_cache"):
        part = copy.copy(getattr(cache, name))
        part.layers = [copy.copy(layer) for layer in part.layers]
        setattr(other, name, part)
    return other


def _num_bytes(recall: Recall) -> int:
    """Return the bytes of `recall`, those that it shares with others included."""
    parts = (recall.cache.self_attention_cache, recall.cache.cross_attention_cache)
    layers = [layer for part in parts for layer in part.layers]
    return sum(half.nbytes for layer in layers for half in (layer.keys, layer.values))
