"""A folder -> transformers' processor of images and text, of its own kind.

transformers' processors of vision-language models come with one for videos as well, which needs
torchvision, and some with one for sound. Images need neither, so a processor is put together
without them.
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

from loramux_server.images.folder import folder_of, revision_of

FILES = ("processor_config.json", "preprocessor_config.json")
"""One of which every base that sees images has."""
_PARTS = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
_LEFT_OUT = frozenset(("video_processor", "feature_extractor", "audio_processor"))
"""What is for videos, and for sound."""


class NoProcessorError(Exception):
    """The folder has no processor for images that can be used; the message says why."""


def load_processor(path: str, revision: str | None = None) -> ProcessorMixin:
    """Return the processor of the base model in folder or hub id `path`, of a `revision` of it.

    Raises:
        NoProcessorError: It has none, or one that cannot be used here.
    """
    try:
        folder = folder_of(revision_of(path, revision))
    except (OSError, ValueError) as error:
        raise NoProcessorError(
            f"the base model's processor cannot be had: {said(error)}"
        ) from error
    if not any((Path(folder) / name).is_file() for name in FILES):
        raise NoProcessorError(
            f"the base model has no processor of images: no {' or '.join(FILES)}"
        )
    try:
        return _assembled(folder)
    except NoProcessorError:
        raise
    # The files are somebody else's, and so is what comes of them.
    except Exception as error:
        raise NoProcessorError(
            f"the base model's processor cannot be loaded: {said(error)}"
        ) from error


def said(error: Exception) -> str:
    """Return the begin of what `error` says, on one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def _assembled(path: str) -> ProcessorMixin:
    kind = _with_torchvision_or_without(_kind_of(path))

    class OfImages(kind):  # type: ignore[misc,valid-type]
        """One that lacks what is for anything else."""

        def check_argument_for_proper_class(self, argument_name: str, argument: object) -> object:
            """Check what is there."""
            if argument_name in _LEFT_OUT:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    OfImages.__name__ = kind.__name__  # transformers looks at names
    names, parts = kind.get_attributes(), []
    if missing := _PARTS.keys() - set(names):
        raise NoProcessorError(f"{kind.__name__} is no processor of images: no {min(missing)}")
    for name in names:
        if name not in _LEFT_OUT and name not in _PARTS:
            raise NoProcessorError(f"{kind.__name__} has a {name} as well, which is not used here")
        parts.append(_part(name, path))
    about, _ = kind.get_processor_dict(path)
    processor: ProcessorMixin = OfImages.from_args_and_dict(parts, about)
    return processor


def _part(name: str, path: str) -> object:
    kind = _PARTS.get(name)
    return kind and kind.from_pretrained(path, trust_remote_code=False)


def _kind_of(path: str) -> Any:  # noqa: ANN401, a class that has a type of its own
    """Return the class of the processor, found as transformers' AutoProcessor does."""
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
    """Return `kind`, or what it stands for: where torchvision is missing, it may be a stand-in.

    Such a class asks the module that makes numbers of images with torchvision for a function that
    is in its twin as well, which does so with Pillow.
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
            f"{kind.__name__} needs what is not installed, such as torchvision: {said(error)}"
        ) from error


@contextlib.contextmanager
def _module_as(name: str, module: object) -> Iterator[None]:
    """Have `module` imported where `name` is asked for."""
    sys.modules[name] = module  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
