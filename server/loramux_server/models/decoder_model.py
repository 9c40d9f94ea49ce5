"""Decoder models, prepared to serve adapters.

Any decoder works whose attention goes through transformers' attention interface. Its structure is
found by running it once: which layers share an input, and what each caches per token.
"""

import inspect
import math
from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

from loramux_server.images.messages import PreparedImage
from loramux_server.models.attention import AttentionBridge
from loramux_server.models.base_model import BaseModel, eos_token_ids_of, materialize_weights
from loramux_server.models.context_length import context_length
from loramux_server.models.decoder_stack import DecoderStack, find_layers
from loramux_server.models.editor import Editor
from loramux_server.models.experts import find_experts
from loramux_server.models.fingerprint import fingerprint
from loramux_server.models.fused import fuse
from loramux_server.models.input_embedding import InputEmbedding
from loramux_server.models.packed_linear import OutputLayer
from loramux_server.models.packing import pack, probe
from loramux_server.models.replaceable import find_replaceable
from loramux_server.models.self_check import SelfCheck
from loramux_server.models.servable import (
    UNKNOWN_WAYS,
    UnservableModelError,
    check_difference,
    refused,
)
from loramux_server.models.step import Step
from loramux_server.models.text_format import WITHOUT_TEXT, TextFormat
from loramux_server.models.vision.trial import VisionTrial


def prepare(
    module: PreTrainedModel,
    *,
    name: str = "",
    text: TextFormat = WITHOUT_TEXT,
    example: PreparedImage | None = None,
    no_vision_reason: str = "",
) -> BaseModel:
    """Put our attention and packed layers into `module`, which is changed in place.

    Args:
        module: The model.
        name: Its name.
        text: Its tokenizer and chat template.
        example: An image to test image support with; None to serve text only.
        no_vision_reason: Why images are not served although models of this type support them.

    Raises:
        UnservableModelError: This type of model is not supported.
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
        trial = VisionTrial(
            module, step, bridge, recurrent,
            idle=probed.idle, example=example, no_vision_reason=no_vision_reason,
        )  # fmt: skip
    replaceable = find_replaceable(module, probed)
    try:
        groups, places = pack(module, probed.calls, step)
    except ValueError as error:
        raise UnservableModelError(str(error)) from None
    recurrent.serve(module, step)
    _let_go(module, trial.idle)
    materialize_weights(module)
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
    vision = trial.encoder(stack, editor)
    if vision is None:
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
        vision=vision,
        no_vision_reason=trial.no_vision_reason,
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
    """Check that it is known what each of `count` layers keeps per token.

    If some layers are recurrent, others may keep nothing.

    Raises:
        UnservableModelError: It is not known.
    """
    if not recurrent and attending != set(range(count)):
        raise UnservableModelError(
            f"{type(module).__name__}: only layers {sorted(attending)} of {count} use "
            "transformers' attention interface, and the others keep no state in its cache; models "
            "with shared caches or custom attention are not supported"
        )


def _check_arguments(module: PreTrainedModel, *, attends: bool) -> None:
    """Check that `module` takes the arguments of a step; many models silently accept unknown ones.

    Positions are required only if it has attention.

    Raises:
        UnservableModelError: It lacks an argument.
    """
    known = inspect.signature(module.forward).parameters
    for name in ("position_ids", "logits_to_keep"):
        if name not in known and (attends or name != "position_ids"):
            raise UnservableModelError(f"{type(module).__name__}.forward does not take {name}")


def _let_go(module: PreTrainedModel, names: Collection[str]) -> None:
    """Free the weights of submodels that are not needed, such as vision towers."""
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


def _checked_stack(
    layers: nn.ModuleList | None, step: Step, bridge: AttentionBridge, check: SelfCheck
) -> tuple[DecoderStack | None, float]:
    """Fuse all `layers` into one, if that is possible and makes no difference.

    Returns:
        The fused layers, or None; and how far the logits are from the model's own.
    """
    try:
        stack = None if layers is None else DecoderStack(layers, step, bridge)
    except ValueError:
        stack = None
    if stack is None:
        return None, math.inf
    try:
        difference = check.difference(stack)
    except UNKNOWN_WAYS:  # the layers are called differently
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
