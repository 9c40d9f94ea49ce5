"""Texts that a model reads as wholes: their segments, chunks, and what is kept of them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertModel

from loramux_adapters.embedding import Pooling
from loramux_server.engine.request import Request
from loramux_server.forms.form import Form, FormKind
from loramux_server.kernels.encoder_text import EncoderText, Seq2SeqState
from loramux_server.lora.segments import Residence, Segments
from loramux_server.models.encoders.encoder_model import prepare_encoder
from loramux_server.models.encoders.seq2seq import Seq2Seq
from loramux_server.models.loading import load_base_model
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.messages import Pause, Resume
from loramux_server.wire.model_kind import ModelKind
from loramux_server.wire.weight_format import WeightFormat
from tests.support.encoder_models import own_model, save_encoder_base
from tests.support.engine import Harness
from tests.support.fake_forms import FakeForms

SOURCE, BEGIN = [17, 40, 8, 99, 23], [0, 7, 31]
FORM = Form(FormKind.REGEX, "nine of some tokens")


def placed(row: int) -> Residence:
    ranks, scales = np.full((2, 1), 4, np.int32), np.ones((2, 1), np.float32)
    return Residence(row, 4, WeightFormat.FLOAT32, ranks, scales)


def rows_of(segments: Segments | None, count: int) -> list[int]:
    """Return the row of the adapter of each token; -1 where the base is alone."""
    found = [-1] * count
    if segments:
        for start, end, row in zip(segments.start_S, segments.end_S, segments.row_S, strict=True):
            found[start:end] = [int(row)] * int(end - start)
    return found


def borders(choice: random.Random, count: int) -> list[tuple[int, int]]:
    """Return some runs of `count` tokens, in order."""
    places = sorted(choice.sample(range(count + 1), 2 * choice.randint(1, 4)))
    return list(zip(places[::2], places[1::2], strict=True))


def test_segments_of_some_tokens_are_those_of_all_where_they_are() -> None:
    choice = random.Random(0)
    for _ in range(300):
        runs, spans = borders(choice, 20), borders(choice, 20)
        adapters = [placed(row) for row in choice.sample(range(9), len(runs))]
        segments = Segments.build([a for a, _ in runs], [b for _, b in runs], adapters)
        rows = rows_of(segments, 20)
        wanted = [row for start, end in spans for row in rows[start:end]]
        within = segments.within(spans)
        assert rows_of(within, len(wanted)) == wanted
        assert (within is None) == (set(wanted) == {-1})
        if within:
            assert within.rank_GSP.shape == (2, len(within.start_S), 1)
            assert (within.end_S > within.start_S).all()


@torch.inference_mode()
def test_who_goes_on_from_what_another_knows_changes_nothing_of_it(tmp_path: Path) -> None:
    module = own_model(save_encoder_base("t5", tmp_path))
    token_1L = torch.tensor([[*SOURCE, *BEGIN]])
    state = Seq2SeqState()
    reader = Seq2Seq(module)
    reader.read(token_1L, EncoderText(num_source=len(SOURCE), state=state))
    known = halves(state)
    for token in (5, 9):
        other = Seq2SeqState(state.encoded, state.cache, state.num_written)
        text = EncoderText(num_source=len(SOURCE), start=len(SOURCE + BEGIN), state=other)
        logits = reader.read(torch.tensor([[token]]), text)[0, -1]
        whole = torch.tensor([[*SOURCE, *BEGIN, token]])
        alone = reader.alone(whole, EncoderText(num_source=len(SOURCE)))[-1]
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-4)
        assert other.num_written == len(BEGIN) + 1
        for now, then in zip(halves(state), known, strict=True):
            assert torch.equal(now, then)


def halves(state: Seq2SeqState) -> list[torch.Tensor]:
    """Return copies of all keys and values."""
    parts = (state.cache.self_attention_cache, state.cache.cross_attention_cache)
    return [
        half.clone() for part in parts for layer in part.layers
        for half in (layer.keys, layer.values)
    ]  # fmt: skip


class Recorder(torch.nn.Module):
    """Adds to each text what came here last, of whatever text."""

    def __init__(self, part: torch.nn.Module, seen: list[torch.Tensor]) -> None:
        super().__init__()
        self.part = part
        self._seen = seen

    def forward(self, x: torch.Tensor, *more: Any, **named: Any) -> Any:
        before = self._seen[-1].mean() if self._seen else 0.0
        self._seen.append(x)
        return self.part(x + before, *more, **named)


def test_a_model_that_looks_across_texts_is_refused(tmp_path: Path) -> None:
    folder = save_encoder_base("bert", tmp_path)
    assert prepare_encoder(own_model(folder), ModelKind.ENCODER).kind is ModelKind.ENCODER
    module = own_model(folder)
    assert isinstance(module, BertModel)
    seen: list[torch.Tensor] = []
    module.embeddings.register_forward_hook(lambda *_: seen.clear())
    for layer in module.encoder.layer:
        layer.output.dense = Recorder(layer.output.dense, seen)
    with pytest.raises(UnservableModelError, match="BertModel computes different results when"):
        prepare_encoder(module, ModelKind.ENCODER)


def test_a_text_that_is_longer_than_a_batch_runs_as_one_chunk_and_alone(tmp_path: Path) -> None:
    harness = Harness(
        load_base_model(str(save_encoder_base("bert", tmp_path))), kernels="cpu", max_batch_tokens=8
    )
    lengths = (3, 30, 5, 4, 12)
    for length in lengths:
        harness.submit(range(3, 3 + length), pooling=Pooling.MEAN)
    harness.run()
    assert not harness.failures and len(harness.scores) == len(lengths)
    # Each fills what is left of a step, and the last of it may be more than that.
    steps = [(b.requests, b.tokens) for report in harness.reports if (b := report.batch)]
    assert steps == [(2, 33), (2, 9), (1, 12)]


def writer(folder: Path, **config: Any) -> Harness:
    """Return an engine of a tiny T5."""
    return Harness(load_base_model(str(save_encoder_base("t5", folder))), kernels="cpu", **config)


def ask(harness: Harness, first: int, **sampling: Any) -> int:
    """Ask for what is written to a source that begins with `first`, after three tokens."""
    options = {"max_tokens": 8, "temperature": 1.0, "num_logprobs": 0} | sampling
    return harness.submit([first, *SOURCE, *BEGIN], num_source=len(SOURCE) + 1, **options)


def reported(harness: Harness, number: int) -> list[float]:
    """Return the tokens of a request, and how likely each was."""
    tokens = harness.tokens[number]
    return [*harness.output(number), *(t.logprobs.chosen for t in tokens if t.logprobs)]


def alone(harness: Harness, first: int, **sampling: Any) -> Any:
    """Return that of one that is alone, or nearly that."""
    number = ask(harness, first, **sampling)
    harness.run()
    return pytest.approx(reported(harness, number), abs=1e-4)


def request_of(harness: Harness, number: int) -> Request:
    return harness.engine._requests[number]


def pause(harness: Harness, number: int) -> None:
    harness.engine.receive([Pause(number)])


def test_requests_that_start_over_write_what_they_would_alone(tmp_path: Path) -> None:
    single = writer(tmp_path)
    wanted = [alone(single, first) for first in range(3, 7)]
    harness = writer(tmp_path, num_blocks=12, prefix_cache=False)
    numbers = [ask(harness, first) for first in range(3, 7)]
    paused = ask(harness, 3)
    for _ in range(5):
        harness.step()
    pause(harness, paused)
    harness.step()
    harness.engine.receive([Resume(paused)])
    harness.run()
    assert harness.reports[-1].stats.preemptions > 0
    assert [reported(harness, number) for number in [*numbers, paused]] == [*wanted, wanted[0]]


@pytest.mark.parametrize("end", [pause, Harness.cancel, lambda *_: None])
def test_nothing_is_kept_for_a_request_that_does_not_run(
    end: Callable[[Harness, int], None], tmp_path: Path
) -> None:
    harness = writer(tmp_path, prefix_cache=False)
    number = ask(harness, 3)
    request = request_of(harness, number)
    for _ in range(4):
        harness.step()
    assert request.seq2seq_state.num_written == len(BEGIN) + 3
    assert request.seq2seq_state.encoded is not None
    end(harness, number)
    for _ in range(12):
        harness.step()
    assert request.seq2seq_state == Seq2SeqState()


def test_nothing_is_kept_for_a_request_that_has_to_make_room(tmp_path: Path) -> None:
    harness = writer(tmp_path, num_blocks=6, prefix_cache=False)
    first, second = ask(harness, 3), ask(harness, 4)
    request = request_of(harness, second)
    while not harness.engine._scheduler.num_preemptions:
        assert request.num_computed == 0 or request.seq2seq_state.encoded is not None
        harness.step()
    assert request.seq2seq_state == Seq2SeqState()
    harness.run()
    assert [len(harness.output(number)) for number in (first, second)] == [8, 8]


PLACES = {FORM: [range(40, 60)] * 9}
"""What may come at each place of a text with that form."""


def shaped(folder: Path, forms: FakeForms, **config: Any) -> Harness:
    """Return an engine whose texts have forms that `forms` follow."""
    harness = writer(folder, prefix_cache=False, **config)
    harness.engine._structured_output._masks = forms
    return harness


def test_a_token_that_is_put_off_is_the_one_that_comes_without_that(tmp_path: Path) -> None:
    wanted = alone(shaped(tmp_path, FakeForms(steps=PLACES)), 3, form=FORM)
    forms = FakeForms(prompt=False, steps=PLACES)
    harness = shaped(tmp_path, forms)
    number = ask(harness, 3, form=FORM)
    request = request_of(harness, number)
    for _ in range(8):
        forms.answer()
        harness.step()
        harness.step()  # nobody knows yet which tokens may come
    assert reported(harness, number) == wanted
    assert request.num_computed == 0 and request.seq2seq_state == Seq2SeqState()


def test_it_may_be_the_first_one_after_a_request_has_started_over(tmp_path: Path) -> None:
    wanted = alone(shaped(tmp_path, FakeForms(steps=PLACES)), 3, form=FORM)
    forms = FakeForms(prompt=False, steps=PLACES)
    harness = shaped(tmp_path, forms)
    number = ask(harness, 3, form=FORM)
    for _ in range(8):
        forms.answer()
        harness.step()
        pause(harness, number)
        harness.engine.receive([Resume(number)])
        harness.step()
    assert reported(harness, number) == wanted
