"""Prompts of requests: which template is run, and on which requests none is."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from loramux.errors import FailedPreconditionError
from loramux.v1.generation_pb2 import ChatMessage, GenerateRequest
from loramux_adapters.added_tokens import AddedToken
from loramux_server.services.conversation import talk_of
from loramux_server.services.prompts import Prompts
from loramux_server.store.instructions import NONE, Instruction
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


async def made(prompts: Prompts, request: GenerateRequest, told: Instruction) -> list[int]:
    return await prompts.tokens(request, talk_of(request), told)


@pytest.fixture
async def prompts() -> AsyncIterator[Prompts]:
    prompts = Prompts(SERVED)
    yield prompts
    await prompts.close()


async def test_the_template_of_the_adapter_goes_before_that_of_the_base(prompts: Prompts) -> None:
    assert text_of(await made(prompts, TALK, Instruction(OWN))) == "own: hi"
    assert text_of(await made(prompts, TALK, NONE)) == "base: hiTrue"


async def test_a_prompt_need_not_end_with_what_begins_an_answer(prompts: Prompts) -> None:
    request = GenerateRequest(add_generation_prompt=False)
    request.MergeFrom(TALK)
    assert text_of(await made(prompts, request, NONE)) == "base: hiFalse"


async def test_a_template_puts_no_prefix_of_the_tokenizer_before_a_prompt(
    prompts: Prompts,
) -> None:
    assert TOKENIZER.bos_token_id not in await made(prompts, TALK, Instruction(OWN))
    assert (await made(prompts, GenerateRequest(prompt="hi"), NONE))[0] == TOKENIZER.bos_token_id


async def test_templates_of_adapters_can_be_switched_off() -> None:
    prompts = Prompts(SERVED, adapter_templates=False)
    with pytest.raises(FailedPreconditionError, match="--no-adapter-templates") as caught:
        await made(prompts, TALK, Instruction(OWN))
    assert caught.value.reason == "CHAT_TEMPLATE_MISSING"
    assert text_of(await made(prompts, TALK, NONE)) == "base: hiTrue"
    await prompts.close()


async def test_a_conversation_without_any_template_is_refused() -> None:
    prompts = Prompts(msgspec.structs.replace(SERVED, chat_template=None))
    with pytest.raises(FailedPreconditionError, match="neither the adapter nor the base") as caught:
        await made(prompts, TALK, NONE)
    assert (caught.value.reason, caught.value.field) == ("CHAT_TEMPLATE_MISSING", "messages")
    await prompts.close()


async def test_tokens_of_an_adapter_are_known_to_its_requests_alone(prompts: Prompts) -> None:
    size = len(TOKENIZER)
    told = Instruction(added_tokens=(
        AddedToken(1, "<s>", special=True), AddedToken(size, "<call>"),
        AddedToken(size + 1, "<end>", special=True),
    ))  # fmt: skip
    request = GenerateRequest(prompt="a<call><end>", add_special_tokens=False)
    letter, *of_base = await made(prompts, request, NONE)
    of_adapter = await made(prompts, request, told)
    assert of_adapter[:2] == [letter, size]
    # Control tokens are plain text unless the request says otherwise.
    assert size + 1 not in of_adapter and size not in of_base
    request.parse_special_tokens = True
    assert await made(prompts, request, told) == [letter, size, size + 1]
    tokenizer = await prompts.tokenizer(told)
    assert tokenizer is not None
    decoder = tokenizer.decoder([letter], skip_special=True)
    assert [decoder.step(token) for token in (size, size + 1, letter)] == ["<call>", "", "a"]
    with pytest.raises(FailedPreconditionError, match="tokens of its own"):
        await made(prompts, TALK, told)


async def test_tokens_that_the_base_has_are_no_others(prompts: Prompts) -> None:
    told = Instruction(OWN, added_tokens=(AddedToken(1, "<s>", special=True),))
    assert await prompts.tokenizer(told) is await prompts.tokenizer(NONE)
    assert text_of(await made(prompts, TALK, told)) == "own: hi"
