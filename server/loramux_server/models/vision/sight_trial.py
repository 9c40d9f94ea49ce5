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
from loramux_server.models.vision.seen import View
from loramux_server.models.vision.sight import BlindError, Sight

_BEFORE, _BEHIND = 5, 4
"""Tokens of text before and after the image."""
_UNKNOWN_WAYS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, BlindError)


class SightTrial:
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
        blindness: str,
    ) -> None:
        """Run `example` through the model's own forward.

        Args:
            module: The model.
            step: The step object of its layers.
            bridge: Its attention.
            recurrent: Its recurrent layers.
            idle: Submodels that do not run for text.
            example: An image and its tokens; None if images are not to be served.
            blindness: Why not, although models of this type support them.
        """
        self._module = module
        self._idle = set(idle)
        self._sight: Sight | None = None
        self.blindness = blindness
        if example is None:
            return
        try:
            self._sight = sight = Sight(module)
            self._attend_apart()
            seeing = self._called_by(sight, example)
            self._check = _check(module, step, bridge, recurrent, sight, example)
            end = _BEFORE + len(example.tokens)
            self._around_image = [(0, end + 1), (end + 1, end + 2), (end + 2, end + _BEHIND)]
            self._attend_apart()
        except torch.OutOfMemoryError:
            raise
        except _UNKNOWN_WAYS as error:
            self._go_blind(f"{type(error).__name__}: {error}")
            return
        self._idle -= seeing

    @property
    def idle(self) -> Collection[str]:
        """Submodels that are not needed."""
        return self._idle

    def sight(self, stack: DecoderStack | None, editor: Editor) -> Sight | None:
        """Return the image encoder if served results are the same; else None, and set `blindness`.

        Args:
            stack: The fused layers, if any.
            editor: Inserts embeddings into a step.
        """
        if self._sight is None:
            return None
        try:
            difference = self._check.difference(stack, editor)
            if not difference <= self._check.tolerance:
                self._sight.is_whole = True
                self._check.cut_anew(self._around_image)
                difference = self._check.difference(stack, editor)
        except torch.OutOfMemoryError:
            raise
        except _UNKNOWN_WAYS as error:
            self._go_blind(f"{type(error).__name__}: {error}")
            return None
        if not difference <= self._check.tolerance:  # so that NaN is refused
            self._go_blind(
                "with an image it computes different results when served than in its own forward "
                f"pass: logits differ by {difference:.2g} of their spread"
            )
        return self._sight

    def _attend_apart(self) -> None:
        """Let vision modules use their own attention: they need no KV cache."""
        for name in self._idle:
            part = self._module.get_submodule(name)
            assert isinstance(part, PreTrainedModel)
            part.set_attn_implementation("sdpa")

    def _go_blind(self, why: str) -> None:
        self._sight = None
        self.blindness = f"{type(self._module).__name__} cannot be served with images: {why}"

    def _called_by(self, sight: Sight, example: PreparedImage) -> set[str]:
        """Return the idle submodels that encoding `example` needs."""
        parts = {name: set(self._module.get_submodule(name).modules()) for name in self._idle}
        called: set[nn.Module] = set()
        hooks = [
            part.register_forward_pre_hook(lambda part, _: called.add(part))
            for part in set().union(*parts.values())
        ]
        try:
            sight.look(example.image, example.tokens)
        finally:
            for hook in hooks:
                hook.remove()
        return {name for name, inside in parts.items() if not called.isdisjoint(inside)}


def _check(
    module: PreTrainedModel,
    step: Step,
    bridge: AttentionBridge,
    recurrent: Recurrent,
    sight: Sight,
    example: PreparedImage,
) -> SelfCheck:
    """Return a check of a text that contains `example`."""
    text = ordinary_tokens(module, _BEFORE + _BEHIND).tolist()
    tokens = [*text[:_BEFORE], *example.tokens, *text[_BEFORE:]]
    length = len(example.tokens)

    def look() -> View:
        seen = sight.look(example.image, example.tokens)
        return View.of(len(tokens), [(_BEFORE, length, seen)])

    token_T = torch.tensor(tokens, device=module.device)
    own = sight.arguments(example.image, tokens)
    return SelfCheck(module, step, bridge, recurrent, [sample_of_image(token_T, own, look)])
