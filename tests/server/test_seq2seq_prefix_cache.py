"""What is kept of texts to which others are written: a request computes what others have not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from loramux_server.kernels.encoder_text import EncoderText, Seq2SeqState
from loramux_server.models.encoders.prefix_cache import TENSOR_OVERHEAD, Seq2SeqPrefixCache, copied
from loramux_server.models.encoders.seq2seq import Seq2Seq
from loramux_server.models.loading import load_base_model
from tests.support.encoder_models import own_model, save_encoder_base
from tests.support.engine import Harness

SOURCE = [17, 40, 8, 99, 23]
OWNER = ("public", None)


class Computed(Harness):
    """An engine of a tiny T5 that tells how many tokens its two sides compute."""

    def __init__(self, folder: Path, **config: Any) -> None:
        base = load_base_model(str(save_encoder_base("t5", folder)))
        super().__init__(base, kernels="cpu", **config)
        self.read: list[int] = []
        self.written: list[int] = []
        for stack, seen in ((base.module.encoder, self.read), (base.module.decoder, self.written)):
            stack.register_forward_pre_hook(
                lambda _, __, given, seen=seen: seen.append(given["input_ids"].shape[1]),
                with_kwargs=True,
            )

    def ask(self, *prompts: list[int], tenant: str = "", **sampling: Any) -> list[list[int]]:
        """Let the engine write to all of `prompts`, each a source and what follows it."""
        self.read.clear()
        self.written.clear()
        ids = [
            self.submit(
                prompt, tenant=tenant, num_source=len(SOURCE), **{"max_tokens": 1} | sampling
            )
            for prompt in prompts
        ]
        self.run()
        assert not self.failures
        return [self.output(request_id) for request_id in ids]


def test_a_step_of_a_search_computes_the_last_token_of_each_beam(tmp_path: Path) -> None:
    harness = Computed(tmp_path)
    harness.ask([*SOURCE, 0])
    assert (harness.read, harness.written) == ([5], [1])
    harness.ask([*SOURCE, 0, 7], [*SOURCE, 0, 9])
    assert (harness.read, harness.written) == ([], [1, 1])
    ((token,), _) = harness.ask([*SOURCE, 0, 7, 11], [*SOURCE, 0, 9, 11])
    assert (harness.read, harness.written) == ([], [1, 1])
    logits = own_model(tmp_path)(
        input_ids=torch.tensor([SOURCE]), decoder_input_ids=torch.tensor([[0, 7, 11]])
    ).logits
    assert token == int(logits[0, -1].argmax())
    # Another tenant learns nothing of it, and neither does another source.
    harness.ask([*SOURCE, 0], tenant="other")
    assert harness.read == [5]
    harness.ask([*SOURCE[::-1], 0, 7])
    assert (harness.read, harness.written) == ([5], [2])


def test_without_a_prefix_cache_each_request_reads_its_source(tmp_path: Path) -> None:
    harness = Computed(tmp_path, prefix_cache=False)
    for _ in range(2):
        harness.ask([*SOURCE, 0, 7], max_tokens=3)
        assert (harness.read, harness.written) == ([5], [2, 1, 1])


@torch.inference_mode()
@pytest.mark.parametrize("begun", [[0, 7, 11], [0]])
def test_the_last_token_comes_once_more_behind_those_that_came_with_it(
    tmp_path: Path, begun: list[int]
) -> None:
    reader = Seq2Seq(own_model(save_encoder_base("t5", tmp_path)))
    state = Seq2SeqState()
    num_source, token_L = len(SOURCE), torch.tensor([*SOURCE, *begun])
    reported = reader.read(token_L[None], EncoderText(num_source=num_source, state=state))[0, -1]
    # As where a form could not say in time what may come.
    again = EncoderText(num_source=num_source, start=len(token_L) - 1, state=state)
    for _ in range(2):
        torch.testing.assert_close(reader.read(token_L[None, -1:], again)[0, -1], reported)
    assert state.num_written == len(begun)


@torch.inference_mode()
def test_what_texts_have_in_common_counts_once_and_what_was_not_asked_for_goes(
    tmp_path: Path,
) -> None:
    model = own_model(save_encoder_base("t5", tmp_path))

    def state(source: list[int], before: Seq2SeqState | None = None) -> Seq2SeqState:
        encoded = before.encoded if before else model.get_encoder()(torch.tensor([source]))
        made = model(
            encoder_outputs=encoded, decoder_input_ids=torch.tensor([[0]]), use_cache=True,
            past_key_values=copied(before.cache) if before else None,
        )  # fmt: skip
        return Seq2SeqState(encoded, made.past_key_values, 2 if before else 1)

    def num_bytes(*layers: Any) -> int:
        return sum(half.nbytes for layer in layers for half in (layer.keys, layer.values))

    first = state(SOURCE)
    second = state(SOURCE, first)
    source_bytes = first.encoded[0].nbytes + num_bytes(*first.cache.cross_attention_cache.layers)
    own = [num_bytes(*each.cache.self_attention_cache.layers) for each in (first, second)]
    cache = Seq2SeqPrefixCache()
    # Each is a tensor for the source, and four in each of two layers.
    cache.max_bytes = source_bytes + sum(own) + 2 * 9 * TENSOR_OVERHEAD
    cache.put(OWNER, tuple(SOURCE), (0,), state=first)
    cache.put(OWNER, tuple(SOURCE), (0, 7), state=second)
    assert cache.find(OWNER, tuple(SOURCE), (0, 7, 1)) == second
    assert cache.find(OWNER, tuple(SOURCE), (0, 5)) == first
    # What was asked for last stays, and with it what both had.
    cache.put(OWNER, tuple(SOURCE), (0, 5), state=state(SOURCE, first))
    assert cache.find(OWNER, tuple(SOURCE), (0, 7, 1)) == first
    assert cache.find(OWNER, tuple(SOURCE), (0, 5, 1)) is not None
    # Another source has room where nothing is left of the first.
    cache.put(OWNER, (1, 2, 3), (0,), state=state([1, 2, 3]))
    assert cache.find(OWNER, (1, 2, 3), (0, 4)) is not None
    # What is known by is as small for a long text, and so not worth counting.
    assert {len(part) for key in cache._entries for part in key[1:]} == {32}
    cache.max_bytes = 1  # nothing has room
    cache.put(OWNER, (1, 2, 3), (0, 4), state=state([1, 2, 3]))
    assert cache.find(OWNER, (1, 2, 3), (0, 4, 5)) is None
    assert (cache._num_bytes, dict(cache._uses)) == (0, {})


@pytest.mark.parametrize("num_source", [0, 6, 25])
def test_a_request_without_both_sides_is_refused(tmp_path: Path, num_source: int) -> None:
    harness = Harness(load_base_model(str(save_encoder_base("t5", tmp_path))), max_context=40)
    assert (harness.info.source_length, harness.info.output_length) == (20, 20)
    num_begun = 6 if num_source == 0 else 0
    request_id = harness.submit(range(3, 3 + num_source + num_begun), num_source=num_source)
    assert harness.failures or harness.step()
    failure = harness.failures[request_id]
    assert failure.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert failure.message == (
        f"the source has {num_source} tokens, the decoder prompt {num_begun}; "
        "expected 1 to 20 and 1 to 19"
    )
