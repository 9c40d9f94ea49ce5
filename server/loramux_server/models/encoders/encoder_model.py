"""Base models that read whole texts, prepared to serve adapters."""

import inspect
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.kernels.encoder_text import Seq2SeqState
from loramux_server.lora.virtual import Virtual
from loramux_server.models.attention import AttentionBridge, CacheShape
from loramux_server.models.base_model import BaseModel, eos_token_ids_of, materialize_weights
from loramux_server.models.encoders.encoder_check import EncoderCheck, Sample
from loramux_server.models.encoders.encoder_probe import EncoderProbe, probe_encoder, tokens_of
from loramux_server.models.encoders.encoder_runner import Encoder, EncoderRunner, Reader
from loramux_server.models.encoders.joint_attention import JointAttention
from loramux_server.models.encoders.joint_layers import join_layers, part_layers
from loramux_server.models.encoders.seq2seq import SOURCE, WRITTEN, Seq2Seq
from loramux_server.models.encoders.text_editor import TextEditor
from loramux_server.models.encoders.writing import writing_of
from loramux_server.models.fingerprint import fingerprint
from loramux_server.models.input_embedding import InputEmbedding
from loramux_server.models.packed_linear import OutputLayer, PackedPart
from loramux_server.models.packing import pack
from loramux_server.models.part_scheduler import PartScheduler
from loramux_server.models.quantized import is_linear
from loramux_server.models.recurrent.recurrent import Recurrent
from loramux_server.models.replaceable import Replaceable, layer_shapes
from loramux_server.models.servable import (
    UNKNOWN_WAYS,
    Check,
    UnservableModelError,
    check_difference,
    refused,
)
from loramux_server.models.step import Step
from loramux_server.models.synced_layers import SyncedLinear, SyncedOutput
from loramux_server.models.text_format import WITHOUT_TEXT, TextFormat
from loramux_server.wire.model_kind import ModelKind

_READ, _WRITTEN = (7, 12), (5, 4)
"""Lengths of two sample texts, and of the texts written for them."""
_UNBOUNDED = 4096
"""Longest text that is served if the model has no limit of positions."""
_SCORES_BYTES = 1 << 30
"""Limit of one layer's attention scores, tokens by tokens by heads, in float32; a step takes about
five times as much memory."""


def prepare_encoder(
    module: PreTrainedModel, kind: ModelKind, *, name: str = "", text: TextFormat = WITHOUT_TEXT
) -> BaseModel:
    """Put packed layers into `module`, which has an encoder and is changed in place.

    Args:
        module: The model; an encoder without decoder has no head.
        kind: Encoder or encoder-decoder.
        name: Its name.
        text: Its tokenizer and chat template.

    Raises:
        UnservableModelError: This type of model is not supported.
    """
    module.eval().requires_grad_(False)
    num_parameters = module.num_parameters()
    digest = fingerprint(module, text.tokenizer_json)
    step = Step(module.device)
    scheduler = PartScheduler(step)
    writes = kind is ModelKind.SEQ2SEQ
    output_layer = module.get_output_embeddings()
    if writes and not is_linear(output_layer):
        raise UnservableModelError(
            f"{type(module).__name__} computes logits with {type(output_layer).__name__}; expected "
            "a linear layer"
        )
    takes_token_types = not writes and _takes_token_types(module, text)
    reader: Reader = (
        Seq2Seq(module) if writes else Encoder(module, takes_token_types=takes_token_types)
    )
    embedding = module.get_input_embeddings()
    samples = _samples(embedding.weight.shape[0], module.device, writes=writes)
    with refused(module):
        check = EncoderCheck(reader, samples, step, module.dtype)
        probed = probe_encoder(
            module,
            [
                (partial(reader.alone, each.token_L[None], each.text()), each.lengths)
                for each in samples
            ],
        )
        shapes = _cache_shapes(reader, samples[0]) if writes else []
    prefixes = shapes or _head_shapes(module.config.get_text_config())
    if not _takes_prefix(reader, samples[0], prefixes, module):
        prefixes = []
    names = [name for name, _ in probed.calls]
    width = embedding.weight.shape[1] if writes else check.width
    replaceable = _replaceable(module, probed, width, takes_tokens=not writes)
    try:
        groups, places = pack(module, probed.calls, step)
    except ValueError as error:
        raise UnservableModelError(str(error)) from None
    for name_of_part in names:
        part = module.get_submodule(name_of_part)
        assert isinstance(part, PackedPart)
        waiting = SyncedLinear(part, scheduler, probed.sides.get(name_of_part, SOURCE))
        module.set_submodule(name_of_part, waiting)
    scheduler.has_other_rows = not probed.other_rows.isdisjoint(names)
    output = _replace_output(module, scheduler) if writes else None
    materialize_weights(module)
    modules = dict(module.named_modules())
    check.serves = serves = EncoderRunner(module, reader, scheduler, step)
    with refused(module):
        difference = check.difference()
    check_difference(module, difference, check)
    if writes:
        _join(module, scheduler, shapes, step, check)
    elif module.device.type == "cuda" and serves.is_given_tokens:
        enable_padding(serves, check)
    config = module.config.get_text_config()
    lengths = [
        _length(probed, side, config) for side in ((SOURCE, WRITTEN) if writes else (SOURCE,))
    ]
    vocab_size = check.width if writes else embedding.weight.shape[0]
    eos_token_ids = eos_token_ids_of(module, vocab_size) if writes else []
    return BaseModel(
        module=module,
        encoder_runner=serves,
        step=step,
        attention=AttentionBridge(step),
        recurrent=Recurrent(),
        groups=groups,
        embedding=InputEmbedding(embedding, is_tied=False),
        output=output,
        editor=TextEditor(
            modules,
            scheduler,
            module.get_encoder().get_input_embeddings() if writes else embedding,
        ),
        stack=None,
        check=check,
        vision=None,
        no_vision_reason="",
        places=places,
        experts={},
        name=name,
        architecture=type(module).__name__,
        fingerprint=digest,
        dtype=module.dtype,
        device=module.device,
        context_length=sum(lengths),
        source_length=lengths[0] if writes else 0,
        vocab_size=vocab_size,
        num_parameters=num_parameters,
        replaceable=replaceable,
        eos_token_ids=eos_token_ids,
        text=text,
        kind=kind,
        writing=writing_of(module, vocab_size, eos_token_ids) if writes else None,
        takes_token_types=takes_token_types,
        own_cache_shapes=shapes,
        prefix_shapes=prefixes,
    )


def _join(
    module: PreTrainedModel,
    scheduler: PartScheduler,
    shapes: Sequence[CacheShape],
    step: Step,
    check: EncoderCheck,
) -> None:
    """Let decoder layers of `module` run several requests together, if results stay the same."""
    try:
        attention = JointAttention(module, shapes, step)
    except KeyError:
        return
    decoder = module.get_decoder()
    try:
        join_layers(decoder, attention, scheduler, len(shapes), WRITTEN)
        difference = check.difference()
    except (*UNKNOWN_WAYS, StopIteration):
        difference = math.inf
    if not difference <= check.tolerance:
        part_layers(decoder)
        attention.remove()


def enable_padding(serves: EncoderRunner, check: Check) -> None:
    """Let texts be read side by side, if results stay the same."""
    serves.pads_texts = True
    try:
        difference = check.difference(None)
    except UNKNOWN_WAYS:
        difference = math.inf
    serves.pads_texts = difference <= check.tolerance


def _takes_token_types(module: PreTrainedModel, text: TextFormat) -> bool:
    """Return whether `module` takes token type ids for the second text of a pair."""
    known = inspect.signature(module.forward).parameters
    count = getattr(module.config, "type_vocab_size", 0)
    return text.has_token_types and count > 1 and "token_type_ids" in known


def _replaceable(
    module: PreTrainedModel, probed: EncoderProbe, width: int, *, takes_tokens: bool
) -> Replaceable:
    """Return what adapters can replace in `module`, whose hidden states are `width` wide.

    Args:
        module: The model.
        probed: What its run has shown.
        width: Width of its hidden states.
        takes_tokens: Whether embeddings can be replaced, too.
    """
    shapes, transposed = layer_shapes(module, (name for name, _ in probed.calls))
    embedding, vocabulary = module.get_input_embeddings(), BaseVocabulary()
    for name in probed.plain:
        part = module.get_submodule(name)
        if isinstance(part, nn.Embedding) and not takes_tokens:
            continue
        for parameter, value in part.named_parameters(recurse=False):
            shapes[f"{name}.{parameter}"] = tuple(value.shape)
        if part is embedding:
            vocabulary = BaseVocabulary(embedding=name, num_embeddings=part.num_embeddings)
    return Replaceable(shapes, transposed, {}, vocabulary, (embedding.weight.shape[1], width))


def _samples(vocab_size: int, device: torch.device, *, writes: bool) -> list[Sample]:
    """Return two texts; written tokens come in three batches."""
    samples = []
    for seed, (length, written) in enumerate(zip(_READ, _WRITTEN, strict=True)):
        token_L = tokens_of(length + (written if writes else 0), vocab_size, seed).to(device)
        if writes:
            # In the second batch one token of each, at different positions.
            cuts = (length + 1 + seed, length + 2 + seed)
            samples.append(Sample(token_L, num_source=length, cuts=cuts))
        else:
            samples.append(Sample(token_L, second_from=length // 2))
    return samples


def _cache_shapes(reader: Reader, sample: Sample) -> list[CacheShape]:
    """Return what each decoder layer caches per token."""
    state = Seq2SeqState()
    with torch.inference_mode():
        reader.read(sample.token_L[None], sample.text(state=state))
    return [
        CacheShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])
        for layer in state.cache.self_attention_cache.layers
    ]


def _head_shapes(config: PreTrainedConfig) -> list[CacheShape]:
    """Return the key and value shapes of each layer of an encoder, from its config."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = CacheShape(config.num_attention_heads, width, width)
    return [shape] * config.num_hidden_layers


def _takes_prefix(
    reader: Reader, sample: Sample, shapes: Sequence[CacheShape], module: PreTrainedModel
) -> bool:
    """Return whether the model attends to prefix keys and values of `shapes`."""
    generator = torch.Generator().manual_seed(0)

    def random(width: str) -> dict[int, torch.Tensor]:
        return {
            layer: torch.randn(3, shape.num_heads, getattr(shape, width), generator=generator)
            for layer, shape in enumerate(shapes)
        }

    virtual = Virtual(keys=random("key_width"), values=random("value_width"))
    token_1L = sample.token_L[None]
    try:
        with torch.inference_mode():
            plain = reader.read(token_1L, sample.text())
            other = reader.read(token_1L, sample.text(virtual=virtual))
    except UNKNOWN_WAYS:
        return False
    return other.shape == plain.shape and not torch.allclose(other, plain, atol=1e-3)


def _replace_output(module: PreTrainedModel, scheduler: PartScheduler) -> OutputLayer:
    layer = module.get_output_embeddings()
    name = next(name for name, found in module.named_modules() if found is layer)
    output = OutputLayer(layer)
    module.set_submodule(name, SyncedOutput(output, scheduler, WRITTEN))
    return output


def _length(probed: EncoderProbe, side: int, config: PreTrainedConfig) -> int:
    """Return the longest text that a side supports."""
    limit = getattr(config, "max_position_embeddings", None)
    if not limit:
        limit = min(_UNBOUNDED, math.isqrt(_SCORES_BYTES // (4 * config.num_attention_heads)))
    return int(probed.num_positions.get(side, limit))
