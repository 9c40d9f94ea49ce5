"""Steps with images, as arrays."""

import numpy as np
import torch

from loramux_server.engine.batch import Batch
from loramux_server.engine.plan import Chunk
from loramux_server.engine.request import Request
from loramux_server.kernels.step_input import StepInput
from loramux_server.lora.segments import Residence
from loramux_server.lora.virtual import Virtual
from loramux_server.models.vision.prompt_images import EncodedImage, PromptImages
from loramux_server.wire.sampling import Sampling


def step_of(*spans: tuple[int, int]) -> StepInput:
    """Return a step of prompts whose tokens 2 and 3 of 8 are of an image, and see each other."""
    encoded = EncodedImage(np.arange(2), Virtual(torch.zeros(2, 4)), is_bidirectional=True)
    chunks = []
    for number, (start, end) in enumerate(spans):
        request = Request(number, list(range(8)), None, Sampling(max_tokens=1, seed=0))
        request.prompt_images = PromptImages.of(8, [(2, 2, encoded)])
        request.blocks = [number]
        chunks.append(Chunk(request, start, end - start))
    residence: dict[str, Residence] = {}
    return Batch.build(chunks, residence.__getitem__, 16).input


def test_tokens_of_an_image_see_each_other() -> None:
    together = step_of((0, 5), (3, 4)).attention.bidirectional_T2
    assert together is not None
    assert together.tolist() == [[0, 1], [1, 2], [2, 4], [2, 4], [4, 5], [2, 4]]


def test_behind_an_image_a_step_is_one_of_text() -> None:
    """Such steps are recorded and fused, and most of a request's are such."""
    assert step_of((0, 2), (4, 8)).attention.bidirectional_T2 is None
