"""Recent outputs of adapters, per tenant, as a source of drafts; bounded and in memory."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from loramux_server.engine.acceptance_rates import AcceptanceRates
from loramux_server.engine.ngrams import BORDER, SIZES, Ngrams
from loramux_server.engine.request import Request

_MOST_KEPT = 1 << 17
"""Most tokens kept of all adapters' texts."""
_MOST_ADAPTERS = 1 << 12
"""Most adapters (per tenant) of which anything is kept."""
_MOST_OF_ADAPTER = 1 << 13
_MOST_OF_TEXT = 1 << 11
_MOST_ENDED = 64
"""Most texts that wait to be indexed."""
_MOST_AT_ONCE = 256
"""Tokens of them that are indexed before a step: a millisecond or two."""

Key = tuple[str, str | None]
"""A tenant, and an adapter's digest; None for the base model."""


@dataclass(slots=True)
class OutputHistory:
    """What an adapter wrote for a tenant, and how well its drafts are accepted."""

    texts: Ngrams = field(default_factory=Ngrams)
    rates: AcceptanceRates = field(default_factory=AcceptanceRates)


class OutputHistories:
    """Owns the histories of all adapters; the least recently used go first."""

    def __init__(self) -> None:
        """Begin without texts."""
        self._histories: OrderedDict[Key, OutputHistory] = OrderedDict()
        """Most recently used last."""
        self._num_kept = 0
        """Tokens of all of them."""
        self._ended: deque[tuple[Key, Sequence[int]]] = deque()
        """Finished texts that are still to be indexed, with their keys."""

    def of(self, request: Request) -> OutputHistory:
        """Return the history of the adapter of `request`, for its tenant."""
        return self._of((request.tenant, request.digest))

    def note(self, request: Request) -> None:
        """Keep the output of `request`, to be indexed later."""
        text = [*request.prompt[-SIZES[0] :], *request.output[:_MOST_OF_TEXT], BORDER]
        self._ended.append(((request.tenant, request.digest), text))
        if len(self._ended) > _MOST_ENDED:
            self._ended.popleft()

    def index_pending(self) -> None:
        """Index some of the texts that wait."""
        num_left = _MOST_AT_ONCE
        while self._ended and num_left:
            key, text = self._ended.popleft()
            if rest := text[num_left:]:
                self._ended.appendleft((key, rest))
            self._keep(key, text[:num_left])
            num_left -= min(len(text), num_left)

    def forget(self, digest: str) -> None:
        """Forget all outputs of an adapter."""
        for key in [key for key in self._histories if key[1] == digest]:
            self._drop(key)
        self._ended = deque(ended for ended in self._ended if ended[0][1] != digest)

    def check(self) -> None:
        """Assert that the limits hold."""
        assert self._num_kept == sum(len(history.texts) for history in self._histories.values())
        assert self._num_kept <= _MOST_KEPT
        assert len(self._histories) <= _MOST_ADAPTERS
        assert len(self._ended) <= _MOST_ENDED

    def _of(self, key: Key) -> OutputHistory:
        history = self._histories.setdefault(key, OutputHistory())
        self._histories.move_to_end(key)
        if len(self._histories) > _MOST_ADAPTERS:
            self._drop(next(iter(self._histories)))
        return history

    def _drop(self, key: Key) -> None:
        self._num_kept -= len(self._histories.pop(key).texts)

    def _keep(self, key: Key, text: Sequence[int]) -> None:
        texts = self._of(key).texts
        before = len(texts)
        for token in text:
            texts.append(token)
        if len(texts) > _MOST_OF_ADAPTER:
            texts.keep(_MOST_OF_ADAPTER // 2)
        self._num_kept += len(texts) - before
        while self._num_kept > _MOST_KEPT:
            self._drop(next(iter(self._histories)))
