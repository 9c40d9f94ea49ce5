"""Cost of sending one image to several adapters.

A base of SmolVLM-256M's shape with random weights, saved in bfloat16, and an image of 512 x 512
pixels, which is 64 tokens. Concurrent requests have the image and a short text each: for the base,
for distinct adapters, and for these without the image. PEFT generates for as many texts in a batch,
with a distinct adapter for each of them. Each round has a different image.

    python -m benchmarks.images --batch 1 --batch 8
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
import typer
from peft import PeftModel
from transformers import AutoModelForImageTextToText, Idefics3Config

from benchmarks import machine
from benchmarks.local_engine import GREEDY, LocalEngine
from benchmarks.random_adapters import save_adapters, with_adapters
from benchmarks.random_bases import load_base, save_base
from benchmarks.step_ways import in_turns, write_record
from loramux_server.images.messages import Array, Image, PlacedImage, PreparedImage
from loramux_server.models.decoder_model import prepare
from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.engine_config import EngineConfig
from loramux_server.wire.messages import Submit

VOCAB = 2048
IMAGE_TOKEN = 3
NUM_TEXT = 16
"""Text tokens after the image."""
SHAPES: dict[str, dict[str, Any]] = {
    "smolvlm-256m": {
        "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                   "num_attention_heads": 12, "image_size": 512, "patch_size": 16},
        "text": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                 "num_attention_heads": 9, "num_key_value_heads": 3},
        "scale": 4,
    },
    "tiny": {
        "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                   "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        "text": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2},
        "scale": 2,
    },
}  # fmt: skip


def main(
    batch: Annotated[list[int], typer.Option(help="Concurrent requests; repeatable.")],
    tokens: Annotated[int, typer.Option(help="Output tokens of each request.")] = 32,
    repeats: Annotated[int, typer.Option(help="Alternating rounds; medians are reported.")] = 3,
    shape: Annotated[str, typer.Option(help=f"Base model: {', '.join(SHAPES)}.")] = "smolvlm-256m",
    output: Annotated[Path | None, typer.Option(help="File for the result, as JSON.")] = None,
) -> None:
    """Print milliseconds until all answers are complete, and ratios to the base alone."""
    options = {"tokens": tokens, "repeats": repeats, "shape": shape}
    described, figures = machine.describe(), []
    with tempfile.TemporaryDirectory(prefix="loramux-bench-") as name:
        folder = Path(name)
        config = _config(shape)
        base = save_base(folder / "base", config, kind=AutoModelForImageTextToText)
        adapters = _save_adapters(folder / "adapters", config, max(batch))
        images = _Images(config)
        engine = LocalEngine(
            prepare(load_base(base, kind=AutoModelForImageTextToText), example=images.prepared()),
            EngineConfig(model="", max_running=max(batch)),
        )
        peft = with_adapters(
            load_base(base, kind=AutoModelForImageTextToText), folder / "adapters", max(batch)
        )
        for size in batch:
            ask = partial(_ask, engine, images, tokens)
            nobody: list[AdapterSource | None] = [None] * size
            ways: dict[str, Callable[[], float]] = {
                "base": partial(ask, nobody),
                "adapters": partial(ask, adapters[:size]),
                "adapters, no image": partial(ask, adapters[:size], shows=False),
                "PEFT, float32": partial(_generate, peft, images, tokens, size),
            }
            figures.append(in_turns(size, ways, repeats))
        engine.close()
    if output:
        write_record(output, "python -m benchmarks.images", options, described, figures)


class _Images:
    """Images that are not in any cache."""

    def __init__(self, config: Idefics3Config) -> None:
        vision = config.vision_config
        self._side = vision.image_size
        patches = vision.image_size // vision.patch_size // config.scale_factor
        self.tokens = [IMAGE_TOKEN] * patches**2
        self._random = np.random.default_rng(0)

    def prepared(self) -> PreparedImage:
        """Return an image as the processor prepares it."""
        size = (1, 1, 3, self._side, self._side)
        pixels = self._random.uniform(-1, 1, size).astype(np.float32)
        array = Array("float32", list(size), pixels.tobytes())
        return PreparedImage(self.tokens, Image(self._random.bytes(32), {"pixel_values": array}))

    def text(self, length: int = NUM_TEXT) -> list[int]:
        """Return random text tokens to follow an image."""
        tokens: list[int] = self._random.integers(4, VOCAB, length).tolist()
        return tokens


def _ask(
    engine: LocalEngine,
    images: _Images,
    num_tokens: int,
    adapters: Sequence[AdapterSource | None],
    *,
    shows: bool = True,
) -> float:
    """Return the seconds until all of `adapters` have answered about one image."""
    image, length = images.prepared().image, len(images.tokens)
    sampling = msgspec.structs.replace(GREEDY, max_tokens=num_tokens)
    messages = []
    for number, adapter in enumerate(adapters):
        before = images.tokens if shows else images.text(length)
        ask = Ask(
            [*before, *images.text()],
            adapter,
            sampling,
            images=[PlacedImage(0, length, image)] if shows else [],
        )
        messages.append(Submit(number, ask))
    return engine.complete(messages).seconds


@torch.inference_mode()
def _generate(model: PeftModel, images: _Images, num_tokens: int, size: int) -> float:
    prepared = images.prepared()
    array = prepared.image.arrays["pixel_values"]
    pixels = torch.frombuffer(bytearray(array.data), dtype=torch.float32).reshape(array.shape)
    tokens = torch.tensor([[*prepared.tokens, *images.text()] for _ in range(size)])
    begin = time.perf_counter()
    model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens),
        pixel_values=pixels.expand(size, *array.shape[1:]),
        adapter_names=[f"a{index:04d}" for index in range(size)],
        max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False,
    )  # fmt: skip
    return time.perf_counter() - begin


def _config(shape: str) -> Idefics3Config:
    sizes = SHAPES[shape]
    text = {"model_type": "llama", "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 0, "max_position_embeddings": 1024}  # fmt: skip
    return Idefics3Config(
        text_config=text | sizes["text"], vision_config=sizes["vision"],
        scale_factor=sizes["scale"], image_token_id=IMAGE_TOKEN,
    )  # fmt: skip


def _save_adapters(folder: Path, config: Idefics3Config, count: int) -> list[AdapterSource]:
    text = config.text_config
    kv_width = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    widths = {}
    for layer in range(text.num_hidden_layers):
        name = f"model.text_model.layers.{layer}.self_attn"
        widths[f"{name}.q_proj"] = (text.hidden_size, text.hidden_size, 1)
        widths[f"{name}.v_proj"] = (text.hidden_size, kv_width, 1)
    # By their full names: layers of the vision tower have the same short names.
    return save_adapters(folder, widths, count, target_modules=sorted(widths))


if __name__ == "__main__":
    typer.run(main)
