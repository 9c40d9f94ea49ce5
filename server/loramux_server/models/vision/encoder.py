"""How a base model encodes images: its own forward, stopped before the text model.

What comes before the text model is specific to each model: a vision tower, a projection, token
types, positions by height and width, features for some layers. So the model's forward runs on one
image at a time, with a stub in place of the text model that records its inputs.

Legend: V tokens that have an embedding of an image, L tokens of an image, K width of an embedding.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.images.messages import Array, Image
from loramux_server.lora.virtual import Virtual
from loramux_server.lora.vision_adapter import VisionAdapter, VisionLora
from loramux_server.models.packed_linear import features
from loramux_server.models.quantized import is_linear, is_quantized
from loramux_server.models.vision.prompt_images import EncodedImage, Int64

_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Argument names by which models learn which tokens belong to images."""


class UnsupportedVisionError(Exception):
    """The model does not take images in a supported way; the message says why."""


class NotFiniteError(Exception):
    """The vision modules overflow on an image."""

    def __init__(self, *, is_changed: bool) -> None:
        super().__init__("the encoding of an image is not finite: weights overflow on it")
        self.is_changed = is_changed
        """Whether some of their weights are an adapter's."""


class VisionEncoder:
    """Encodes images with one base model. May run concurrently with steps, on one thread."""

    def __init__(self, module: PreTrainedModel) -> None:
        """Find the vision modules of `module`.

        Raises:
            UnsupportedVisionError: The text model is not a separate part of it, or it has no image
                token.
        """
        inner = module.base_model
        embedding = module.get_input_embeddings()
        name = next((n for n, p in inner.named_children() if embedding in set(p.modules())), None)
        self.image_token = _image_token(module)
        if name is None or inner is module or self.image_token is None:
            raise UnsupportedVisionError(
                f"{type(module).__name__} has no separate text model or image token"
            )
        self.is_bidirectional = False
        """Whether tokens of an image attend to each other; set by `VisionTrial`."""
        self.adds = False
        """Whether images add features after layers; known after the first call of `encode`."""
        self._dtype, self._device = module.dtype, module.device
        # A shallow copy that shares the vision modules but has a stub as text model: the text model
        # may be changed by a step meanwhile.
        self._stand_in = _StandIn(embedding)
        self._model = copy.copy(inner)
        self._model._modules = {**inner._modules, name: self._stand_in}
        kept = {id(part) for part in self._model.modules()}
        self._parts = {n: part for n, part in module.named_modules() if id(part) in kept}
        self.layers = {n: features(part) for n, part in self._parts.items() if is_linear(part)}
        """Name of each linear layer -> (in_features, out_features)."""
        self.parameters = {
            f"{n}.{parameter}": tuple(value.shape)
            for n, part in self._parts.items()
            if not is_quantized(part)
            for parameter, value in part.named_parameters(recurse=False)
        }
        """Name of each parameter -> its shape; without those of quantized layers."""

    @torch.inference_mode()
    def encode(
        self, image: Image, tokens: Sequence[int], change: VisionAdapter | None = None
    ) -> EncodedImage:
        """Return the encoding of `image`, for which `tokens` stand in a prompt.

        Args:
            image: The image.
            tokens: Its tokens.
            change: An adapter's changes of the vision modules; they fit.

        Raises:
            UnsupportedVisionError: The model handles images in an unknown way.
            NotFiniteError: The weights overflow.
        """
        given = self.arguments(image, tokens)
        self._stand_in.given = None
        with suppress(_ReachedTextError), self._changed(change or VisionAdapter()):
            self._model(input_ids=torch.tensor([list(tokens)], device=self._device), **given)
        noted, self._stand_in.given = self._stand_in.given, None
        if noted is None:
            raise UnsupportedVisionError("its text model was not called for an image")
        embedding_LK = noted["inputs_embeds"][0]
        is_image_L = torch.tensor(tokens, device=embedding_LK.device) == self.image_token
        is_image_L |= ~embedding_LK.isnan().all(-1)
        place_V = np.flatnonzero(is_image_L.cpu().numpy())
        embedding_VK = embedding_LK[is_image_L].clone()
        added = noted.get("deepstack_visual_embeds") or ()
        if not all(bool(each.isfinite().all()) for each in (embedding_VK, *added)):
            raise NotFiniteError(is_changed=change is not None)
        self.adds = bool(added)
        return EncodedImage(
            place_V=place_V,
            embeddings=Virtual(embedding_VK),
            added=tuple(Virtual(added_VK) for added_VK in added),
            is_bidirectional=self.is_bidirectional,
            mrope_3L=_mrope_positions(noted.get("position_ids"), len(tokens)),
        )

    @contextmanager
    def _changed(self, change: VisionAdapter) -> Iterator[None]:
        """Apply `change` to the vision modules while the block runs."""
        with ExitStack() as changed:
            for name, layer in change.layers.items():
                hook = self._parts[name].register_forward_hook(_changing(layer))
                changed.callback(hook.remove)
            for path, value in change.parameters.items():
                name, _, parameter = path.rpartition(".")
                held = self._parts[name]._parameters
                before = held[parameter]
                assert before is not None
                changed.callback(held.__setitem__, parameter, before)
                held[parameter] = nn.Parameter(value.to(before), requires_grad=False)
            yield

    def arguments(self, image: Image, tokens: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the arguments besides `tokens`, which contain `image`, for the model's forward."""
        known = inspect.signature(type(self._model).forward).parameters
        types = torch.tensor([[int(token == self.image_token) for token in tokens]])
        return {
            **{name: self._tensor(array) for name, array in image.arrays.items()},
            **{name: types.to(self._device) for name in _TYPES if name in known},
        }

    def _tensor(self, array: Array) -> torch.Tensor:
        flat = np.frombuffer(array.data, array.dtype)
        tensor = torch.from_numpy(flat.reshape(array.shape).copy()).to(self._device)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


class _ReachedTextError(Exception):
    """The stub has been reached; the rest of the forward is not needed."""


class _StandIn(nn.Module):
    """A stub in place of the text model, which records its arguments."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = _NoEmbedding(embedding)
        self.given: Mapping[str, Any] | None = None

    def get_input_embeddings(self) -> nn.Module:
        """Return the input embedding, for which transformers asks."""
        return self.embed_tokens

    def forward(self, **given: Any) -> None:  # noqa: ANN401
        """Record the arguments, and end the forward.

        Raises:
            _ReachedTextError: Always.
        """
        self.given = given
        raise _ReachedTextError


class _NoEmbedding(nn.Module):
    """Embeds every token as NaN, to show which ones get an image's embeddings."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        weight = embedding.get_parameter("weight")
        self._width, self._dtype = weight.shape[1], weight.dtype

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return NaN for each of `tokens`."""
        size = (*tokens.shape, self._width)
        return torch.full(size, float("nan"), dtype=self._dtype, device=tokens.device)


def _changing(layer: VisionLora) -> Callable[..., torch.Tensor]:
    """Return a forward hook that applies the change `layer`."""

    def change(part: nn.Module, given: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        return layer.of(part, given[0], y)

    return change


def _image_token(module: PreTrainedModel) -> int | None:
    names = ("image_token_id", "image_token_index")
    found = (getattr(module.config, name, None) for name in names)
    return next((token for token in found if isinstance(token, int)), None)


def _mrope_positions(position_ids: torch.Tensor | None, num_tokens: int) -> Int64 | None:
    """Return temporal, height and width positions; None if they are those of text."""
    if position_ids is None or position_ids.ndim != 3:
        return None
    mrope_3L: Int64 = position_ids[-3:, 0].cpu().numpy().astype(np.int64)
    return None if (mrope_3L == np.arange(num_tokens)).all() else mrope_3L
