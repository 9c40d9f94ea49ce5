"""Whether a base model handles an image as in its own forward."""

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.images.messages import PreparedImage
from loramux_server.models.attention import AttentionBridge
from loramux_server.models.decoder_stack import DecoderStack
from loramux_server.models.editor import Editor
from loramux_server.models.recurrent.recurrent import Recurrent
from loramux_server.models.self_check import SelfCheck, ordinary_tokens, sample_of_image
from loramux_server.models.step import Step
from loramux_server.models.vision.encoder import UnsupportedVisionError, VisionEncoder
from loramux_server.models.vision.prompt_images import PromptImages

_BEFORE, _BEHIND = 5, 4
"""Tokens of text before and after the image."""
_UNKNOWN_WAYS = (
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    UnsupportedVisionError,
)


class VisionTrial:
    """Tests one base model; create it before its layers are packed."""

    def __init__(
        self,
        module: PreTrainedModel,
        step: Step,
        bridge: AttentionBridge,
        recurrent: Recurrent,
        *,
        idle: Collection[str],
        example: PreparedImage | None,
        no_vision_reason: str,
    ) -> None:
        """Run `example` through the model's own forward.

        Args:
            module: The model.
            step: The step object of its layers.
            bridge: Its attention.
            recurrent: Its recurrent layers.
            idle: Submodels that do not run for text.
            example: An image and its tokens; None if images are not to be served.
            no_vision_reason: Why not, although models of this type support them.
        """
        self._module = module
        self._idle = set(idle)
        self._encoder: VisionEncoder | None = None
        self.no_vision_reason = no_vision_reason
        if example is None:
            return
        try:
            self._encoder = vision = VisionEncoder(module)
            self._attend_apart()
            vision_parts = self._called_by(vision, example)
            self._check = _check(module, step, bridge, recurrent, vision, example)
            end = _BEFORE + len(example.tokens)
            self._around_image = [(0, end + 1), (end + 1, end + 2), (end + 2, end + _BEHIND)]
            self._attend_apart()
        except torch.OutOfMemoryError:
            raise
        except _UNKNOWN_WAYS as error:
            self._disable(f"{type(error).__name__}: {error}")
            return
        self._idle -= vision_parts

    @property
    def idle(self) -> Collection[str]:
        """Submodels that are not needed."""
        return self._idle

    def encoder(self, stack: DecoderStack | None, editor: Editor) -> VisionEncoder | None:
        """Return the encoder if served results are the same; else None: see `no_vision_reason`.

        Args:
            stack: The fused layers, if any.
            editor: Inserts embeddings into a step.
        """
        if self._encoder is None:
            return None
        try:
            difference = self._check.difference(stack, editor)
            if not difference <= self._check.tolerance:
                self._encoder.is_bidirectional = True
                self._check.set_spans(self._around_image)
                difference = self._check.difference(stack, editor)
        except torch.OutOfMemoryError:
            raise
        except _UNKNOWN_WAYS as error:
            self._disable(f"{type(error).__name__}: {error}")
            return None
        if not difference <= self._check.tolerance:  # so that NaN is refused
            self._disable(
                "with an image it computes different results when served than in its own forward "
                f"pass: logits differ by {difference:.2g} of their spread"
            )
        return self._encoder

    def _attend_apart(self) -> None:
        """Let vision modules use their own attention: they need no KV cache."""
        for name in self._idle:
            part = self._module.get_submodule(name)
            assert isinstance(part, PreTrainedModel)
            part.set_attn_implementation("sdpa")

    def _disable(self, why: str) -> None:
        self._encoder = None
        self.no_vision_reason = f"{type(self._module).__name__} cannot be served with images: {why}"

    def _called_by(self, vision: VisionEncoder, example: PreparedImage) -> set[str]:
        """Return the idle submodels that encoding `example` needs."""
        parts = {name: set(self._module.get_submodule(name).modules()) for name in self._idle}
        called: set[nn.Module] = set()
        hooks = [
            part.register_forward_pre_hook(lambda part, _: called.add(part))
            for part in set().union(*parts.values())
        ]
        try:
            vision.encode(example.image, example.tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return {name for name, inside in parts.items() if not called.isdisjoint(inside)}


def _check(
    module: PreTrainedModel,
    step: Step,
    bridge: AttentionBridge,
    recurrent: Recurrent,
    vision: VisionEncoder,
    example: PreparedImage,
) -> SelfCheck:
    """Return a check of a text that contains `example`."""
    text = ordinary_tokens(module, _BEFORE + _BEHIND).tolist()
    tokens = [*text[:_BEFORE], *example.tokens, *text[_BEFORE:]]
    length = len(example.tokens)

    def encode_images() -> PromptImages:
        encoded = vision.encode(example.image, example.tokens)
        return PromptImages.of(len(tokens), [(_BEFORE, length, encoded)])

    token_T = torch.tensor(tokens, device=module.device)
    own = vision.arguments(example.image, tokens)
    return SelfCheck(
        module, step, bridge, recurrent, [sample_of_image(token_T, own, encode_images)]
    )
