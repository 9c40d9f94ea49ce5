"""Images in messages: where they come in a prompt, who is told of them, and what is refused."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from loramux.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    LoramuxError,
    ResourceExhaustedError,
)
from loramux.v1.generation_pb2 import (
    ChatMessage,
    ContentPart,
    GenerateRequest,
    Image,
    SamplingParams,
    StreamGenerateResponse,
)
from loramux_server.chat.encoder import ChatEncoder
from loramux_server.chat.messages import Piece
from loramux_server.config import ServerConfig
from loramux_server.engine_link.quarantine import key_of
from loramux_server.images.messages import PlacedImage, Placeholder
from loramux_server.metrics.totals import Totals
from loramux_server.services.server import ServerService
from loramux_server.store.policy import Policy
from loramux_server.store.reference import DEFAULT_TENANT
from loramux_server.transport.connection_limits import MESSAGE_BYTES, message_bytes
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import (
    Finish,
    Logprobs,
    Submit,
    Token,
    decode_to_engine,
    encode,
)
from loramux_server.wire.sampling import Sampling
from tests.server.test_streaming import TOKEN, Served, woken
from tests.support.images import (
    LISTED,
    NUM_BYTES,
    NUM_TOKENS,
    OF_TEXTS,
    ONLY_LISTED,
    PLACEHOLDER,
    PLACEHOLDER_ID,
    TOKENIZER,
    VISION_MODEL,
    FakePreparer,
    prepared,
)
from tests.support.policies import KeptPolicies
from tests.support.rooms import open_room

SEEN = PLACEHOLDER * NUM_TOKENS
CAT, DOG = b"a cat", b"a dog"


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - nothing to await
            await asyncio.sleep(0.001)


def said(role: str, *parts: str | bytes, **fields: Any) -> ChatMessage:
    """Return a message of texts and of images, which are bytes."""
    made = [
        ContentPart(text=part) if isinstance(part, str) else ContentPart(image=Image(data=part))
        for part in parts
    ]
    return ChatMessage(role=role, parts=made, **fields)


class VisionServed(Served):
    """The service over a base model that sees."""

    def __init__(self, **options: Any) -> None:
        self.preparer = FakePreparer()
        super().__init__(preparer=self.preparer, **{**VISION_MODEL, **options})

    def ask(
        self, *messages: ChatMessage, timeout: float | None = None, **sampling: Any
    ) -> AsyncGenerator[StreamGenerateResponse, None]:
        context: Any = SimpleNamespace(time_remaining=lambda: timeout)
        params = SamplingParams(**{"max_tokens": 4, **sampling})
        return self.service.StreamGenerate(
            GenerateRequest(messages=messages, sampling=params), context
        )

    async def submitted(self, *messages: ChatMessage, **sampling: Any) -> list[Ask]:
        """Return what the engine is asked for `messages`, which then end."""
        num_before = len(self.submits)
        first = asyncio.ensure_future(anext(self.ask(*messages, **sampling)))
        await until(lambda: len(self.submits) > num_before or first.done())
        found = [submit.ask for submit in self.submits[num_before:]]
        if found:
            first.cancel()
        await asyncio.wait([first])
        if not found:
            raise first.exception() or AssertionError("nothing was asked")
        return found

    @property
    def submits(self) -> list[Submit]:
        return [message for message in self.engine.sent if isinstance(message, Submit)]


Opened = Callable[..., VisionServed]


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """What makes services, which end with the test."""
    made: list[VisionServed] = []

    def make(**options: Any) -> VisionServed:
        made.append(VisionServed(**options))
        return made[-1]

    yield make
    for vision in made:
        await vision.prompts.close()
        assert vision.preparer.is_closed


@pytest.fixture
def vision(opened: Opened) -> VisionServed:
    return opened()


def text_of(ask: Ask) -> str:
    return str(TOKENIZER.decode(ask.prompt, skip_special_tokens=False))


async def test_images_stand_in_a_prompt_where_they_stood_in_the_messages(
    vision: VisionServed,
) -> None:
    (ask,) = await vision.submitted(
        ChatMessage(role="system", content="Look."),
        said("user", CAT, "Or ", DOG, "?"),
    )
    assert text_of(ask) == f"[system]Look.[user]{SEEN}Or {SEEN}?[assistant]"
    assert [placed.image for placed in ask.images] == [
        prepared(CAT).image, prepared(DOG).image,
    ]  # fmt: skip
    for placed in ask.images:
        assert placed.length == NUM_TOKENS
        here = ask.prompt[placed.start : placed.start + placed.length]
        assert here == [PLACEHOLDER_ID] * NUM_TOKENS
    assert ask.prompt.count(PLACEHOLDER_ID) == 2 * NUM_TOKENS
    assert decode_to_engine(encode(Submit(1, ask))) == Submit(1, ask)
    assert vision.preparer.fields == ["messages[1].parts[0].image", "messages[1].parts[2].image"]


async def test_every_completion_and_every_beam_has_the_images(vision: VisionServed) -> None:
    asked = await vision.submitted(said("user", "What?", CAT), n=2)
    assert [[placed.image for placed in each.images] for each in asked] == [
        [prepared(CAT).image]
    ] * 2
    vision.engine.sent.clear()
    stream = vision.ask(said("user", "What?", CAT), num_beams=2, n=2)
    first = asyncio.ensure_future(anext(stream))
    for length in range(4):
        await until(lambda: bool(vision.submits))
        step = vision.submits
        vision.engine.sent.clear()
        assert {each.ask.num_generated for each in step} == {length}
        assert [each.ask.images for each in step] == [asked[0].images] * len(step)
        likely = Logprobs(-0.5, [(10, -0.5), (11, -1.0), (12, -2.0)])
        vision.engine.report(*(Token(each.request_id, 10, Finish.LENGTH, likely) for each in step))
    await first
    (last,) = [response async for response in stream]
    assert last.usage.prompt_tokens == len(asked[0].prompt)


async def test_tokens_of_images_are_tokens_of_the_prompt(vision: VisionServed) -> None:
    stream = vision.ask(said("user", CAT), max_tokens=1)
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: bool(vision.submits))
    vision.engine.report(Token(vision.submits[0].request_id, TOKEN, Finish.LENGTH))
    usage = (await first).usage
    assert usage.prompt_tokens == len("[user][assistant]") + NUM_TOKENS
    assert vision.count("prompt_tokens_total") == usage.prompt_tokens


async def test_text_around_an_image_is_text_of_the_prompt(vision: VisionServed) -> None:
    vision.preparer.stands = Placeholder(PLACEHOLDER_ID, "<", ">")
    (ask,) = await vision.submitted(said("user", "a", CAT, "b"))
    assert text_of(ask) == f"[user]a<{SEEN}>b[assistant]"
    (placed,) = ask.images
    assert placed.start == len("[user]a<")


def test_text_around_an_image_shares_tokens_with_that_beside_it() -> None:
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2, "?": 3}, [("a", "b")], unk_token="?"))
    tokenizer.add_special_tokens(["<image>"])
    encoder = ChatEncoder(tokenizer.to_str())
    pieces = [Piece("a", False), Piece("<image>", True), Piece("b", False)]
    assert encoder.encode(pieces, Placeholder(4)) == [0, 4, 1]
    assert encoder.encode(pieces, Placeholder(4, "b", "a")) == [2, 4, 2]


async def test_no_text_becomes_an_image(vision: VisionServed) -> None:
    """Though the tokenizer says that the placeholder is no control token."""
    (ask,) = await vision.submitted(
        said("user", PLACEHOLDER, CAT, f"{PLACEHOLDER[:3]}", f"{PLACEHOLDER[3:]}"),
        ChatMessage(role="assistant", content=f"{PLACEHOLDER}!"),
        ChatMessage(role="user", content=PLACEHOLDER),
    )
    assert ask.prompt.count(PLACEHOLDER_ID) == NUM_TOKENS
    (placed,) = ask.images
    assert placed.start == len(f"[user]{PLACEHOLDER}")
    assert text_of(ask) == (
        f"[user]{PLACEHOLDER}{SEEN}{PLACEHOLDER}[assistant]{PLACEHOLDER}![user]{PLACEHOLDER}"
        "[assistant]"
    )


async def test_texts_alone_are_one_text_whatever_the_template_knows(opened: Opened) -> None:
    for template, written in (
        (OF_TEXTS, "user: ab"), (LISTED, "[user]ab[assistant]"), (ONLY_LISTED, "[user]ab"),
    ):  # fmt: skip
        vision = opened(chat_template=template)
        for message in (said("user", "a", "b"), ChatMessage(role="user", content="ab")):
            (ask,) = await vision.submitted(message)
            assert (text_of(ask), ask.images) == (written, [])


async def test_a_template_that_knows_lists_alone_is_given_no_texts(opened: Opened) -> None:
    vision = opened(chat_template=ONLY_LISTED)
    (ask,) = await vision.submitted(
        ChatMessage(role="system", content="Look."),
        said("user", "What? ", CAT),
        ChatMessage(role="assistant", content="A cat."),
        ChatMessage(role="user", content="Sure?"),
    )
    assert text_of(ask) == f"[system]Look.[user]{SEEN}What? [assistant]A cat.[user]Sure?"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (OF_TEXTS, "has 1 images, but the chat template puts 0 into the prompt"),
        (LISTED.replace("'<image>'", "'<image>' * 2"), "puts 2 into the prompt"),
        ("{{ 'hi ' + messages[0].content }}<image>", "the chat template fails: TypeError"),
    ],
)
async def test_a_template_has_to_know_of_images(opened: Opened, template: str, says: str) -> None:
    vision = opened(chat_template=template)
    with pytest.raises(FailedPreconditionError, match=says) as caught:
        await vision.submitted(said("user", "What?", CAT))
    assert caught.value.field == "messages"
    assert vision.preparer.fields == []


USER = said("user", "What?", CAT)
WRONG: list[tuple[tuple[ChatMessage, ...], str, str]] = [
    ((said("user", CAT, content="hi"),), "messages[0].parts", "is set, and so is content"),
    ((ChatMessage(role="user", parts=[ContentPart(text="a"), ContentPart()]),),
     "messages[0].parts[1]", "is empty; expected text or image"),
    ((USER, said("assistant", "x", CAT)), "messages[1].parts[1].image",
     "the role is assistant, not one of user, system, developer, tool"),
    ((USER, said("user", b"")), "messages[1].parts[0].image", "is empty; expected the bytes"),
    ((said("user", b"x" * ((1 << 20) + 1)),), "messages[0].parts[0].image",
     "has 1048577 bytes; expected at most 1048576"),
    ((said("user", CAT, CAT), said("tool", CAT, CAT)), "messages",
     "has 4 images; expected at most 3"),
    ((said("user", CAT, "x" * (256 << 10)),), "messages", "expected at most 262144"),
    ((said("user", CAT, b"bad"),), "messages[0].parts[1].image", "no image"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "field", "says"), WRONG, ids=[each[2] for each in WRONG])
async def test_what_is_wrong_is_named(
    vision: VisionServed, messages: tuple[ChatMessage, ...], field: str, says: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await vision.submitted(*messages)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", field)
    assert says in str(caught.value) and str(caught.value).startswith(field)


async def test_large_images_leave_texts_their_room(vision: VisionServed) -> None:
    (ask,) = await vision.submitted(said("user", bytes(1 << 20), "x" * 1000))
    assert len(ask.images) == 1


@pytest.mark.parametrize(
    ("of_model", "says"),
    [
        (
            {"no_vision_reason": "its tower is of another kind"},
            "does not support images: its tower",
        ),
        ({"architecture": "LlamaForCausalLM"}, "LlamaForCausalLM, does not support images"),
    ],
)
async def test_a_base_without_vision_says_so(
    opened: Opened, of_model: dict[str, Any], says: str
) -> None:
    vision = opened(supports_images=False, **of_model)
    with pytest.raises(FailedPreconditionError, match=says) as caught:
        await vision.submitted(ChatMessage(role="system", content="x"), USER)
    assert caught.value.reason == "IMAGES_NOT_SERVED"
    assert caught.value.field == "messages[1].parts[1].image"


async def test_a_context_that_is_too_small_says_what_images_take(opened: Opened) -> None:
    # What the template writes fits, and so does one image.
    vision = opened(context_length=22)
    with pytest.raises(InvalidArgumentError) as caught:
        await vision.submitted(said("user", CAT, DOG, DOG))
    assert str(caught.value) == (
        "messages have 24 tokens (6 of them for 2 images); the context of 22 is smaller"
    )
    assert (caught.value.reason, caught.value.field) == ("CONTEXT_LENGTH_EXCEEDED", "messages")
    assert len(vision.preparer.fields) == 2
    for context_length, says in (
        (25, "prompt has 25 tokens (3 of them for images); the context of 25 leaves no room"),
        (28, "after a prompt of 25 tokens (3 of them for images) the context of 28 leaves room"),
    ):
        vision = opened(context_length=context_length)
        with pytest.raises(InvalidArgumentError, match=re.escape(says)) as caught:
            await vision.submitted(said("user", CAT, "x" * 5))
        assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"


async def begun(
    vision: VisionServed, *messages: ChatMessage, **options: Any
) -> "asyncio.Task[Any]":
    """Return the task of a request whose first image is being prepared."""
    vision.preparer.gate.clear()
    vision.preparer.fields.clear()
    task = asyncio.ensure_future(anext(vision.ask(*messages, **options)))
    await until(lambda: bool(vision.preparer.fields))
    return task


async def test_who_goes_away_takes_the_preparation_along(vision: VisionServed) -> None:
    task = await begun(vision, said("user", CAT, DOG))
    task.cancel()
    await asyncio.wait([task])
    assert vision.preparer.num_given_up == len(vision.preparer.fields) == 1
    assert vision.submits == []


async def test_a_deadline_ends_a_preparation(vision: VisionServed) -> None:
    task = await begun(vision, USER, timeout=1.5)  # which has to begin within that
    with pytest.raises(DeadlineExceededError, match=r"within 1\.5 s") as caught:
        await task
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert (vision.preparer.num_given_up, vision.submits) == (1, [])


async def test_images_count_in_the_quota(opened: Opened) -> None:
    length = len("[user]What?[assistant]") + NUM_TOKENS
    policy = Policy(tenant=DEFAULT_TENANT, tokens_per_minute=length + 3)
    vision = opened(policies=KeptPolicies(policy))
    with pytest.raises(ResourceExhaustedError, match=f"may use {length + 4}") as caught:
        await vision.submitted(USER, max_tokens=4)
    assert caught.value.reason == "QUOTA_EXCEEDED"
    task = await begun(vision, USER, max_tokens=3)
    # What is certain is kept while images are prepared, and so another is not even begun.
    vision.preparer.fields.clear()
    with pytest.raises(LoramuxError, match="tokens per minute"):
        await vision.submitted(USER, max_tokens=1)
    assert vision.preparer.fields == []
    vision.preparer.gate.set()
    await woken(task)
    assert len(vision.submits) == 1
    task.cancel()


async def test_what_the_model_takes_of_images_counts_in_the_room(opened: Opened) -> None:
    size = GenerateRequest(messages=[USER], sampling=SamplingParams(max_tokens=4)).ByteSize()
    vision = opened(room=open_room(max_bytes=2 * size + NUM_BYTES))
    waiting = asyncio.ensure_future(anext(vision.ask(USER)))
    await until(lambda: bool(vision.submits))
    with pytest.raises(ResourceExhaustedError) as caught:
        await vision.submitted(USER)
    assert caught.value.reason == "QUEUE_FULL"
    assert f"{size + NUM_BYTES} of at most {2 * size + NUM_BYTES} bytes" in str(caught.value)
    waiting.cancel()
    await asyncio.wait([waiting])
    # What is too large by itself may wait alone.
    alone = opened(room=open_room(max_bytes=1))
    assert len(await alone.submitted(USER)) == 1


async def test_images_take_room_while_others_are_still_prepared(opened: Opened) -> None:
    """Each may become hundreds of megabytes, and there may be many such requests."""
    both = said("user", CAT, DOG)
    size = GenerateRequest(messages=[both], sampling=SamplingParams(max_tokens=4)).ByteSize()
    room = open_room()
    vision = opened(room=room)
    first = await begun(vision, both)
    assert room._taken.bytes == size
    vision.preparer.gate.set()
    vision.preparer.gate.clear()  # one has got through
    await until(lambda: len(vision.preparer.fields) == 2)
    assert room._taken.bytes == size + NUM_BYTES
    first.cancel()
    await asyncio.wait([first])


def test_a_request_is_another_one_with_another_image() -> None:
    def key(*images: bytes) -> str:
        placed = [PlacedImage(0, 1, prepared(image).image) for image in images]
        return key_of(Ask([1], None, Sampling(max_tokens=1, seed=0), images=placed))

    assert len({key(), key(CAT), key(DOG), key(CAT, DOG), key(DOG, CAT)}) == 5
    assert key(CAT) == key(CAT)


async def test_a_server_says_how_many_images_it_takes(opened: Opened) -> None:
    async def reported(serves_images: bool, **settings: Any) -> tuple[int, int]:
        model = opened(supports_images=serves_images).model
        config = ServerConfig(model="", max_image_bytes=1 << 20, **settings)
        service = ServerService(model, config, Totals())
        found = await service.GetServerInfo(None, None)  # type: ignore[arg-type]
        assert (found.max_image_bytes, found.max_image_pixels) == (1 << 20, 1 << 24)
        return found.max_images, found.max_request_bytes

    assert await reported(True) == (8, MESSAGE_BYTES + (3 << 20))
    assert await reported(True, max_images=1) == (1, MESSAGE_BYTES + (1 << 20))
    assert await reported(True, max_images=0) == await reported(False) == (0, MESSAGE_BYTES)
    assert message_bytes(8, 8 << 20) == 28 << 20
