"""Prompts of requests: which template is run, and on which requests none is."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from loramux.errors import FailedPreconditionError
from loramux.v1.generation_pb2 import ChatMessage, GenerateRequest
from loramux_server.services.prompts import Prompts
from tests.server.test_limits import MODEL
from tests.support.models import byte_tokenizer

OWN = "own: {{ messages[0].content }}"
TALK = GenerateRequest(messages=[ChatMessage(role="user", content="hi")])
TOKENIZER = byte_tokenizer()
SERVED = msgspec.structs.replace(
    MODEL,
    tokenizer_json=TOKENIZER.backend_tokenizer.to_str(),
    vocab_size=len(TOKENIZER),
    chat_template="base: {{ messages[0].content }}{{ add_generation_prompt }}",
)


def text_of(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens))


@pytest.fixture
async def prompts() -> AsyncIterator[Prompts]:
    prompts = Prompts(SERVED)
    yield prompts
    await prompts.close()


async def test_the_template_of_the_adapter_goes_before_that_of_the_base(prompts: Prompts) -> None:
    assert text_of(await prompts.tokens(TALK, OWN)) == "own: hi"
    assert text_of(await prompts.tokens(TALK, None)) == "base: hiTrue"


async def test_a_prompt_need_not_end_with_what_begins_an_answer(prompts: Prompts) -> None:
    request = GenerateRequest(add_generation_prompt=False)
    request.MergeFrom(TALK)
    assert text_of(await prompts.tokens(request, None)) == "base: hiFalse"


async def test_a_template_puts_no_prefix_of_the_tokenizer_before_a_prompt(
    prompts: Prompts,
) -> None:
    assert TOKENIZER.bos_token_id not in await prompts.tokens(TALK, OWN)
    assert (await prompts.tokens(GenerateRequest(prompt="hi"), None))[0] == TOKENIZER.bos_token_id


async def test_templates_of_adapters_can_be_switched_off() -> None:
    prompts = Prompts(SERVED, adapter_templates=False)
    with pytest.raises(FailedPreconditionError, match="--no-adapter-templates") as caught:
        await prompts.tokens(TALK, OWN)
    assert caught.value.reason == "CHAT_TEMPLATE_MISSING"
    assert text_of(await prompts.tokens(TALK, None)) == "base: hiTrue"
    await prompts.close()


async def test_a_conversation_without_any_template_is_refused() -> None:
    prompts = Prompts(msgspec.structs.replace(SERVED, chat_template=None))
    with pytest.raises(FailedPreconditionError, match="neither the adapter nor the base") as caught:
        await prompts.tokens(TALK, None)
    assert (caught.value.reason, caught.value.field) == ("CHAT_TEMPLATE_MISSING", "messages")
    await prompts.close()
