"""Prefix caching for encoder-decoders: encoded sources, and caches of what was written to them."""

import hashlib
from array import array
from collections import Counter, OrderedDict
from dataclasses import replace
from typing import Any

import torch

from loramux_server.kernels.encoder_text import Owner, Seq2SeqState

TENSOR_OVERHEAD = 640
"""Overhead of a tensor besides its elements, including its share of containers, in bytes."""
Tokens = tuple[int, ...]
_Key = tuple[Owner, bytes, bytes]
"""Owner, and the hashes of the source and of what was written."""


class Seq2SeqPrefixCache:
    """LRU cache of encoded sources, each with a prefix of the written tokens.

    Entries are shared within one tenant and adapter only.
    """

    def __init__(self) -> None:
        self.max_bytes = 0
        """Size limit. Elements that several entries share count once."""
        self._entries: OrderedDict[_Key, Seq2SeqState] = OrderedDict()
        self._uses: Counter[int] = Counter()
        """Address of elements -> number of cached tensors that share them."""
        self._num_bytes = 0

    def find(self, owner: Owner, source: Tokens, written: Tokens) -> Seq2SeqState | None:
        """Return the entry of `source` and the longest cached proper prefix of `written`."""
        if not self._entries:
            return None
        of_source = _hash(source)
        for name in reversed(_prefix_hashes(written)[:-1]):
            key = (owner, of_source, name)
            if key in self._entries:
                self._entries.move_to_end(key)
                return replace(self._entries[key])
        return None

    def put(self, owner: Owner, source: Tokens, written: Tokens, *, state: Seq2SeqState) -> None:
        """Add an entry, and evict the least recently used ones beyond the size limit."""
        if not self.max_bytes:
            return
        key = (owner, _hash(source), _hash(written))
        if key in self._entries:
            return
        self._entries[key] = replace(state, before=None)
        for numbers in _numbers(state):
            address = numbers.data_ptr()
            self._num_bytes += (
                TENSOR_OVERHEAD if address in self._uses else numbers.nbytes + TENSOR_OVERHEAD
            )
            self._uses[address] += 1
        while self._num_bytes > self.max_bytes:
            _, evicted = self._entries.popitem(last=False)
            for numbers in _numbers(evicted):
                self._release(numbers)

    def _release(self, numbers: torch.Tensor) -> None:
        address = numbers.data_ptr()
        self._num_bytes -= TENSOR_OVERHEAD
        self._uses[address] -= 1
        if not self._uses[address]:
            del self._uses[address]
            self._num_bytes -= numbers.nbytes


def _hash(tokens: Tokens) -> bytes:
    """Return the hash of `tokens`, 32 bytes."""
    return hashlib.sha256(array("q", tokens).tobytes()).digest()


def _prefix_hashes(tokens: Tokens) -> list[bytes]:
    """Return the `_hash` of each prefix of `tokens`, the empty one first."""
    digest = hashlib.sha256()
    names = [digest.digest()]
    for token in tokens:
        digest.update(array("q", (token,)).tobytes())
        names.append(digest.digest())
    return names


def copied(cache: Any) -> Any:  # noqa: ANN401
    """Return a copy of `cache` that can be extended without changing it; tensors are shared.

    transformers creates new tensors when it extends a cache.
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


def has_sliding_window(cache: Any) -> bool:  # noqa: ANN401
    """Return whether `cache` has layers that drop old tokens (sliding windows)."""
    return cache is not None and any(
        layer.is_sliding for layer in cache.self_attention_cache.layers
    )


def shortened(cache: Any) -> Any:  # noqa: ANN401
    """Return a copy of `cache` without the last written token."""
    other = copied(cache)
    for layer in other.self_attention_cache.layers:
        layer.crop(-1)
    return other


def _copy(value: Any) -> Any:  # noqa: ANN401
    """Do what `copy.copy` does, but faster; each step copies each layer of each request."""
    other = object.__new__(type(value))
    vars(other).update(vars(value))
    return other


def _numbers(state: Seq2SeqState) -> list[torch.Tensor]:
    """Return all tensors in `state`."""
    parts = (state.cache.self_attention_cache, state.cache.cross_attention_cache)
    layers = [layer for part in parts for layer in part.layers]
    return [state.encoded[0], *(half for layer in layers for half in (layer.keys, layer.values))]
