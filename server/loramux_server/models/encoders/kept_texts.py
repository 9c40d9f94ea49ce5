"""What models with an encoder know of texts with which other requests may begin."""

import hashlib
from array import array
from collections import Counter, OrderedDict
from dataclasses import replace
from typing import Any

import torch

from loramux_server.kernels.whole_text import Owner, Recall

BESIDE = 640
"""Bytes that a tensor takes beside its numbers, with its part of what holds it."""
Tokens = tuple[int, ...]
_Key = tuple[Owner, bytes, bytes]
"""Whose it is, and the names of its source and of what was written."""


class KeptTexts:
    """What was known of sources, and of beginnings of what was written to them, last.

    Only requests of one tenant and adapter know of each other.
    """

    def __init__(self) -> None:
        self.max_bytes = 0
        """Memory for it. Numbers that several texts have in common count once."""
        self._kept: OrderedDict[_Key, Recall] = OrderedDict()
        self._uses: Counter[int] = Counter()
        """How many of them have numbers that begin at an address."""
        self._num_bytes = 0

    def find(self, owner: Owner, source: Tokens, written: Tokens) -> Recall | None:
        """Return what is known of `source` and most of `written`, less its last token at least."""
        if not self._kept:
            return None
        of_source = _name(source)
        for name in reversed(_names(written)[:-1]):
            key = (owner, of_source, name)
            if key in self._kept:
                self._kept.move_to_end(key)
                return replace(self._kept[key])
        return None

    def keep(self, owner: Owner, source: Tokens, written: Tokens, *, recall: Recall) -> None:
        """Keep what is known of that, and let go of what was not asked for longest."""
        if not self.max_bytes:
            return
        key = (owner, _name(source), _name(written))
        if key in self._kept:
            return
        self._kept[key] = replace(recall, before=None)
        for numbers in _numbers(recall):
            address = numbers.data_ptr()
            self._num_bytes += BESIDE if address in self._uses else numbers.nbytes + BESIDE
            self._uses[address] += 1
        while self._num_bytes > self.max_bytes:
            _, let_go = self._kept.popitem(last=False)
            for numbers in _numbers(let_go):
                self._let_go(numbers)

    def _let_go(self, numbers: torch.Tensor) -> None:
        address = numbers.data_ptr()
        self._num_bytes -= BESIDE
        self._uses[address] -= 1
        if not self._uses[address]:
            del self._uses[address]
            self._num_bytes -= numbers.nbytes


def _name(tokens: Tokens) -> bytes:
    """Return what `tokens` are called: 32 bytes, however many they are."""
    return hashlib.sha256(array("q", tokens).tobytes()).digest()


def _names(tokens: Tokens) -> list[bytes]:
    """Return the `_name` of each beginning of `tokens`, the empty one first."""
    digest = hashlib.sha256()
    names = [digest.digest()]
    for token in tokens:
        digest.update(array("q", (token,)).tobytes())
        names.append(digest.digest())
    return names


def copied(cache: Any) -> Any:  # noqa: ANN401
    """Return a cache to which can be added while `cache` stays as it is; they share their numbers.

    transformers makes new tensors when it adds to one.
    """
    if cache is None:
        return None
    other = _copy(cache)
    other.is_updated = dict(cache.is_updated)
    for name in ("self_attention_cache", "cross_attention_cache"):
        part = _copy(getattr(cache, name))
        part.layers = list(map(_copy, part.layers))
        setattr(other, name, part)
    return other


def forgets(cache: Any) -> bool:  # noqa: ANN401
    """Return whether there are layers in `cache` that let go of the first tokens for the last."""
    return cache is not None and any(
        layer.is_sliding for layer in cache.self_attention_cache.layers
    )


def shortened(cache: Any) -> Any:  # noqa: ANN401
    """Return a cache without the last token that was written, while `cache` stays as it is."""
    other = copied(cache)
    for layer in other.self_attention_cache.layers:
        layer.crop(-1)
    return other


def _copy(value: Any) -> Any:  # noqa: ANN401
    """Return what `copy.copy` does; each step copies each layer of each request."""
    other = object.__new__(type(value))
    vars(other).update(vars(value))
    return other


def _numbers(recall: Recall) -> list[torch.Tensor]:
    """Return all that `recall` holds."""
    parts = (recall.cache.self_attention_cache, recall.cache.cross_attention_cache)
    layers = [layer for part in parts for layer in part.layers]
    return [recall.encoded[0], *(half for layer in layers for half in (layer.keys, layer.values))]
