"""Task heads on encoders, evaluated by transformers' own classes.

There is no list of models. transformers has a class for each task. What it has besides its base
model, and what the base model has after its layers, is the head, and the class's own forward
evaluates it.

Legend: T tokens, K width of a hidden state, L labels.
"""

from collections.abc import Mapping
from typing import Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loramux_adapters.head import FEATURES, LABELS, HeadShape, Task
from loramux_server.models.pooler import Pooler, find_pooler
from loramux_server.models.saved_weights import SavedWeights
from loramux_server.models.servable import UNKNOWN_WAYS
from loramux_server.models.task_head import TaskHead

_NUM_TOKENS = 7
_NUM_LABELS = 3
_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
_ROUNDED = 3e-2
"""Tolerance of 16-bit dtypes, relative to the largest logit."""


class Heads:
    """The heads of a base model, by task; used on one thread."""

    def __init__(
        self,
        heads: Mapping[Task, TaskHead],
        known: Mapping[Task, Mapping[str, torch.Tensor]],
        shapes: Mapping[str, HeadShape],
        post_layers: frozenset[str],
    ) -> None:
        self._heads = heads
        self._known = known
        self.shapes = shapes
        """The head parameters that adapters may bring, by task; see `ModelInfo.heads`."""
        self.post_layers = post_layers
        """Names of the base model's modules after its layers, whose results only heads read."""

    @classmethod
    def of(cls, module: PreTrainedModel, config: PreTrainedConfig, path: str = "") -> Self:
        """Return the heads of a base model. Each is tested with random weights.

        Args:
            module: The base model, as it was loaded.
            config: Its config.
            path: The folder or hub id that it was loaded from; if empty, the module's own weights
                count as saved.

        Raises:
            OSError: The weights cannot be read.
        """
        saved = SavedWeights(path) if path else None
        token_1T = _text(config, module.device)
        pooler, fault = Pooler(), ""
        with torch.inference_mode():
            try:
                pooler = find_pooler(module, token_1T)
            except torch.OutOfMemoryError:
                raise
            except UNKNOWN_WAYS as error:
                fault = _describe_error(error)
            heads: dict[Task, TaskHead] = {}
            known: dict[Task, dict[str, torch.Tensor]] = {}
            shapes: dict[str, HeadShape] = {}
            for task in Task:
                try:
                    head = TaskHead(module, config, task)
                    with head.lending(module) as lends:
                        head.take_place(find_pooler(module, token_1T) if lends else pooler)
                        given, hidden_TK = _tried(head, module, token_1T)
                        idle = _idle(head, given, hidden_TK)
                except torch.OutOfMemoryError:
                    raise
                except UNKNOWN_WAYS as error:
                    shapes[task] = HeadShape(
                        type(module).__name__, fault=_describe_error(error, fault)
                    )
                    continue
                heads[task] = head
                known[task] = {**idle, **_saved(head, module, saved)}
                shapes[task] = HeadShape(
                    head.architecture,
                    head.parameters,
                    tuple(known[task]),
                    cache_fault=_cache_fault(head, given, hidden_TK),
                )
        post_layers = frozenset(pooler.names)
        own = {
            name: tuple(value.shape)
            for name, value in module.named_parameters()
            if name.partition(".")[0] in post_layers
        }
        shapes[FEATURES] = HeadShape(type(module).__name__, own, tuple(own))
        return cls(heads, known, shapes, post_layers)

    def known(self, task: Task) -> Mapping[str, torch.Tensor]:
        """Return the head parameters saved with the base model, float32, on its device."""
        return self._known[task]

    @torch.inference_mode()
    def logits(
        self, task: Task, parameters: Mapping[str, torch.Tensor], hidden_TK: torch.Tensor
    ) -> torch.Tensor:
        """Return a head's logits for a whole text: [1, L], or [T, L] for token tasks.

        Args:
            task: The task of the head.
            parameters: Those that differ from `known`.
            hidden_TK: The last hidden state of each token, float32.
        """
        return self._heads[task].logits({**self._known[task], **parameters}, hidden_TK)


def _text(config: PreTrainedConfig, device: torch.device) -> torch.Tensor:
    """Return a text of tokens that are unlikely to be special ones."""
    generator = torch.Generator().manual_seed(0)
    size = config.get_text_config().vocab_size
    token_1T = torch.randint(size // 2, size, (1, _NUM_TOKENS), generator=generator)
    return token_1T.to(device)


def _tried(
    head: TaskHead, module: PreTrainedModel, token_1T: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return random parameters of `head`, and the last hidden states of a text, [T, K].

    Raises:
        ValueError: The head computes something else than transformers' class as a whole.
    """
    pooled = head.pooled
    generator = torch.Generator().manual_seed(1)
    own: dict[str, torch.Tensor] = {}
    for name, shape in head.parameters.items():
        if name not in pooled:
            sizes = [size if size != LABELS else _NUM_LABELS for size in shape]
            value = torch.randn(sizes, generator=generator) / sizes[-1] ** 0.5
            own[name] = value.to(module.device)
    there = {name: module.get_parameter(each).float() for name, each in pooled.items()}
    given = {**own, **there}
    wanted = head.whole(module, own, token_1T)
    hidden_TK = module(input_ids=token_1T).last_hidden_state[0].float()
    found = head.logits(given, hidden_TK)
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    tolerance = _TOLERANCES.get(module.dtype, _ROUNDED)
    if found.shape != wanted.shape or not difference <= tolerance:  # so that NaN is refused
        raise ValueError(
            f"{head.architecture} does not compute its logits from the last hidden states alone: "
            f"they differ by {difference:.2g} of the largest"
        )
    return given, hidden_TK


def _cache_fault(head: TaskHead, given: Mapping[str, torch.Tensor], hidden_TK: torch.Tensor) -> str:
    """Return why PEFT's prefix tuning does not use `head` as a whole; empty if it does."""
    wanted = head.logits(given, hidden_TK)
    try:
        found = head.logits_after_prefix(given, hidden_TK)
    except torch.OutOfMemoryError:
        raise
    except (StopIteration, *UNKNOWN_WAYS) as error:
        return f"PEFT fails with {head.architecture}: {_describe_error(error)}"
    if found.shape != wanted.shape or not torch.allclose(found, wanted, atol=1e-5):
        return f"PEFT leaves out a part of {head.architecture}"
    return ""


def _idle(
    head: TaskHead, given: Mapping[str, torch.Tensor], hidden_TK: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return zeros for the parameters of `head` that have no effect."""
    idle = {}
    for name, value in given.items():
        without = head.logits({**given, name: torch.full_like(value, torch.nan)}, hidden_TK)
        if not without.isnan().any():
            idle[name] = torch.zeros_like(value)
    return idle


def _saved(
    head: TaskHead, module: PreTrainedModel, saved: SavedWeights | None
) -> dict[str, torch.Tensor]:
    """Return the parameters of `head` that were saved with the base model, float32, on its device.

    A checkpoint may use the names of the task class or those of the bare base model.
    """
    pooled, loaded = head.pooled, dict(module.named_parameters())
    found: dict[str, torch.Tensor] = {}
    for name, shape in head.parameters.items():
        if LABELS in shape:
            continue  # always the adapter's own
        value = None
        if saved is not None:
            value = saved.read(filter(None, (name, pooled.get(name))))
        elif pooled.get(name) in loaded:
            value = loaded[pooled[name]].detach().float()
        if value is not None and tuple(value.shape) == shape:
            found[name] = value.to(module.device)
    return found


def _describe_error(error: Exception, fault: str = "") -> str:
    """Return, in one line, why a task is not served; `fault` is the problem with the pooler."""
    message = str(error).partition("\n")[0]
    message = message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"
    return f"{message} ({fault})" if fault and fault != message else message
