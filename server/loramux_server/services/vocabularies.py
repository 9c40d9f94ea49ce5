"""Tokenizers and chat formats of the base model and of adapters."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping

from loramux_adapters.added_tokens import AddedToken
from loramux_server.chat.format import ChatFormat
from loramux_server.store.package_settings import PackageSettings
from loramux_server.tasks import finished
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.wire.model_info import ModelInfo

KEPT = 4
"""Adapter tokenizers kept in memory; they share the base's vocabulary."""
KEPT_FORMATS = 1024
"""Adapters whose chat format is cached."""


class Vocabularies:
    """The tokenizers and chat formats of a base model and its adapters."""

    def __init__(self, model: ModelInfo) -> None:
        """Load the tokenizer of `model`, if it has one."""
        self._special_tokens = model.special_tokens
        self._tokenizer = TextTokenizer(model.tokenizer_json) if model.tokenizer_json else None
        self._own: OrderedDict[tuple[AddedToken, ...], TextTokenizer] = OrderedDict()
        """LRU cache of adapter tokenizers, the most recently used last."""
        self._formats: dict[int, tuple[PackageSettings, ChatFormat]] = {}
        """`id` of settings -> the settings, which keep the `id` valid, and its chat
        format."""
        self._preparing = asyncio.Lock()

    async def tokenizer(self, settings: PackageSettings) -> TextTokenizer | None:
        """Return the tokenizer for the adapter with `settings`; None if the base has none."""
        added = self._added(settings)
        if not added:
            return self._tokenizer
        if own := self._own.get(added):  # without waiting for one that is being prepared
            self._own.move_to_end(added)
            return own
        # A cancelled caller must not waste the work: with short deadlines it would never be done.
        return await finished(self._prepare(added))

    async def _prepare(self, added: tuple[AddedToken, ...]) -> TextTokenizer:
        async with self._preparing:
            own = self._own.get(added)
            if own is None:
                assert self._tokenizer is not None
                own = await asyncio.to_thread(TextTokenizer, self._tokenizer, added)
                self._own[added] = own
                if len(self._own) > KEPT:
                    self._own.popitem(last=False)
            return own

    def _added(self, settings: PackageSettings) -> tuple[AddedToken, ...]:
        """Return the tokens of an adapter that the base's tokenizer lacks."""
        return self.chat_format(settings).added_tokens

    def has_own(self, settings: PackageSettings, ids: Mapping[str, int]) -> bool:
        """Return whether the base lacks one of an adapter's tokens, given as name -> id."""
        return not {token.id for token in self._added(settings)}.isdisjoint(ids.values())

    def chat_format(self, settings: PackageSettings) -> ChatFormat:
        """Return the chat format of the adapter with `settings`."""
        kept = self._formats.get(id(settings))
        if kept is not None and kept[0] is settings:
            return kept[1]
        known = self._special_tokens
        found = ChatFormat(
            settings.chat_template,
            self._tokenizer.lacking(settings.added_tokens) if self._tokenizer else (),
            tuple(
                (name, text) for name, text in sorted(settings.special_tokens.items())
                if known.get(name) != text
            ),
        )  # fmt: skip
        if len(self._formats) >= KEPT_FORMATS:
            self._formats.clear()
        self._formats[id(settings)] = settings, found
        return found
