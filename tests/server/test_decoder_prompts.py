"""What the engine is asked where the base model writes another text than it reads."""

import asyncio
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from msgspec.structs import replace
from transformers import T5Config, T5ForConditionalGeneration

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_server.engine_link.probe import Probe
from loramux_server.engine_link.quarantine import key_of
from loramux_server.models.encoders.writing import writing_of
from loramux_server.models.servable import UnservableModelError
from loramux_server.services.adapters.intake import Intake
from loramux_server.store.record import source_of
from loramux_server.wire.ask import Ask
from loramux_server.wire.messages import Submit
from loramux_server.wire.model_kind import ModelKind
from loramux_server.wire.sampling import Sampling
from loramux_server.wire.writing import Writing
from tests.server.test_streaming import Served
from tests.support.bases import ROOMY
from tests.support.models import byte_tokenizer
from tests.support.reads import ReadingEngine, encoder_info, record_of

CONTEXT: Any = SimpleNamespace(time_remaining=lambda: None)
SEQ2SEQ: dict[str, Any] = {
    "kind": ModelKind.SEQ2SEQ, "architecture": "T5", "source_length": 30, "context_length": 50,
    "writing": Writing(decoder_start=0, forced_bos=9, forbidden=[5]),
}  # fmt: skip


async def asked(served: Served, **fields: Any) -> list[Ask]:
    """Return what the engine is asked for a request, which is left then."""
    request = generation_pb2.GenerateRequest(**fields)
    stream = served.service.StreamGenerate(request, CONTEXT)
    task = asyncio.ensure_future(anext(stream))
    while not served.engine.sent:
        await asyncio.sleep(0)
        if task.done():
            await task
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return [message.ask for message in served.engine.sent if isinstance(message, Submit)]


@pytest.mark.parametrize(
    ("fields", "begun"),
    [
        ({}, [0, 9]),
        ({"decoder_prompt_token_ids": [7]}, [0, 7]),
        ({"decoder_prompt_token_ids": [0, 7]}, [0, 7]),
        ({"decoder_prompt_token_ids": [0]}, [0]),
        ({"decoder_prompt": "</s>"}, [0, 30, 17, 85, 32]),
        ({"decoder_prompt": "</s>", "parse_special_tokens": True}, [0, 2]),
    ],
)
async def test_the_source_comes_first_and_then_what_the_decoder_begins_with(
    fields: dict[str, Any], begun: list[int]
) -> None:
    (sent,) = await asked(Served(**SEQ2SEQ), prompt_token_ids=[17, 18, 19], **fields)
    assert (sent.prompt, sent.num_source) == ([17, 18, 19, *begun], 3)
    # What is not said is what there is room for, whatever is read.
    assert sent.sampling.max_tokens == 20 - len(begun)
    assert sent.sampling.logit_bias == {5: float("-inf")}


@pytest.mark.parametrize("kind", [ModelKind.DECODER, ModelKind.SEQ2SEQ])
async def test_what_would_be_wrong_is_refused_by_name(kind: ModelKind) -> None:
    served = Served(**SEQ2SEQ) if kind is ModelKind.SEQ2SEQ else Served(architecture="Llama")
    cases: list[tuple[dict[str, Any], str, str]] = [
        (
            {"decoder_prompt": "a", "decoder_prompt_token_ids": [3]},
            "decoder_prompt",
            "decoder_prompt and decoder_prompt_token_ids are both set; set one of them",
        ),
        (
            {"decoder_prompt": "a" * (1 << 18) + "b"},
            "decoder_prompt",
            "decoder_prompt has 262145 bytes; expected at most 262144",
        ),
        (
            {"decoder_prompt_token_ids": [3] * 19},
            "decoder_prompt_token_ids",
            "decoder_prompt_token_ids has 20 tokens with the decoder's own; the output length of "
            "20 leaves no room for a completion",
        ),
    ]
    if kind is ModelKind.DECODER:
        field = "decoder_prompt"
        reported = "is set, but the base model, Llama, is decoder-only; expected none"
        cases = [({name: value}, name, f"{name} {reported}") for name, value in (
            (field, "a"), (f"{field}_token_ids", [3])
        )]  # fmt: skip
    for fields, field, message in cases:
        request = generation_pb2.GenerateRequest(prompt="a", **fields)
        with pytest.raises(InvalidArgumentError) as caught:
            await served.service.Generate(request, CONTEXT)
        assert (str(caught.value), caught.value.field) == (message, field)
    assert not served.engine.sent


async def test_messages_are_read_as_a_template_writes_them_if_there_is_one() -> None:
    served = Served(**SEQ2SEQ)
    request = generation_pb2.GenerateRequest(
        messages=[generation_pb2.ChatMessage(role="user", content="a")]
    )
    with pytest.raises(FailedPreconditionError) as caught:
        await served.service.Generate(request, CONTEXT)
    assert caught.value.reason == "CHAT_TEMPLATE_MISSING"
    served = Served(**SEQ2SEQ, chat_template="{{ messages[0]['content'] }}</s>")
    (sent,) = await asked(served, messages=request.messages)
    assert (sent.prompt, sent.num_source) == ([*byte_tokenizer()("a").input_ids[1:], 2, 0, 9], 2)
    await served.prompts.close()


async def test_what_is_tried_out_has_both_sides() -> None:
    info = encoder_info("{}", **SEQ2SEQ)
    engine = ReadingEngine(lambda _: [1.0])
    registry = SimpleNamespace(source_of=lambda record: source_of(record, Path()))
    intake = Intake(
        registry=cast(Any, registry), engine=engine, model=info, base=ROOMY, max_upload_bytes=1
    )
    await intake.load(record_of(""))
    assert await Probe(engine, info, interval=1, on_result=lambda _: None)._makes_a_token()
    assert [(sent.prompt[sent.num_source :], sent.pooling) for sent in engine.sent] == [
        ([0], None), ([0], None),
    ]  # fmt: skip
    assert [sent.num_source for sent in engine.sent] == [8, 1]


def test_what_is_read_is_a_part_of_what_a_request_is_known_by() -> None:
    ask = Ask([1, 2, 3], None, Sampling(max_tokens=4, seed=0))
    assert len({key_of(replace(ask, num_source=count)) for count in range(3)}) == 3


def test_a_model_says_how_it_writes_as_its_generation_config_does() -> None:
    config = T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        decoder_start_token_id=4,
    )  # fmt: skip
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    assert writing_of(model, 20, [1]) == Writing(decoder_start=4)
    model.generation_config.update(
        bad_words_ids=[[1], [3], [7, 8]], suppress_tokens=[6, 40], forced_bos_token_id=2
    )
    assert writing_of(model, 20, [1]) == Writing(decoder_start=4, forced_bos=2, forbidden=[3, 6])
    model.generation_config.decoder_start_token_id = None
    model.generation_config.bos_token_id = 5
    assert writing_of(model, 20, [1]).decoder_start == 5
    model.generation_config.bos_token_id = None
    with pytest.raises(UnservableModelError, match=r"decoder_start_token_id of its .* is None"):
        writing_of(model, 20, [1])
