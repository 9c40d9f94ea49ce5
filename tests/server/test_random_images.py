"""Prompts with images, at random, held against transformers: wherever a step cuts them."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loramux_server.images.messages import PreparedImage
from tests.support.engine import Harness
from tests.support.image_prompts import Case, Prompt, photo, prompt_logprobs_of, show, vision_case

SIZES = ((28, 28), (90, 60), (200, 40), (30, 150), (128, 128))
"""Width and height; what becomes of them is of several lengths, where a kind has any but one."""
TEXTS = st.lists(st.integers(5, 90), min_size=1, max_size=7)
Parts = list[tuple[list[int], int | None]]
PARTS = st.lists(
    # Never two images side by side: transformers would count them as one.
    st.tuples(TEXTS, st.sampled_from([None, *range(len(SIZES))])), min_size=1, max_size=4
)  # fmt: skip


@dataclass
class Served:
    """A base, and an engine whose prefixes last from one example to the next."""

    case: Case
    harness: Harness
    images: list[PreparedImage]

    def prompt_of(self, parts: Parts) -> Prompt:
        made: list[list[int] | PreparedImage] = []
        for text, number in parts:
            made += [text] if number is None else [text, self.images[number]]
        return Prompt.of([*made, [4]])

    def expected(self, prompt: Prompt, output: list[int]) -> torch.Tensor:
        """Return the log-probabilities of what comes at each token of `output`.

        Where the model itself says what stands for an image, transformers goes no further.
        """
        assert self.case.base.vision is not None
        token = self.case.base.vision.image_token
        own = output[: output.index(token) if token in output else -1]
        tokens = [*prompt.tokens, *own]
        arguments = self.case.arguments(prompt, prompt.tokens)
        for name in arguments:
            if name.endswith("token_type_ids"):
                arguments[name] = torch.nn.functional.pad(arguments[name], (0, len(own)))
        made = self.case.model(input_ids=torch.tensor([tokens]), use_cache=False, **arguments)
        return torch.log_softmax(made.logits[0, len(prompt.tokens) - 1 :].float(), -1)


@pytest.fixture(params=["gemma3", "qwen2.5-vl", "qwen3-vl"], scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    case = vision_case(request.param, tmp_path_factory.mktemp("base"))
    images = [case.processor.prepare(photo(seed, *size)) for seed, size in enumerate(SIZES)]
    return Served(case, case.harness(kernels="cpu", num_blocks=100), images)


@settings(max_examples=12)
@given(
    asked=st.lists(PARTS, min_size=1, max_size=3),
    max_batch_tokens=st.sampled_from([1, 2, 3, 5, 8, 13, 40]),
    num_steps=st.integers(0, 6),
)
def test_random_prompts_equal_transformers(
    served: Served, asked: list[Parts], max_batch_tokens: int, num_steps: int
) -> None:
    harness = served.harness
    harness.engine._scheduler._max_batch_tokens = max_batch_tokens
    prompts = [served.prompt_of(parts) for parts in asked]
    ids = []
    for prompt in prompts:
        ids.append(show(harness, prompt))
        for _ in range(num_steps):  # so that the next one finds this one half done
            harness.step()
    harness.run()
    for prompt, request_id in zip(prompts, ids, strict=True):
        wanted = served.expected(prompt, harness.output(request_id))
        found = prompt_logprobs_of(harness, request_id)[: len(wanted)]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
