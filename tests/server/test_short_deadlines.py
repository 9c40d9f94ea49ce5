"""Work that takes longer than its callers wait is there for the next one, and delays no others."""

import asyncio
from collections.abc import Awaitable, Callable
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from loramux_adapters.added_tokens import AddedToken
from loramux_server.chat import chat
from loramux_server.chat.encoder import ChatEncoder
from loramux_server.chat.format import OF_BASE, ChatFormat
from loramux_server.services import vocabularies
from loramux_server.store.package_settings import PackageSettings
from tests.support.models import byte_tokenizer
from tests.support.slow import slow

TOKENIZER = byte_tokenizer().backend_tokenizer
NEW = AddedToken(TOKENIZER.get_vocab_size(), "<new>", special=True)
OTHER = AddedToken(TOKENIZER.get_vocab_size(), "<other>", special=True)


def encoder() -> Callable[[], Awaitable[object]]:
    conversations = chat.Chat(TOKENIZER.to_str(), None, {})
    return lambda: conversations.vocabulary(OF_BASE)


def own_tokenizer() -> Callable[[], Awaitable[object]]:
    model = SimpleNamespace(special_tokens={}, tokenizer_json=TOKENIZER.to_str())
    texts = vocabularies.Vocabularies(cast(Any, model))
    return lambda: texts.tokenizer(PackageSettings(added_tokens=(NEW,)))


@pytest.mark.parametrize(("make", "module", "name"), [
    (encoder, chat, "ChatEncoder"), (own_tokenizer, vocabularies, "TextTokenizer"),
], ids=["chat", "tokenizer"])  # fmt: skip
async def test_a_caller_that_gives_up_does_not_waste_the_work(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], Callable[[], Awaitable[object]]],
    module: ModuleType,
    name: str,
) -> None:
    ask = make()
    with slow(monkeypatch, module, name) as has_begun:
        task = asyncio.ensure_future(ask())
        assert await asyncio.to_thread(has_begun.wait, 60)
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.setattr(module, name, None)  # cannot be made again
    assert await ask()


def chat_encoders() -> Callable[[AddedToken], Awaitable[object]]:
    conversations = chat.Chat(TOKENIZER.to_str(), None, {})
    return lambda added: conversations.vocabulary(ChatFormat(added_tokens=(added,)))


def own_tokenizers() -> Callable[[AddedToken], Awaitable[object]]:
    model = SimpleNamespace(special_tokens={}, tokenizer_json=TOKENIZER.to_str())
    texts = vocabularies.Vocabularies(cast(Any, model))
    return lambda added: texts.tokenizer(PackageSettings(added_tokens=(added,)))


@pytest.mark.parametrize(("make", "module", "name"), [
    (chat_encoders, ChatEncoder, "with_own"),
    (own_tokenizers, vocabularies, "TextTokenizer"),
], ids=["chat", "tokenizer"])  # fmt: skip
async def test_a_tokenizer_that_is_prepared_delays_only_those_who_need_it(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], Callable[[AddedToken], Awaitable[object]]],
    module: object,
    name: str,
) -> None:
    ask = make()
    known = await ask(NEW)
    with slow(monkeypatch, module, name) as has_begun:
        waiting = asyncio.ensure_future(ask(OTHER))
        assert await asyncio.to_thread(has_begun.wait, 60)
        async with asyncio.timeout(5):
            assert await ask(NEW) is known
    assert await waiting is not known
