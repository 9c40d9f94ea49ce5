"""Prompts with images, and what transformers and PEFT make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from loramux_server.images.messages import PlacedImage, PreparedImage
from loramux_server.images.processor import ImageProcessor
from loramux_server.models.base_model import BaseModel
from loramux_server.models.loading import load_base_model
from loramux_server.wire.adapter_source import AdapterSource
from tests.support.engine import Harness
from tests.support.pictures import picture, saved
from tests.support.vision import save_vision_base

PIXELS = 1 << 22
NUM_TOKENS = 5
"""Of each answer."""


def photo(seed: int, width: int = 90, height: int = 60) -> bytes:
    """Return a PNG file of coloured noise."""
    return saved(picture(size=(width, height), seed=seed))


@dataclass
class Prompt:
    """A text with images in it."""

    tokens: list[int]
    images: list[PlacedImage]

    @staticmethod
    def of(parts: Sequence[list[int] | PreparedImage]) -> "Prompt":
        prompt = Prompt([], [])
        for part in parts:
            if isinstance(part, list):
                prompt.tokens += part
                continue
            length = len(part.tokens)
            prompt.images.append(PlacedImage(len(prompt.tokens), length, part.image))
            prompt.tokens += part.tokens
        return prompt


@dataclass
class Case:
    """A base, its own model and some prompts."""

    folder: Path
    model: PreTrainedModel
    base: BaseModel
    processor: ImageProcessor

    def harness(self, **config: Any) -> Harness:
        """Return an engine that serves the base."""
        base = load_base_model(str(self.folder), device="cpu", serves_images=True)
        return Harness(base, **config)

    def prompts(self) -> list[Prompt]:
        one, other = (self.processor.prepare(photo(seed, 90 - seed)) for seed in (0, 40))
        return [
            Prompt.of([[5, 6, 7], one, [8, 9]]),
            Prompt.of([[5, 6], one, [10, 11, 12], other, [13]]),
            Prompt.of([[20, 21, 22, 23, 24]]),
        ]

    def expected(self, alone: torch.nn.Module, prompt: Prompt) -> torch.Tensor:
        """Return the log-probabilities at each greedy token, as `alone` makes them by itself.

        They end with a token for images, of which models demand that there is an image for it.
        """
        assert self.base.vision is not None
        tokens = list(prompt.tokens)
        rows: list[torch.Tensor] = []
        while len(rows) < NUM_TOKENS and (not rows or tokens[-1] != self.base.vision.image_token):
            logits = alone(
                input_ids=torch.tensor([tokens]), use_cache=False, **self.arguments(prompt, tokens)
            ).logits[0, -1]
            rows.append(torch.log_softmax(logits.float(), -1))
            tokens.append(int(logits.argmax()))
        return torch.stack(rows)

    def arguments(self, prompt: Prompt, tokens: list[int]) -> dict[str, torch.Tensor]:
        assert self.base.vision is not None
        given = [self.base.vision.arguments(each.image, tokens) for each in prompt.images]
        together: dict[str, torch.Tensor] = {}
        for name in given[0] if given else ():
            if name.endswith("token_type_ids"):
                together[name] = given[0][name]
            else:
                together[name] = _joined([each[name] for each in given])
        return together


def _joined(arrays: list[torch.Tensor]) -> torch.Tensor:
    """Return what a processor makes of several images at once; smaller ones have black borders."""
    if arrays[0].dim() < 4:
        return torch.cat(arrays)
    height, width = (max(each.shape[axis] for each in arrays) for axis in (-2, -1))
    padded = [
        torch.nn.functional.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2]))
        for each in arrays
    ]
    return torch.cat(padded, dim=1 if arrays[0].dim() == 5 else 0)


def vision_case(kind: str, folder: Path, device: str = "cpu", **shape: Any) -> Case:
    """Return a base of `kind`, which is saved in `folder`, as it is and as it is served."""
    model = save_vision_base(kind, folder, **shape)
    base = load_base_model(str(folder), device=device, dtype="float32", serves_images=True)
    assert base.vision, base.no_vision_reason
    return Case(folder, model, base, ImageProcessor.load(str(folder), PIXELS))


def show(
    harness: Harness, prompt: Prompt, adapter: AdapterSource | None = None, tenant: str = ""
) -> int:
    """Give the engine a prompt; all log-probabilities of its tokens are told."""
    return harness.submit(
        prompt.tokens, adapter, images=prompt.images, max_tokens=NUM_TOKENS,
        num_logprobs=harness.info.vocab_size, tenant=tenant,
    )  # fmt: skip


def prompt_logprobs_of(harness: Harness, request_id: int) -> torch.Tensor:
    """Return the log-probabilities of what may come at each token of a request."""
    assert request_id not in harness.failures, harness.failures
    rows = []
    for token in harness.tokens[request_id]:
        assert token.logprobs is not None
        rows.append(torch.tensor([logprob for _, logprob in sorted(token.logprobs.top)]))
    return torch.stack(rows)
