"""Images as base models take them: the numbers of transformers, of an image alone."""

import importlib.util
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from loramux_server.images.decoding import RefusedImageError
from loramux_server.images.loading import NoProcessorError, load_processor
from loramux_server.images.messages import Array, PreparedImage
from loramux_server.images.processor import ImageProcessor
from tests.support.pictures import picture, saved
from tests.support.vision import KINDS, save_vision_base

MAX_PIXELS = 1_000_000
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
WITHOUT = [kind for kind in KINDS if kind != "lfm2-vl" or HAS_TORCHVISION]
"""Kinds whose processors do without torchvision, or have it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def base_of(kind: str, folder: Path) -> str:
    if not (folder / kind).exists():
        save_vision_base(kind, folder / kind)
    return str(folder / kind)


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(
        np.frombuffer(array.data, array.dtype).reshape(array.shape).copy()
    )  # fmt: skip


def together(kind: str, name: str, prepared: list[PreparedImage]) -> torch.Tensor:
    """Return what transformers makes of several images, from what was made of each."""
    parts = [tensor(each.image.arrays[name]) for each in prepared]
    if kind == "mistral3" and name == "pixel_values":  # as large as the largest
        height, width = (max(part.shape[axis] for part in parts) for axis in (2, 3))
        parts = [
            torch.nn.functional.pad(part, (0, width - part.shape[3], 0, height - part.shape[2]))
            for part in parts
        ]
    return torch.cat(parts, 1 if kind == "smolvlm" else 0)


@pytest.mark.parametrize("kind", WITHOUT)
def test_an_image_alone_becomes_what_transformers_makes_of_it_beside_others(
    kind: str, folder: Path
) -> None:
    path = base_of(kind, folder)
    files = [saved(picture(size=(64, 64))), saved(picture(size=(200, 90), seed=1), "JPEG")]
    processor = ImageProcessor.load(path, MAX_PIXELS)
    prepared = [processor.prepare(file) for file in files]

    theirs, tokenizer = load_processor(path), AutoTokenizer.from_pretrained(path)
    content = [{"type": "image"}, {"type": "text", "text": "What? "}] * 2
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    images = [Image.open(BytesIO(file)) for file in files]
    made = theirs(text=[text], images=images, return_tensors="pt", add_special_tokens=False)

    stands = processor.placeholder
    word = tokenizer.convert_ids_to_tokens(stands.token)
    with_text = text.replace(word, stands.before + word + stands.after)
    tokens: list[int] = []
    left = list(prepared)
    for token in tokenizer.encode(with_text, add_special_tokens=False):
        tokens += left.pop(0).tokens if token == stands.token else [token]
    assert tokens == made["input_ids"][0].tolist()
    of_text = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
    names = set(made) - of_text
    assert names == set(prepared[0].image.arrays)
    for name in names:
        assert torch.equal(together(kind, name, prepared), made[name])


@pytest.mark.parametrize("kind", ["qwen2.5-vl", "smolvlm"])
def test_an_image_of_any_mode_becomes_what_transformers_makes_of_the_file(
    kind: str, folder: Path
) -> None:
    path = base_of(kind, folder)
    processor, theirs = ImageProcessor.load(path, MAX_PIXELS), load_processor(path)
    formats = {"PNG": ("1", "L", "LA", "P", "RGBA"), "JPEG": ("L", "CMYK"), "GIF": ("P",)}
    for data in [saved(picture(mode), name) for name in formats for mode in formats[name]]:
        ours = processor.prepare(data).image.arrays["pixel_values"]
        made: Any = theirs.image_processor([Image.open(BytesIO(data))], return_tensors="pt")
        assert torch.equal(tensor(ours), made["pixel_values"])


def test_the_token_of_an_image_is_what_templates_write(folder: Path) -> None:
    for kind, token in (("qwen3-vl", "<|image_pad|>"), ("gemma3", "<start_of_image>"),
                        ("mistral3", "[IMG]"), ("internvl", "<IMG_CONTEXT>")):  # fmt: skip
        path = base_of(kind, folder)
        (wanted,) = AutoTokenizer.from_pretrained(path).encode(token, add_special_tokens=False)
        assert ImageProcessor.load(path, MAX_PIXELS).placeholder.token == wanted


def test_text_around_the_tokens_of_an_image_stays_text(folder: Path) -> None:
    processor = ImageProcessor.load(base_of("gemma3", folder), MAX_PIXELS)
    assert (processor.placeholder.before, processor.placeholder.after) == ("\n\n", "\n\n")
    assert len(processor.prepare(saved(picture())).tokens) == 6  # begin, four of the image, end


def test_an_image_is_known_by_its_pixels(folder: Path) -> None:
    processor = ImageProcessor.load(base_of("qwen2.5-vl", folder), MAX_PIXELS)
    one, same, other, turned = (
        processor.prepare(data).image.digest
        for data in (
            saved(picture()),
            saved(picture(), "WEBP", lossless=True),
            saved(picture(seed=1)),
            saved(picture().transpose(Image.Transpose.ROTATE_90)),
        )
    )
    assert len({one, same, other, turned}) == 3 and one == same and len(one) == 32


def test_an_image_is_known_by_how_its_tiles_lie(folder: Path) -> None:
    """Where all is of one colour, those of one on its side have the same numbers."""
    processor = ImageProcessor.load(base_of("smolvlm", folder), MAX_PIXELS)
    wide, high = (
        processor.prepare(saved(Image.new("RGB", size, "red"))) for size in ((56, 28), (28, 56))
    )
    assert wide.image.arrays == high.image.arrays and wide.tokens != high.tokens
    assert wide.image.digest != high.image.digest


def test_an_image_is_refused_with_what_the_processor_says(folder: Path) -> None:
    processor = load_processor(base_of("qwen2.5-vl", folder))
    strict = ImageProcessor(processor, MAX_PIXELS)
    processor.image_processor.size = {"shortest_edge": 784}
    with pytest.raises(RefusedImageError, match=r"64 x 64 pixels, which .* 'longest_edge'"):
        strict.prepare(saved(picture()))


def test_a_base_without_files_of_a_processor_has_none(tmp_path: Path) -> None:
    save_vision_base("llava", tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(NoProcessorError, match=r"no processor_config.json or preprocessor_con"):
        ImageProcessor.load(str(tmp_path), MAX_PIXELS)


@pytest.mark.skipif(HAS_TORCHVISION, reason="what is looked at is that torchvision is missing")
def test_a_processor_that_needs_torchvision_says_so(folder: Path) -> None:
    with pytest.raises(NoProcessorError, match="Torchvision"):
        ImageProcessor.load(base_of("lfm2-vl", folder), MAX_PIXELS)


@pytest.mark.parametrize(("changes", "message"), [
    ({"processor_class": "CLIPProcessor"}, "CLIPProcessor has no image token"),
    ({"processor_class": "InstructBlipProcessor"}, "also has a qformer_tokenizer"),
    ({"processor_class": "WhisperProcessor"}, "is not an image processor: no image_processor"),
    ({"image_token": "<no>"}, "the tokenizer has no image token <no>"),
    ({"patch_size": 0}, "LlavaProcessor cannot process a test image: .*zero"),
    ({"patch_size": [1]}, "LlavaProcessor cannot process a test image"),
    ({"image_processor_type": "Nobody's"}, "the base model's processor cannot be loaded"),
])  # fmt: skip
def test_files_that_make_no_processor_of_images_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_vision_base("llava", tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        content = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(json.dumps(content | changes))
    with pytest.raises(NoProcessorError, match=message):
        ImageProcessor.load(str(tmp_path), MAX_PIXELS)
