"""The tokens that adapters have beside their base's, and how conversations are written for them."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping

from loramux_adapters.added_tokens import AddedToken
from loramux_server.chat.format import ChatFormat
from loramux_server.store.instructions import Instruction
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.wire.model_info import ModelInfo

KEPT = 4
"""Tokenizers of adapters that stay in memory; they share the vocabulary of the base's."""
KEPT_FORMATS = 1024
"""Adapters of which it is remembered how conversations are written."""


class Vocabularies:
    """The tokenizers of a base model and its adapters."""

    def __init__(self, model: ModelInfo) -> None:
        """Read that of `model`, if it has one."""
        self._special_tokens = model.special_tokens
        self._tokenizer = TextTokenizer(model.tokenizer_json) if model.tokenizer_json else None
        self._own: OrderedDict[tuple[AddedToken, ...], TextTokenizer] = OrderedDict()
        """Those of adapters, last used last."""
        self._formats: dict[int, tuple[Instruction, ChatFormat]] = {}
        """Number of what an adapter says, which stays the same object, -> that, and its format."""
        self._preparing = asyncio.Lock()

    async def tokenizer(self, told: Instruction) -> TextTokenizer | None:
        """Return the tokenizer of an adapter that says `told`; None where the base has none."""
        added = self._added(told)
        if not added:
            return self._tokenizer
        async with self._preparing:
            own = self._own.get(added)
            if own is None:
                assert self._tokenizer is not None
                own = await asyncio.to_thread(TextTokenizer, self._tokenizer, added)
                self._own[added] = own
                if len(self._own) > KEPT:
                    self._own.popitem(last=False)
            self._own.move_to_end(added)
            return own

    def _added(self, told: Instruction) -> tuple[AddedToken, ...]:
        """Return the tokens of an adapter that the base's tokenizer lacks."""
        return self.chat_format(told).added_tokens

    def has_own(self, told: Instruction, ids: Mapping[str, int]) -> bool:
        """Return whether the base model lacks one of the tokens `ids` of an adapter."""
        return not {token.id for token in self._added(told)}.isdisjoint(ids.values())

    def chat_format(self, told: Instruction) -> ChatFormat:
        """Return how conversations are written for an adapter."""
        kept = self._formats.get(id(told))
        if kept is not None and kept[0] is told:
            return kept[1]
        known = self._special_tokens
        found = ChatFormat(
            told.chat_template,
            self._tokenizer.lacking(told.added_tokens) if self._tokenizer else (),
            tuple(
                (name, text) for name, text in sorted(told.special_tokens.items())
                if known.get(name) != text
            ),
        )  # fmt: skip
        if len(self._formats) >= KEPT_FORMATS:
            self._formats.clear()
        self._formats[id(told)] = told, found
        return found
