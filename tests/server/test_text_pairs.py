"""Two texts as tokens, as transformers joins them, and which of them are of the second."""

from pathlib import Path
from typing import Any

import pytest

from loramux.errors import InvalidArgumentError
from loramux_adapters.labels import Labels, ProblemType
from loramux_server.engine_link.quarantine import key_of
from loramux_server.models.text_format import read_text_format
from loramux_server.services.texts import Text
from loramux_server.store.package_settings import PackageSettings
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.wire.ask import Ask
from loramux_server.wire.sampling import Sampling
from tests.support.encoder_tokenizers import TOKENIZERS, wordpiece
from tests.support.models import byte_tokenizer
from tests.support.reads import Reads, encoder_info

TEXTS = ["Ann left the naïve city 🙂", "", " ", "Bob, too.", "a [SEP] b </s> c"]
QUESTION, CONTEXT = "Who left the city?", "Ann left the city in May. Bob left it, too, the naïve."
TOLD = PackageSettings(labels=Labels(("no", "yes"), ProblemType.SINGLE_LABEL))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_and_pairs_have_the_tokens_of_transformers(kind: str, tmp_path: Path) -> None:
    TOKENIZERS[kind]().save_pretrained(str(tmp_path))
    from transformers import AutoTokenizer

    wanted = AutoTokenizer.from_pretrained(str(tmp_path))
    text_format = read_text_format(str(tmp_path))
    assert text_format.tokenizer_json
    assert text_format.has_token_types == (kind == "wordpiece")
    found = TextTokenizer(text_format.tokenizer_json)
    for text in TEXTS:
        for adds in (True, False):
            options: dict[str, Any] = {"parse_special": True, "add_special": adds}
            ids, places = found.encode_placed(text, "text", **options)
            encoded = wanted(text, add_special_tokens=adds, return_offsets_mapping=True)
            assert ids == encoded.input_ids
            assert [each or (0, 0) for each in places] == encoded.offset_mapping
            for other in TEXTS:
                encoding = found.encode_pair((text, other), ("text", "pair"), **options)
                # Where it is in no list, transformers takes an empty second text for none.
                both = wanted([text], [other], add_special_tokens=adds, return_token_type_ids=True)
                pair = Text.of_pair(encoding)
                assert [pair.tokens] == both.input_ids
                if pair.second_from or adds:
                    assert [types_of(pair.tokens, pair.second_from)] == both.token_type_ids
    assert found.encode("", parse_special=False, add_special=True) == wanted("").input_ids
    assert len(wanted("").input_ids) == 2


def types_of(tokens: list[int], second_from: int) -> list[int]:
    """Return the type of each token, as the engine is told of them."""
    return [int(0 < second_from <= place) for place in range(len(tokens))]


@pytest.mark.parametrize("takes_types", [True, False])
async def test_the_engine_learns_which_tokens_are_of_the_second_text(takes_types: bool) -> None:
    tokenizer = wordpiece()
    info = encoder_info(tokenizer.backend_tokenizer.to_str(), takes_token_types=takes_types)
    reads = Reads(info, lambda _: [0, 1], settings=TOLD)
    pair = {"text": QUESTION, "text_pair": CONTEXT}
    response = await reads.classify(pair, {"text": CONTEXT}, {"token_ids": [2, 5, 3]}, {"text": ""})
    reported, *others = reads.engine.sent
    wanted = tokenizer(QUESTION, CONTEXT)
    assert reported.prompt == wanted.input_ids
    assert reported.second_from == (wanted.token_type_ids.index(1) if takes_types else 0)
    assert [each.second_from for each in others] == [0, 0, 0]
    assert others[-1].prompt == tokenizer("").input_ids
    assert response.results[0].labels[0].label == "yes"


async def test_a_decoder_whose_tokenizer_has_types_gets_none() -> None:
    info = encoder_info(byte_tokenizer().backend_tokenizer.to_str())
    reads = Reads(info, lambda _: [0, 1], settings=TOLD)
    await reads.classify({"text": "a", "text_pair": "b"})
    (reported,) = reads.engine.sent
    assert reported.second_from == 0


@pytest.mark.parametrize("context_first", [False, True])
async def test_each_window_of_a_context_has_its_token_types(context_first: bool) -> None:
    tokenizer = wordpiece()
    info = encoder_info(tokenizer.backend_tokenizer.to_str(), takes_token_types=True)
    reads = Reads(info, lambda ask: [[0, 0]] * len(ask.prompt), task="QUESTION_ANS")
    asked: dict[str, Any] = {
        "context_first": context_first, "max_window_tokens": 16, "window_overlap_tokens": 2
    }  # fmt: skip
    question = {"question": QUESTION, "context": CONTEXT}
    response = await reads.answer(question, token_types=True, **asked)
    texts = (CONTEXT, QUESTION) if context_first else (QUESTION, CONTEXT)
    wanted = tokenizer(
        *texts, max_length=16, stride=2, return_overflowing_tokens=True,
        truncation="only_first" if context_first else "only_second",
    )  # fmt: skip
    assert response.results[0].num_windows == len(wanted.input_ids) > 2
    assert [each.prompt for each in reads.engine.sent] == wanted.input_ids
    types = [types_of(each.prompt, each.second_from) for each in reads.engine.sent]
    assert types == wanted.token_type_ids
    reads.engine.sent.clear()
    await reads.answer(question, **asked)
    assert [each.prompt for each in reads.engine.sent] == wanted.input_ids
    assert {each.second_from for each in reads.engine.sent} == {0}


async def test_a_model_without_types_cannot_be_asked_for_them() -> None:
    reads = Reads(encoder_info(wordpiece().backend_tokenizer.to_str()), lambda _: [])
    with pytest.raises(InvalidArgumentError, match="BertModel, has no token types") as caught:
        await reads.answer({"question": "a", "context": "b"}, token_types=True)
    assert caught.value.field == "token_types"


async def test_the_tokens_of_the_tokenizer_count_for_the_context() -> None:
    tokenizer = wordpiece()
    for given in ({"text": "Ann left the city"}, {"text": "Ann left", "text_pair": "the city"}):
        length = len(tokenizer(*given.values()).input_ids)
        for context in (length, length - 1):
            info = encoder_info(tokenizer.backend_tokenizer.to_str(), context_length=context)
            reads = Reads(info, lambda _: [0, 1], settings=TOLD)
            if context == length:
                assert len((await reads.classify(given)).results) == 1
                continue
            reported = f"has {length} tokens; the context has {context}"
            with pytest.raises(InvalidArgumentError, match=reported) as caught:
                await reads.classify(given)
            assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"


def test_texts_that_are_parted_elsewhere_are_other_requests() -> None:
    def key(second_from: int) -> str:
        sampling = Sampling(max_tokens=1, seed=0)
        return key_of(Ask([1, 2, 3], None, sampling, second_from=second_from))

    assert len({key(0), key(1), key(2)}) == 3
    assert key(0) == key_of(Ask([1, 2, 3], None, Sampling(max_tokens=1, seed=5)))


async def test_texts_have_the_context_less_virtual_tokens() -> None:
    info = encoder_info(wordpiece().backend_tokenizer.to_str(), context_length=20)
    reads = Reads(info, lambda _: [0, 1], settings=TOLD, num_virtual=5)
    await reads.classify({"token_ids": [5] * 15})
    with pytest.raises(InvalidArgumentError) as caught:
        await reads.classify({"token_ids": [5] * 16})
    assert str(caught.value) == (
        "inputs[0] has 16 tokens and 5 virtual tokens of the adapter; the context has 20"
    )

    def logits(ask: Ask) -> list[list[int]]:
        return [[0, 1]] * len(ask.prompt)

    answering = Reads(info, logits, task="QUESTION_ANS", num_virtual=5)
    asked = {"question": "Who?", "context": CONTEXT}
    await answering.answer(asked, max_window_tokens=15, window_overlap_tokens=2)
    assert max(len(each.prompt) for each in answering.engine.sent) == 15
    with pytest.raises(InvalidArgumentError) as caught:
        await answering.answer(asked, max_window_tokens=16)
    assert str(caught.value) == (
        "max_window_tokens is 16; expected 2 to 15, the context of the model less 5 virtual "
        "tokens of the adapter"
    )
    with pytest.raises(InvalidArgumentError, match="the model has room for 15: set max_window"):
        await answering.answer(asked)
