"""Images beside others, to the last bit."""

from pathlib import Path
from typing import Any

import torch

from tests.support.image_prompts import Case, Prompt, photo, prompt_logprobs_of, show, vision_case

WIDE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32,
}  # fmt: skip
"""A shape that the compiled loops take."""


def test_no_bit_depends_on_who_shows_images_beside(tmp_path: Path) -> None:
    case = vision_case("qwen2.5-vl", tmp_path, **WIDE)
    prompts = [
        Prompt.of([list(range(5, 40))]),
        Prompt.of([[5, 6, 7], case.processor.prepare(photo(1)), [8, 9]]),
        Prompt.of([[7] * 9, case.processor.prepare(photo(2, 128, 128)), [8, 9, 10]]),
    ]
    alone = [of_all(case, [prompt])[0] for prompt in prompts]
    for max_batch_tokens in (7, 512):
        together = of_all(case, prompts, max_batch_tokens=max_batch_tokens)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other)


def of_all(case: Case, prompts: list[Prompt], **config: Any) -> list[torch.Tensor]:
    """Return the log-probabilities of requests that run beside each other."""
    harness = case.harness(kernels="cpu", deterministic=True, prefix_cache=False, **config)
    ids = [show(harness, prompt) for prompt in prompts]
    harness.run()
    return [prompt_logprobs_of(harness, request_id) for request_id in ids]


def test_images_that_let_neighbours_go_another_way_are_not_taken(tmp_path: Path) -> None:
    """Features of Qwen3-VL's images are added between layers, which run one by one then."""
    case = vision_case("qwen3-vl", tmp_path, **WIDE)
    info = case.harness(kernels="cpu", deterministic=True).info
    assert not info.supports_images
    assert info.no_vision_reason.startswith("the server is deterministic")
    assert case.harness(kernels="cpu").info.supports_images
