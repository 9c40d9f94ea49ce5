"""Image file bytes -> the base model's input, by transformers' own processor."""

import hashlib
from collections.abc import Mapping

import numpy as np
from PIL import Image as Pillow
from transformers import ProcessorMixin

from loramux_server.images.decoding import RefusedImageError, decode
from loramux_server.images.loading import NoProcessorError, load_processor, short_message
from loramux_server.images.messages import Array, Image, Placeholder, PreparedImage, encode

_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Those outputs of a processor that describe text."""


class ImageProcessor:
    """Preprocesses images one by one, so that the result depends on nothing else."""

    def __init__(self, processor: ProcessorMixin, max_pixels: int) -> None:
        """Wrap `processor`; use `load` for the processor of a folder.

        Raises:
            NoProcessorError: Its output is not usable.
        """
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._max_pixels = max_pixels
        self._word = getattr(processor, "image_token", None)
        name = type(processor).__name__
        if not self._word:
            raise NoProcessorError(f"{name} has no image token")
        added = self._tokenizer.get_added_vocab()
        if self._word not in added:
            raise NoProcessorError(f"the tokenizer has no image token {self._word}")
        self._added = frozenset(token for word, token in added.items() if word.strip())
        """Added tokens other than whitespace; some tokenizers have added tokens for line breaks."""
        try:
            tokens, _ = self._make(Pillow.new("RGB", (64, 64)))
            first, last = self._bounds(tokens)
        except Exception as error:
            raise NoProcessorError(
                f"{name} cannot process a test image: {short_message(error)}"
            ) from error
        before, after = map(self._tokenizer.decode, (tokens[:first], tokens[last:]))
        self.placeholder = Placeholder(added[self._word], before, after)
        """What stands for an image before it is preprocessed."""

    @classmethod
    def load(cls, path: str, max_pixels: int) -> "ImageProcessor":
        """Return the processor of the base model in the folder `path`.

        Args:
            path: The folder.
            max_pixels: Limit of pixels per image.

        Raises:
            NoProcessorError: It has none, or one that cannot be used here.
        """
        return cls(load_processor(path), max_pixels)

    def prepare(self, data: bytes) -> PreparedImage:
        """Return the image in a file, preprocessed.

        Raises:
            RefusedImageError: The bytes are not an acceptable image.
        """
        image = decode(data, self._max_pixels)
        try:
            return self._prepare(image)
        except MemoryError:
            raise
        except Exception as error:
            raise RefusedImageError(
                f"the image has {image.width} x {image.height} pixels, which the base model's "
                f"processor cannot process: {short_message(error)}"
            ) from None

    def _prepare(self, image: Pillow.Image) -> PreparedImage:
        tokens, arrays = self._make(image)
        first, last = self._bounds(tokens)
        own = tokens[first:last]
        return PreparedImage(own, Image(_digest(own, arrays), arrays))

    def _make(self, image: Pillow.Image) -> tuple[list[int], dict[str, Array]]:
        """Return the tokens and arrays that transformers makes of the image token and the image."""
        if not getattr(self._processor.image_processor, "do_convert_rgb", False):
            image = image.convert("RGB")
        made = self._processor(
            text=[self._word], images=[image], return_tensors="pt", add_special_tokens=False
        )
        arrays = {name: _array(made[name].numpy()) for name in made if name not in _TEXT}
        return made["input_ids"][0].tolist(), arrays

    def _bounds(self, tokens: list[int]) -> tuple[int, int]:
        """Return the span of `tokens` from the first to the last token that is not text."""
        places = [place for place, token in enumerate(tokens) if token in self._added]
        return places[0], places[-1] + 1


def _array(numbers: np.ndarray) -> Array:
    return Array(str(numbers.dtype), list(numbers.shape), numbers.tobytes())


def _digest(tokens: list[int], arrays: Mapping[str, Array]) -> bytes:
    """Return the digest that identifies an image.

    It includes the tokens: two tilings, such as side by side and one above the other, can give the
    same arrays, but never the same tokens.
    """
    digest = hashlib.blake2b(encode(tokens), digest_size=32)
    for name, array in sorted(arrays.items()):
        digest.update(encode([name, array.dtype, array.shape]))
        digest.update(array.data)
    return digest.digest()
