"""Folder -> transformers' processor for images and text.

transformers' processors of vision-language models also have a part for video, which needs
torchvision, and some have one for audio. Images need neither, so the processor is assembled without
them.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

FILES = ("processor_config.json", "preprocessor_config.json")
"""Every base with vision support has one of these."""
_PARTS = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
_LEFT_OUT = frozenset(("video_processor", "feature_extractor", "audio_processor"))
"""Parts for video and audio."""


class NoProcessorError(Exception):
    """The folder has no usable image processor; the message says why."""


def load_processor(folder: str) -> ProcessorMixin:
    """Return the processor of the base model in `folder`.

    Raises:
        NoProcessorError: It has none, or one that cannot be used here.
    """
    if not any((Path(folder) / name).is_file() for name in FILES):
        raise NoProcessorError(f"the base model has no image processor: no {' or '.join(FILES)}")
    try:
        return _assembled(folder)
    except NoProcessorError:
        raise
    # The files are not ours, so anything can be raised.
    except Exception as error:
        raise NoProcessorError(
            f"the base model's processor cannot be loaded: {short_message(error)}"
        ) from error


def short_message(error: Exception) -> str:
    """Return the start of the message of `error`, on one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def _assembled(path: str) -> ProcessorMixin:
    kind = _with_torchvision_or_without(_kind_of(path))

    class OfImages(kind):  # type: ignore[misc,valid-type]
        """`kind` without the parts that are left out."""

        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> object:
            """Check the type of a part, unless it is left out."""
            if argument_name in _LEFT_OUT:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    OfImages.__name__ = kind.__name__  # transformers looks up names
    names, parts = kind.get_attributes(), []
    if missing := _PARTS.keys() - set(names):
        raise NoProcessorError(f"{kind.__name__} is not an image processor: no {min(missing)}")
    for name in names:
        if name not in _LEFT_OUT and name not in _PARTS:
            raise NoProcessorError(f"{kind.__name__} also has a {name}, which is not supported")
        parts.append(_part(name, path))
    about, _ = kind.get_processor_dict(path)
    processor: ProcessorMixin = OfImages.from_args_and_dict(parts, about)
    return processor


def _part(name: str, path: str) -> object:
    kind = _PARTS.get(name)
    return kind and kind.from_pretrained(path, trust_remote_code=False)


def _kind_of(path: str) -> Any:  # noqa: ANN401, a class that has a type of its own
    """Return the class of the processor, resolved as transformers' AutoProcessor does."""
    for file in (*FILES, "tokenizer_config.json"):
        if (Path(path) / file).is_file():
            name = json.loads((Path(path) / file).read_bytes()).get("processor_class")
            if kind := processor_class_from_name(name) if name else None:
                return kind
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if type(config) not in PROCESSOR_MAPPING:
        raise NoProcessorError(f"transformers has no processor for {config.model_type}")
    return PROCESSOR_MAPPING[type(config)]


def _with_torchvision_or_without(kind: Any) -> Any:  # noqa: ANN401
    """Return `kind`; if it is transformers' dummy for missing torchvision, the class behind it.

    The real class imports a helper from an image processing module that needs torchvision. The
    module's Pillow twin has the same helper and is imported in its place.
    """
    if not getattr(kind, "is_dummy", False):
        return kind
    own = getattr(transformers, kind.__name__).__module__
    package, _, family = own.rpartition(".processing_")
    name = f"{package}.image_processing_{family}"
    try:
        with _module_as(name, importlib.import_module(f"{package}.image_processing_pil_{family}")):
            return getattr(importlib.import_module(own), kind.__name__)
    except ImportError as error:
        raise NoProcessorError(
            f"{kind.__name__} requires a missing package, such as torchvision: "
            f"{short_message(error)}"
        ) from error


@contextlib.contextmanager
def _module_as(name: str, module: object) -> Iterator[None]:
    """Let imports of `name` in the block find `module`."""
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
