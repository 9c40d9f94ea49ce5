"""Images over a real server, its engine and its processes, held against transformers and PEFT."""

import base64
import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from transformers import PreTrainedModel, ProcessorMixin

from loramux import Client, Image
from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.images.loading import load_processor
from tests.support.adapters import save_adapter, with_adapter
from tests.support.gateway import RunningGateway
from tests.support.image_prompts import photo
from tests.support.server import RunningServer
from tests.support.vision import save_vision_base

NUM_TOKENS = 6


class Alone:
    """A base, an adapter of what reads text and one of all layers, in transformers and PEFT."""

    def __init__(self, folder: Path) -> None:
        self.base = folder / "base"
        model = save_vision_base("qwen2.5-vl", self.base)
        layers = [
            name
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear) and ".language_model." in name
        ]
        self.adapter = save_adapter(
            copy.deepcopy(model), folder / "adapters" / "a", seed=1, r=4, target_modules=layers
        )
        self.vision = save_adapter(
            copy.deepcopy(model), folder / "vision", seed=2, r=4, target_modules="all-linear"
        )
        self._models: dict[str, torch.nn.Module | PreTrainedModel] = {
            "": model, "a": with_adapter(model, self.adapter),
            "vision": with_adapter(model, self.vision),
        }  # fmt: skip
        self._processor: ProcessorMixin = load_processor(str(self.base))

    def generate(
        self, adapter: str, messages: list[dict[str, Any]], images: list[bytes], num_beams: int = 1
    ) -> list[int]:
        text = self._processor.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        shown = [Pillow.open(io.BytesIO(image)) for image in images]
        given = self._processor(
            text=[text], images=shown, return_tensors="pt", add_special_tokens=False
        )
        made = self._models[adapter].generate(  # type: ignore[operator]
            **given,
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            num_beams=num_beams,
        )
        tokens: list[int] = made[0, given["input_ids"].shape[1] :].tolist()
        return tokens


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def server(alone: Alone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    adapters = str(alone.adapter.parent)
    with RunningServer(folder, alone.base, "--adapters", adapters) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


def conversation(*images: bytes) -> tuple[list[Any], list[Any]]:
    """Return a conversation as our client takes it, and as templates do."""
    ours: list[Any] = [Image(image) for image in images]
    theirs: list[Any] = [{"type": "image"} for _ in images]
    ours.insert(1, "and what is ")
    theirs.insert(1, {"type": "text", "text": "and what is "})
    system = {"role": "system", "content": "Look."}
    return (
        [system, {"role": "user", "content": ours}],
        [system, {"role": "user", "content": theirs}],
    )


@pytest.mark.parametrize("adapter", ["", "a"])
def test_an_answer_is_that_of_transformers(client: Client, alone: Alone, adapter: str) -> None:
    for images in ([photo(1)], [photo(2, 60, 90), photo(3)]):
        ours, theirs = conversation(*images)
        answer = client.chat(
            ours, adapter=adapter, max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True
        )
        assert list(answer.token_ids) == alone.generate(adapter, theirs, images)


def test_an_adapter_of_vision_modules_answers_as_in_peft(client: Client, alone: Alone) -> None:
    with_all = client.adapters.upload("vision", alone.vision)
    assert with_all.rank == 4
    for images in ([photo(1)], [photo(2, 60, 90), photo(3)]):
        ours, theirs = conversation(*images)
        answer = client.chat(
            ours, adapter="vision", max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True
        )
        assert list(answer.token_ids) == alone.generate("vision", theirs, images)


def test_such_an_adapter_is_refused_without_vision(
    chat_server: RunningServer, alone: Alone, tmp_path: Path
) -> None:
    with RunningServer(tmp_path, alone.base, "--max-images", "0") as without_images:
        for server, why in (
            (chat_server, "LlamaForCausalLM, does not support images"),
            (
                without_images,
                "Qwen2_5_VLForConditionalGeneration, does not support images: images are turned "
                "off (--max-images 0)",
            ),
        ):
            with (
                server.client() as client,
                pytest.raises(InvalidArgumentError) as refused,
            ):
                client.adapters.upload("vision", alone.vision)
            assert refused.value.reason == "ADAPTER_BASE_MISMATCH"
            assert str(refused.value) == (
                "module model.visual.blocks.0.attn.proj is a vision module, but the base "
                f"model, {why}"
            )


def test_the_gateway_takes_the_same_image(
    server: RunningServer, client: Client, tmp_path: Path
) -> None:
    image = photo(4)
    ours, _ = conversation(image)
    wanted = client.chat(ours, adapter="a", max_tokens=NUM_TOKENS, temperature=0).text
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "and what is "},
    ]
    body = {
        "model": "a", "max_tokens": NUM_TOKENS, "temperature": 0,
        "messages": [{"role": "system", "content": "Look."}, {"role": "user", "content": parts}],
    }  # fmt: skip
    with RunningGateway(tmp_path, server.target) as gateway:
        answer = gateway.post("/v1/chat/completions", body)
    assert answer.json["choices"][0]["message"]["content"] == wanted


def test_a_second_turn_finds_what_the_first_left(client: Client) -> None:
    ours, _ = conversation(photo(5, 120, 120))
    first = client.chat(ours, max_tokens=NUM_TOKENS, temperature=0)
    again = [
        *ours,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And now?"},
    ]
    second = client.chat(again, max_tokens=NUM_TOKENS, temperature=0)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens // 16 * 16 - 16


def test_beams_see_the_image(client: Client, alone: Alone) -> None:
    image = photo(6)
    ours, theirs = conversation(image)
    answer = client.chat(ours, adapter="a", max_tokens=NUM_TOKENS, num_beams=3, ignore_eos=True)
    assert list(answer.token_ids) == alone.generate("a", theirs, [image], num_beams=3)


def test_what_is_no_image_is_refused_by_name(client: Client) -> None:
    ours, _ = conversation(photo(8)[:200])
    with pytest.raises(InvalidArgumentError) as refused:
        client.chat(ours, max_tokens=1)
    assert refused.value.field == "messages[1].parts[0].image"
    # The process that found out goes on.
    ours, _ = conversation(photo(8))
    assert client.chat(ours, max_tokens=1).usage.prompt_tokens


def test_a_text_base_says_that_it_has_no_vision(chat_server: RunningServer) -> None:
    ours, _ = conversation(photo(9))
    with (
        Client(chat_server.target) as client,
        pytest.raises(FailedPreconditionError, match="does not support images"),
    ):
        client.chat(ours, max_tokens=1)
