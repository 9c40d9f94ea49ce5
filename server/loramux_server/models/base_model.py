"""A base model that is made ready to serve adapters.

Any decoder will do whose attention goes through transformers' attention interface. What the model
looks like is found by running it once: which layers share an input, and what each keeps of a token.
"""

import inspect
import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.engine.model_kind import ModelKind
from loramux_server.engine.writing import Writing
from loramux_server.images.messages import PreparedImage
from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.shard import WHOLE, Shard
from loramux_server.models.attention import AttentionBridge, CacheShape
from loramux_server.models.context_length import context_length
from loramux_server.models.decoder_stack import DecoderStack, find_layers
from loramux_server.models.editor import Editor
from loramux_server.models.experts import ServedExperts, find_experts
from loramux_server.models.fingerprint import fingerprint
from loramux_server.models.fused import fuse
from loramux_server.models.heads import Heads
from loramux_server.models.input_embedding import InputEmbedding
from loramux_server.models.packed_linear import OutputLayer, PackedLinear
from loramux_server.models.packing import pack, probe
from loramux_server.models.recurrent import Recurrent
from loramux_server.models.replaceable import Replaceable, find_replaceable
from loramux_server.models.self_check import SelfCheck
from loramux_server.models.servable import (
    UNKNOWN_WAYS,
    Check,
    UnservableModelError,
    check_difference,
    refused,
)
from loramux_server.models.sight import Sight
from loramux_server.models.sight_trial import SightTrial
from loramux_server.models.step import Step
from loramux_server.models.text_format import WITHOUT_TEXT, TextFormat
from loramux_server.models.whole_texts import WholeTexts


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model whose linear layers are packed and whose attention is ours."""

    module: PreTrainedModel
    step: Step
    attention: AttentionBridge
    recurrent: Recurrent
    """The layers that know of tokens by states; none in most models."""
    groups: list[PackedLinear]
    embedding: InputEmbedding
    output: OutputLayer | None
    """None where no logits are made."""
    editor: Editor
    """Does what adapters do to other modules than those."""
    stack: DecoderStack | None
    """All layers in one; None where they are made of parts that it does not know."""
    check: Check
    sight: Sight | None
    """What sees images; None where they are not served."""
    blindness: str
    """Why they are not, where the model's kind sees; else empty."""
    places: dict[str, LayerPlace]
    """Name of each layer that adapters can change -> where it is among the groups."""
    experts: dict[str, ServedExperts]
    """Each layer's experts that adapters can change, by name."""
    replaceable: Replaceable
    """What adapters can do beside that."""
    name: str
    architecture: str
    fingerprint: str
    dtype: torch.dtype
    device: torch.device
    context_length: int
    vocab_size: int
    num_parameters: int
    eos_token_ids: list[int]
    text: TextFormat
    kind: ModelKind = ModelKind.DECODER
    writing: Writing | None = None
    """What it says of the texts that it writes; None where it goes on with what it reads."""
    whole_texts: WholeTexts | None = None
    """What takes a step in place of `module`, where that reads one text at a time."""
    takes_token_types: bool = False
    """Whether it is told which tokens are of the second of two texts."""
    source_length: int = 0
    """Tokens of the context that are for what an encoder reads, where a decoder writes the rest."""
    own_cache_shapes: list[CacheShape] = field(default_factory=list)
    """What is kept of a token beside blocks."""
    prefix_shapes: list[CacheShape] = field(default_factory=list)
    """What adapters may bring of a token before texts, where that is something else."""
    heads: Heads | None = None
    """What adapters for tasks have behind its layers; None where that is a linear layer."""
    shard: Shard = WHOLE
    """Which part of its layers this process holds."""

    @property
    def runs(self) -> nn.Module:
        """What takes a step."""
        return self.whole_texts or self.module

    @property
    def embedding_width(self) -> int:
        """Numbers of an embedding."""
        return self.replaceable.width[0]

    @property
    def cache_shapes(self) -> list[CacheShape]:
        """What each layer keeps of a token."""
        return self.own_cache_shapes or list(self.attention.shapes.values())


def prepare(
    module: PreTrainedModel,
    *,
    name: str = "",
    text: TextFormat = WITHOUT_TEXT,
    example: PreparedImage | None = None,
    blindness: str = "",
) -> BaseModel:
    """Put our attention and packed layers into `module`, which is changed in place.

    Args:
        module: The model.
        name: What it is called.
        text: How it takes text.
        example: An image with which is tried whether it sees; None where it is not to.
        blindness: Why it is not, where its kind sees.

    Raises:
        UnservableModelError: The model is of a kind that is not served.
    """
    module.eval().requires_grad_(False)
    num_parameters = module.num_parameters()
    digest = fingerprint(module, text.tokenizer_json)
    config = module.config.get_text_config()
    step = Step(module.device)
    bridge = AttentionBridge(step)
    with refused(module):
        probed = probe(module, bridge)
    recurrent = probed.recurrent
    _check_layers(module, config.num_hidden_layers, set(bridge.shapes), recurrent.numbers)
    _check_arguments(module, attends=bool(bridge.shapes))
    with refused(module):
        check = SelfCheck(module, step, bridge, recurrent)
        trial = SightTrial(
            module, step, bridge, recurrent,
            idle=probed.idle, example=example, blindness=blindness,
        )  # fmt: skip
    replaceable = find_replaceable(module, probed)
    try:
        groups, places = pack(module, probed.calls, step)
    except ValueError as error:
        raise UnservableModelError(str(error)) from None
    recurrent.serve(module, step)
    _let_go(module, trial.idle)
    own(module)
    experts = find_experts(module, step)
    vocabulary = replaceable.vocabulary
    embedding = InputEmbedding(
        module.get_input_embeddings(), is_tied=vocabulary.is_tied and bool(vocabulary.embedding)
    )
    output = _replace_output(module)
    fuse(module, step, probed.called)
    modules = dict(module.named_modules())
    layers = find_layers(module, bridge)
    editor = Editor(
        modules, output, replaceable.axes, module.get_input_embeddings(), list(layers or ())
    )
    stack, difference = _checked_stack(layers, step, bridge, check)
    if stack is None:
        with refused(module):
            difference = check.difference(None)
    check_difference(module, difference, check)
    sight = trial.sight(stack, editor)
    if sight is None:
        _let_go(module, probed.idle)
    windows = {layer: form.window for layer, form in bridge.forms.items()}
    return BaseModel(
        module=module,
        step=step,
        attention=bridge,
        recurrent=recurrent,
        groups=groups,
        embedding=embedding,
        output=output,
        editor=editor,
        stack=stack,
        check=check,
        sight=sight,
        blindness=trial.blindness,
        places=places,
        experts=experts,
        name=name,
        architecture=type(module).__name__,
        fingerprint=digest,
        dtype=module.dtype,
        device=module.device,
        context_length=context_length(config, windows),
        vocab_size=probed.vocab_size,
        num_parameters=num_parameters,
        replaceable=replaceable,
        eos_token_ids=eos_token_ids_of(module, probed.vocab_size),
        text=text,
    )


def _check_layers(
    module: PreTrainedModel, count: int, attending: set[int], recurrent: set[int]
) -> None:
    """Demand that it is known what each of `count` layers keeps of tokens.

    Where some are recurrent, others may keep nothing.
    """
    if not recurrent and attending != set(range(count)):
        raise UnservableModelError(
            f"{type(module).__name__}: only layers {sorted(attending)} of {count} use "
            "transformers' attention interface, and the others bring no state to its cache; models "
            "with shared caches or attention of their own are not served"
        )


def _check_arguments(module: PreTrainedModel, *, attends: bool) -> None:
    """Demand that `module` takes what each step tells it; many models swallow other names.

    Positions are for attention alone.
    """
    known = inspect.signature(module.forward).parameters
    for name in ("position_ids", "logits_to_keep"):
        if name not in known and (attends or name != "position_ids"):
            raise UnservableModelError(f"{type(module).__name__}.forward takes no {name}")


def _let_go(module: PreTrainedModel, names: Collection[str]) -> None:
    """Let go of the weights of parts that no text needs, such as those that see images."""
    idle = [module.get_submodule(name) for name in names]
    inside = {id(part) for each in idle for part in each.modules()}
    used = {
        id(parameter)
        for part in module.modules()
        if id(part) not in inside
        for parameter in part.parameters(recurse=False)
    }
    for each in idle:
        for parameter in each.parameters():
            if id(parameter) not in used and type(parameter) is nn.Parameter:
                parameter.data = parameter.data.new_empty(0)


def own(module: PreTrainedModel) -> None:
    """Copy what is left of the weights, so that nothing holds the mapped file any longer."""
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter:  # others lie where their library has put them
            parameter.data = parameter.data.clone()


def _checked_stack(
    layers: nn.ModuleList | None, step: Step, bridge: AttentionBridge, check: SelfCheck
) -> tuple[DecoderStack | None, float]:
    """Do all `layers` as one, if they let themselves be done so and that makes no difference.

    Returns:
        What does them, or None, and how far the logits are from the model's own.
    """
    try:
        stack = None if layers is None else DecoderStack(layers, step, bridge)
    except ValueError:
        stack = None
    if stack is None:
        return None, math.inf
    try:
        difference = check.difference(stack)
    except UNKNOWN_WAYS:  # the layers are called in another way
        difference = math.inf
    if difference <= check.tolerance:
        return stack, difference
    stack.restore()
    return None, difference


def _replace_output(module: PreTrainedModel) -> OutputLayer:
    layer = module.get_output_embeddings()
    name = next(name for name, found in module.named_modules() if found is layer)
    output = OutputLayer(layer)
    module.set_submodule(name, output)
    return output


def eos_token_ids_of(module: PreTrainedModel, vocab_size: int) -> list[int]:
    """Return the tokens with which `module` ends a text, of those that it has."""
    found: set[int] = set()
    for config in (module.generation_config, module.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return sorted(token for token in found if 0 <= token < vocab_size)
