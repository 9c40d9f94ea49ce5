"""Images in prompts, held against PEFT: each row is what its adapter makes of it alone."""

import copy
from pathlib import Path

import pytest
import torch

from loramux_server.models.loading import load_base_model
from loramux_server.wire.adapter_source import AdapterSource
from tests.support.adapters import pack_source, save_adapter, with_adapter
from tests.support.engine import Harness
from tests.support.image_prompts import Case, prompt_logprobs_of, show, vision_case
from tests.support.vision import KINDS, save_vision_base

NO_PROCESSOR = "lfm2-vl"
"""transformers has no processor of it that does without torchvision."""


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {NO_PROCESSOR}))
def test_rows_with_images_equal_peft(kind: str, tmp_path: Path) -> None:
    case = vision_case(kind, tmp_path / "base")
    models: list[torch.nn.Module] = [case.model]
    sources: list[AdapterSource | None] = [None]
    for seed, targets in ((1, text_layers(case)), (2, text_layers(case)), (3, "all-linear")):
        folder = save_adapter(
            copy.deepcopy(case.model), tmp_path / f"a{seed}", seed=seed, r=4,
            target_modules=targets,
        )  # fmt: skip
        models.append(with_adapter(case.model, folder))
        sources.append(pack_source(folder, folder.with_suffix(".pkg")))
    harnesses = [
        # Images are cut, but where their tokens see each other.
        Harness(case.base, max_batch_tokens=11),
        case.harness(kernels="cpu"),
    ]
    prompts = case.prompts()
    asked = [
        (prompt, model, [show(harness, prompt, source) for harness in harnesses])
        for prompt in prompts
        for source, model in zip(sources, models, strict=True)
    ]
    for harness in harnesses:
        harness.run()
    for prompt, model, ids in asked:
        wanted = case.expected(model, prompt)
        for harness, request_id in zip(harnesses, ids, strict=True):
            found = prompt_logprobs_of(harness, request_id)[: len(wanted)]
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def text_layers(case: Case) -> list[str]:
    """Return the linear layers that text comes to."""
    return [
        name
        for name, part in case.model.named_modules()
        if isinstance(part, torch.nn.Linear)
        and {"language_model", "text_model"} & {*name.split(".")}
    ]


def test_a_base_without_a_processor_says_why_it_has_no_vision(tmp_path: Path) -> None:
    save_vision_base(NO_PROCESSOR, tmp_path)
    base = load_base_model(str(tmp_path), device="cpu", serves_images=True)
    assert base.vision is None
    assert "orchvision" in base.no_vision_reason
    info = Harness(base).info
    assert (info.supports_images, info.no_vision_reason) == (False, base.no_vision_reason)


def test_vision_modules_are_freed_where_images_are_off(tmp_path: Path) -> None:
    save_vision_base("llava", tmp_path)
    sizes = [
        sum(
            p.numel()
            for p in load_base_model(
                str(tmp_path), device="cpu", serves_images=serves_images
            ).module.parameters()
        )
        for serves_images in (True, False)
    ]
    assert sizes[0] > sizes[1] + 1000
