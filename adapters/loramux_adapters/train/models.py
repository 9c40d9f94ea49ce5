"""Loading the model to train: transformers' class for the task, with the weights of the base."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.head import Task
from loramux_adapters.head_contents import HEAD_NAMES
from loramux_adapters.labels import ProblemType
from loramux_adapters.train.methods import ModelTraits
from loramux_adapters.train.rows import Row
from loramux_adapters.train.tasks import task_type
from loramux_adapters.train.text_models import is_encoder, is_encoder_decoder

_CLASSES: Mapping[Task, tuple[Any, Any]] = {
    Task.SEQUENCE: (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    Task.TOKENS: (AutoModelForTokenClassification, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING),
    Task.SPANS: (AutoModelForQuestionAnswering, MODEL_FOR_QUESTION_ANSWERING_MAPPING),
}
_POOLER = "pooler"
"""The module of a base model that only heads read."""
_TRAINABLE = ("bitsandbytes", "torchao", "mxfp4")
"""Quantization methods of a checkpoint on which transformers and PEFT can train."""
_UNBOUNDED = 4096
"""Maximum tokens of a text for a model without position limit; the same as in the server."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model and what PEFT has to know about it."""

    model: PreTrainedModel
    traits: ModelTraits

    @property
    def room(self) -> int:
        """Maximum number of tokens of a text."""
        for name, module in self.model.named_modules():
            # RoBERTa's positions begin after the padding index.
            padding = getattr(module, "padding_idx", None)
            if name.endswith("position_embeddings") and padding is not None:
                return int(module.num_embeddings - padding - 1)
        return int(getattr(self.model.config, "max_position_embeddings", None) or _UNBOUNDED)

    def padding(
        self, tokenizer: PreTrainedTokenizerBase, task: Task | None, rows: Sequence[Row]
    ) -> int:
        """Return the padding token; for a classifying decoder, also set it in the model's config.

        There it must not be the last token of any of `rows`: transformers reads the last token
        that is not padding.
        """
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        if task is not Task.SEQUENCE or is_encoder(self.model.config):
            return next(int(token) for token in known if token is not None)
        last = {row["input_ids"][-1] for row in rows if isinstance(row["input_ids"], list)}
        size = self.model.get_input_embeddings().weight.shape[0]
        pad = next(int(each) for each in (*known, *range(size)) if each not in (None, *last))
        self.model.config.get_text_config().pad_token_id = pad
        return pad

    def uses_token_types(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Return whether the model gets token type ids for pairs of texts."""
        return (
            is_encoder(self.model.config)
            and "token_type_ids" in tokenizer.model_input_names
            and getattr(self.model.config, "type_vocab_size", 0) > 1
            and "token_type_ids" in inspect.signature(self.model.forward).parameters
        )


def load_model(
    base: Path,
    config: PreTrainedConfig,
    task: Task | None,
    num_labels: int,
    problem: ProblemType = ProblemType.SINGLE_LABEL,
) -> LoadedModel:
    """Load the model in the folder `base` in float32, with a head if there is a task.

    Weights that the checkpoint lacks are random, and become part of the head.

    Raises:
        PackageError: There is no such head, or an unsupported one; or the checkpoint is quantized
            in a way that cannot be trained on.
    """
    _check_trainable(config)
    options = {"dtype": torch.float32, "local_files_only": True}
    if task is None:
        kind = AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM
        return _loaded(kind.from_pretrained(base, **options), task)
    kind, known = _CLASSES[task]
    if type(config) not in known:
        raise _mismatch(f"transformers has no class of {config.model_type} with a head for {task}")
    outputs = {
        "num_labels": 2 if task is Task.SPANS else num_labels,
        "problem_type": str(problem),
    }
    model, info = kind.from_pretrained(
        base, **options, **outputs, ignore_mismatched_sizes=True, output_loading_info=True
    )
    lost = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    inner = f"{_inner(model)}."
    if all(f"{inner}{name}" in lost for name, _ in model.base_model.named_parameters()):
        # The class names its layers differently, as Llama's for question answering does.
        bare, info = AutoModel.from_pretrained(base, **options, output_loading_info=True)
        model.base_model.load_state_dict(bare.state_dict())
        lost = {name for name in lost if not name.startswith(inner)}
        lost |= {f"{inner}{name}" for name in info["missing_keys"]}
    for name in sorted(lost):
        if name.startswith(inner) and not name.startswith(f"{inner}{_POOLER}."):
            raise PackageError(
                f"the base lacks the weight {name.removeprefix(inner)} of "
                f"{type(model.base_model).__name__}",
                "ADAPTER_BASE_MISMATCH",
            )
    return _loaded(model, task, lost)


def _check_trainable(config: PreTrainedConfig) -> None:
    saved = getattr(config, "quantization_config", None) or {}
    method = str(saved.get("quant_method", _TRAINABLE[0]))
    if method not in _TRAINABLE:
        raise _mismatch(
            f"the base was saved with quant_method {method!r}, which does not support training: "
            "train on the unquantized model; the adapter fits both"
        )


def _loaded(model: PreTrainedModel, task: Task | None, lost: Collection[str] = ()) -> LoadedModel:
    traits = ModelTraits(
        task_type=task_type(task, model.config),
        saved=_saved(model, task, lost) if task else (),
        post_layers=tuple(_post_layers(model)) if task else (),
        prompt_sizes=_sizes(model.config, model.get_input_embeddings().weight.shape[1]),
        prefix_sizes=_sizes(model.config, 0),
    )
    return LoadedModel(model, traits)


def _inner(model: PreTrainedModel) -> str:
    """Return the attribute name of the base model in a class for a task."""
    return str(next(name for name, child in model.named_children() if child is model.base_model))


def _saved(model: PreTrainedModel, task: Task, lost: Collection[str]) -> tuple[str, ...]:
    """Return the modules that are trained in full: PEFT's head modules, and the `lost` ones.

    Raises:
        PackageError: The head is not supported.
    """
    names = HEAD_NAMES[task]
    inner = _inner(model)
    outer = {name: child for name, child in model.named_children() if name != inner}
    saved = [name for name in outer if name.endswith(names)]
    if not saved:
        has = ", ".join(name for name, child in outer.items() if list(child.parameters()))
        raise _mismatch(
            f"the head of {type(model).__name__} is {has or 'none'}, which is not supported; "
            f"expected {' or '.join(names)}"
        )
    for name in sorted(lost):
        if not any(name.startswith(f"{module}.") for module in saved):
            saved.append(_largest(model, name, lost))
    if not is_encoder(model.config):
        for name in saved:
            if name not in names or not isinstance(model.get_submodule(name), nn.Linear):
                raise _mismatch(
                    f"{name} of {type(model).__name__} is not a linear layer, as the head of a "
                    "decoder must be"
                )
    return tuple(saved)


def _largest(model: PreTrainedModel, parameter: str, lost: Collection[str]) -> str:
    """Return the largest module around `parameter` whose parameters are all `lost`."""
    parts = parameter.split(".")
    for end in range(1, len(parts)):
        name = ".".join(parts[:end])
        own = [each for each, _ in model.get_submodule(name).named_parameters()]
        if all(f"{name}.{each}" in lost for each in own):
            return name
    raise _mismatch(f"the base lacks {shown(parameter)} of {type(model).__name__}")


def _post_layers(model: PreTrainedModel) -> Iterator[str]:
    """Yield the linear layers after the layers of the base model."""
    inner = f"{_inner(model)}."
    for name, module in model.named_modules():
        is_outer = not name.startswith(inner) or name.split(".")[1] == _POOLER
        if isinstance(module, nn.Linear) and is_outer:
            yield name


def _sizes(config: PreTrainedConfig, width: int) -> dict[str, int]:
    """Return PEFT's size fields for virtual tokens; `width` is that of embeddings, or 0.

    For decoders PEFT infers them.
    """
    writes = is_encoder_decoder(config)
    heads = getattr(config, "num_attention_heads", 0)
    if not heads or not (writes or is_encoder(config)):
        return {}
    layers = config.num_hidden_layers
    if writes:
        heads = getattr(config, "decoder_attention_heads", heads)
        layers = getattr(config, "decoder_layers", getattr(config, "num_decoder_layers", layers))
    each = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    whole = heads * each if each else config.hidden_size
    return {"token_dim": width or whole, "num_layers": layers, "num_attention_heads": heads}


def _mismatch(message: str) -> PackageError:
    return PackageError(message, "ADAPTER_BASE_MISMATCH")
