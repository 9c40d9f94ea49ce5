"""Sequences of tokens that are not generated, against transformers, and with drafts and forms."""

import hypothesis.strategies as st
import msgspec
import numpy as np
import torch
from hypothesis import given, settings
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers.generation.logits_process import NoBadWordsLogitsProcessor

from loramux.v1.generation_pb2 import GenerateRequest, SamplingParams
from loramux_server.engine.request import Request
from loramux_server.engine.sampler import sample
from loramux_server.engine.token_counts import SampledRow, adjustments_of, counts_of
from loramux_server.forms.form import Form, FormKind
from loramux_server.kernels.adjust import adjust
from loramux_server.services.generation.bad_words import bad_words_of
from loramux_server.services.texts import Texts
from loramux_server.services.vocabularies import Vocabularies
from loramux_server.store.package_settings import NONE
from loramux_server.wire.sampling import Sampling
from tests.server.test_limits import MODEL

VOCAB = 6
TOKENS = st.integers(0, VOCAB - 1)
WORDS = st.lists(st.lists(TOKENS, min_size=1, max_size=3), min_size=1, max_size=6)


def sampling_of(*words: list[int], **options: object) -> Sampling:
    given = {"max_tokens": 9, "seed": 0, "temperature": 0.0, "ignore_eos": True, **options}
    return Sampling(bad_words=tuple(map(tuple, words)), **given)  # type: ignore[arg-type]


@settings(max_examples=200)
@given(words=WORDS, output=st.lists(TOKENS, max_size=6), penalty=st.sampled_from([0.0, 1.5]))
def test_tokens_are_excluded_as_by_transformers(
    words: list[list[int]], output: list[int], penalty: float
) -> None:
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(len(output)))
    counts = counts_of(sampling_of(*words, presence_penalty=penalty), [3], [0], VOCAB)
    adjustments = adjustments_of([SampledRow(counts, len(output), output)])
    assert adjustments is not None
    found = adjust(logits, torch.zeros(1, dtype=torch.int64), adjustments)
    processor = NoBadWordsLogitsProcessor(words, eos_token_id=None)
    # It needs a token to look at; this one is in no word.
    expected = processor(torch.tensor([[VOCAB, *output]]), torch.zeros(1, VOCAB))
    assert torch.equal(found == -torch.inf, expected == -torch.inf)


def request_of(sampling: Sampling, output: list[int], allowed: bytes | None = None) -> Request:
    counts = counts_of(sampling, [3], [0], VOCAB)
    request = Request(0, [3], None, sampling, output=output, counts=counts)
    request.shape.allowed = allowed
    return request


def likeliest(*tokens: int) -> torch.Tensor:
    """Logits of rows in which a token is the likeliest, and the one after it is the next."""
    rows = torch.zeros(len(tokens), VOCAB)
    for row, token in zip(rows, tokens, strict=True):
        row[token], row[(token + 1) % VOCAB] = 2.0, 1.0
    return rows


def test_a_draft_ends_before_the_token_that_completes_a_bad_word() -> None:
    request = request_of(sampling_of([1, 2, 3]), [1])
    (found,) = sample(likeliest(2, 3, 5), [request], VOCAB, {request: (2, 3)})
    assert [each.token for each in found] == [2, 4]
    request = request_of(sampling_of([1, 2, 4]), [1])
    (found,) = sample(likeliest(2, 3, 5), [request], VOCAB, {request: (2, 3)})
    assert [each.token for each in found] == [2, 3, 5]


def test_other_rows_are_left_alone() -> None:
    plain = Sampling(max_tokens=9, seed=0, temperature=0.0)
    requests = [request_of(plain, [1]), request_of(sampling_of([1, 2]), [1])]
    found = [one.token for (one,) in sample(likeliest(2, 2), requests, VOCAB)]
    assert found == [2, 3]
    assert plain.is_plain
    assert sampling_of([5]).is_plain
    assert not sampling_of([5, 6]).is_plain


async def test_a_word_is_excluded_at_the_beginning_and_after_a_space() -> None:
    vocab = ["c", "a", "t", "Ġ", "ca", "cat", "Ġcat", "Ċ"]
    tokenizer = Tokenizer(
        BPE(
            {text: number for number, text in enumerate(vocab)},
            [("c", "a"), ("ca", "t"), ("Ġ", "cat")],
        )
    )
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    model = msgspec.structs.replace(MODEL, tokenizer_json=tokenizer.to_str())
    texts = Texts(Vocabularies(model))
    for words, wanted in (
        (["cat"], [(5,), (6,)]),
        ([" cat", "cat"], [(5,), (6,)]),
        (["at"], [(1, 2)]),  # after a space it has the same tokens, and one more
        (["cat cat", "\n"], [(5, 6), (6, 6), (7,)]),
    ):
        request = GenerateRequest(sampling=SamplingParams(bad_words=words))
        assert list(await bad_words_of(request, texts, NONE)) == wanted


def test_a_form_that_leaves_bad_words_only_is_reported() -> None:
    sampling = sampling_of([0], [2], form=Form(FormKind.REGEX, "a"))
    for tokens, fault in (([0, 2], "STRUCTURED_OUTPUT_FAILED"), ([0, 2, 4], None)):
        bits = np.packbits([token in tokens for token in range(8)], bitorder="little").tobytes()
        ((found,),) = sample(likeliest(0), [request_of(sampling, [], bits)], VOCAB)
        assert found.fault == fault
        assert fault or found.token == 4
