"""Requests with images in the engine: who waits for what, and what is shared."""

import copy
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from loramux.errors import FailedPreconditionError
from loramux_server.engine.image_encoder import ImageEncoder
from loramux_server.engine.request import Request
from loramux_server.engine_link.client import _error_of
from loramux_server.images.messages import Image
from loramux_server.lora.vision_adapter import VisionAdapter
from loramux_server.models.vision.encoder import VisionEncoder
from loramux_server.models.vision.prompt_images import EncodedImage
from loramux_server.wire.messages import Pause, Resume
from loramux_server.wire.sampling import Sampling
from tests.support.adapters import pack_source, quiet_peft
from tests.support.engine import Harness
from tests.support.image_prompts import Case, Prompt, photo, prompt_logprobs_of, show, vision_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return vision_case("qwen2.5-vl", tmp_path_factory.mktemp("base"))


class Counting:
    """Sees as a base does, and counts."""

    def __init__(self, harness: Harness) -> None:
        self._own = harness.engine._image_encoder._encoder
        self.num_encoded = 0
        self.error: Exception | None = None
        harness.engine._image_encoder._encoder = self

    def encode(
        self, image: Image, tokens: Sequence[int], change: VisionAdapter | None = None
    ) -> EncodedImage:
        self.num_encoded += 1
        if self.error:
            raise self.error
        assert self._own is not None
        return self._own.encode(image, tokens, change)


def prompt_of(case: Case, seed: int) -> Prompt:
    image = case.processor.prepare(photo(seed))
    return Prompt.of([[5, 6, 7], image, [8, 9, 10, 11, 12, 13]])


def test_an_image_is_encoded_once(case: Case) -> None:
    harness = case.harness()
    counting = Counting(harness)
    ids = [show(harness, prompt_of(case, seed)) for seed in (1, 1, 2)]
    harness.run()
    assert counting.num_encoded == 2
    first, again, other = (prompt_logprobs_of(harness, request_id) for request_id in ids)
    torch.testing.assert_close(first, again, rtol=0, atol=1e-5)
    assert (first - other).abs().max() > 0.01


def test_no_tenant_finds_what_another_has_shown(case: Case) -> None:
    """How long it takes would tell who has seen an image."""
    harness = case.harness()
    counting = Counting(harness)
    for tenant in ("one", "other", "one"):
        show(harness, prompt_of(case, 1), tenant=tenant)
        harness.run()
    assert counting.num_encoded == 2


def test_one_that_is_paused_waits_though_its_image_has_been_encoded(case: Case) -> None:
    harness = case.harness()
    paused = show(harness, prompt_of(case, 1))
    harness.engine.receive([Pause(paused)])
    text = show(harness, Prompt.of([[5, 6, 7]]))
    while len(harness.output(text)) < 5:
        harness.step()
    harness.step()
    assert not harness.engine.can_step
    assert harness.output(paused) == []
    harness.engine.receive([Resume(paused)])
    harness.run()
    assert len(harness.output(paused)) == 5


def test_blocks_are_shared_by_prompts_with_the_same_image_alone(case: Case) -> None:
    harness = case.harness()
    shared = []
    for seed in (1, 1, 2):
        before = harness.reports[-1].stats.shared_tokens if harness.reports else 0
        prompt = prompt_of(case, seed)
        show(harness, prompt)
        harness.run()
        shared.append(harness.reports[-1].stats.shared_tokens - before)
    assert shared[0] == shared[2] == 0
    assert shared[1] > prompt.images[0].start + prompt.images[0].length


def test_a_preempted_request_keeps_its_image(case: Case) -> None:
    alone = case.harness()
    prompts = [prompt_of(case, seed) for seed in (1, 2, 3)]
    wanted = [show(alone, prompt) for prompt in prompts]
    alone.run()
    crowded = case.harness(num_blocks=9, prefix_cache=False)
    ids = [show(crowded, prompt) for prompt in prompts]
    crowded.run()
    assert crowded.reports[-1].stats.preemptions
    for one, other in zip(wanted, ids, strict=True):
        assert crowded.output(other) == alone.output(one)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("no"), "INTERNAL"), (MemoryError(), "ENGINE_OUT_OF_MEMORY")],
)
def test_neighbours_do_not_notice_an_image_that_cannot_be_encoded(
    case: Case, error: Exception, reason: str
) -> None:
    harness = case.harness()
    counting = Counting(harness)
    counting.error = error
    failed = show(harness, prompt_of(case, 1))
    text = show(harness, Prompt.of([[5, 6, 7]]))
    harness.run()
    assert harness.failures[failed].reason == reason
    assert len(harness.output(text)) == 5
    counting.error = None
    again = show(harness, prompt_of(case, 1))
    harness.run()
    assert len(harness.output(again)) == 5


def test_who_went_away_is_forgotten(case: Case) -> None:
    harness = case.harness()
    gone = show(harness, prompt_of(case, 1))
    harness.cancel(gone)
    harness.run()
    stays = show(harness, prompt_of(case, 2))
    harness.run()
    assert not harness.output(gone)
    assert len(harness.output(stays)) == 5


def test_an_image_on_which_the_weights_overflow_is_not_answered(case: Case) -> None:
    """What sees gives no numbers then, and tokens of an image are not ordinary tokens."""
    harness = case.harness()
    vision = harness.engine._image_encoder._encoder
    assert isinstance(vision, VisionEncoder)
    for part in vision._model.modules():
        if isinstance(part, torch.nn.Linear):
            part.weight.data *= 1e30  # the harness has a base of its own
    failed = show(harness, prompt_of(case, 1))
    text = show(harness, Prompt.of([[5, 6, 7]]))
    harness.run()
    assert harness.failures[failed].reason == "INVALID_FIELD"
    assert harness.failures[failed].message.startswith("the encoding of an image is not finite")
    assert len(harness.output(text)) == 5


def test_an_engine_that_ends_looks_at_no_more_images(case: Case) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    num_encoded: list[Image] = []

    class Slow:
        def encode(
            self, image: Image, tokens: Sequence[int], change: VisionAdapter | None = None
        ) -> EncodedImage:
            num_encoded.append(image)
            begun.set()
            goes_on.wait()
            raise RuntimeError

    encoder = ImageEncoder(Slow(), None, lambda: None)
    prompt = prompt_of(case, 1)
    for number in range(3):
        request = Request(number, prompt.tokens, None, Sampling(max_tokens=1, seed=0))
        encoder.begin(request, prompt.images)
    begun.wait()
    encoder.close()
    goes_on.set()
    encoder._executor.shutdown(wait=True)
    assert len(num_encoded) == 1


def test_drafts_hold_behind_images(case: Case) -> None:
    prompt = prompt_of(case, 1)
    plain, drafting = case.harness(), case.harness(speculative_tokens=4)
    options: dict[str, Any] = {"images": prompt.images, "max_tokens": 40}
    first = plain.submit(prompt.tokens, **options)
    plain.run()
    output = plain.output(first)
    second = drafting.submit(prompt.tokens, prediction=output, **options)
    drafting.run()
    assert drafting.output(second) == output
    assert len(drafting.reports) < len(plain.reports)


def test_virtual_tokens_are_not_put_before_images(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with quiet_peft():
        get_peft_model(copy.deepcopy(case.model), config).save_pretrained(str(folder))
    source = pack_source(folder, tmp_path / "a.pkg")
    harness = case.harness()
    refused = show(harness, prompt_of(case, 1), source)
    harness.step()
    failure = harness.failures[refused]
    assert failure.reason == "IMAGES_NOT_SERVED"
    assert isinstance(_error_of(failure), FailedPreconditionError)
