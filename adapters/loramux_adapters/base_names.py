"""Renaming of an adapter's modules where the base names them differently.

transformers has a class for each task, and these do not always name the layers below the head as
the class for text generation does. Llama's `model.layers` are `transformer.layers` in
`LlamaForQuestionAnswering`, and `AutoModel` has `layers` without a prefix. Multimodal models have
the text layers one level further down, under a name that depends on the version of transformers,
as do the names of the vision modules.
"""

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import replace

from loramux_adapters.contents import Contents
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.experts import ExpertsShape, split_experts
from loramux_adapters.head import FEATURES, HeadShape, Task
from loramux_adapters.post_layers import split_post_layers

_TEXT = frozenset(("language_model", "text_model"))
"""Names of the text part of multimodal models."""
_VISION_WORDS = ("vision", "visual", "projector", "connector")
"""Substrings of the names of vision modules."""
_LEVEL = ("vision_tower.vision_model.", "vision_tower.")
"""A prefix that some versions use, and what others use instead."""


def named_for(
    contents: Contents,
    names: Collection[str],
    experts: Mapping[str, ExpertsShape] | None = None,
    vision_modules: Collection[str] = (),
    heads: Mapping[str, HeadShape] | None = None,
) -> Contents:
    """Return `contents` with its modules under the names that they have in a base.

    Changes of layers that are experts in the base become changes of experts; see `split_experts`.
    Changes of vision modules move to the result's `vision`, and those of modules after the layers
    to its `post_layers`, under the names that the base's class for the task has. Renaming for the
    task applies to QUESTION_ANS and FEATURE_EXTRACTION only. Layers that the base does not have
    keep their names, so that the fit check reports them.

    Args:
        contents: What the adapter changes.
        names: Names of modules of the base.
        experts: Experts of the base, by name.
        vision_modules: Names of its vision modules, as far as they are not in `names`.
        heads: What the base has after its layers, by task; see `HeadShape`.

    Raises:
        PackageError: Two modules would get the same name.
    """
    contents, post_layers = split_post_layers(contents, heads or {})
    contents, vision = _split_vision(contents, names, vision_modules)
    contents = _named_for_bare(_named_for_task(contents, names), names)
    contents = replace(_named_for_text(contents, names), vision=vision, post_layers=post_layers)
    if not experts:
        return contents
    modules, routers, of_experts = split_experts(contents.modules, names, experts)
    return replace(
        contents,
        modules=modules,
        routers=[*contents.routers, *routers],
        experts=[*contents.experts, *of_experts],
    )


def is_vision_module(module: str) -> bool:
    """Return whether the name `module` is that of a vision module."""
    return any(word in module for word in _VISION_WORDS)


def vision_names(name: str) -> list[str]:
    """Return the names that a vision module or its parameter may have, by version."""
    plain = _plain_vision_name(name)
    more, less = _LEVEL
    names = [plain, plain.replace(less, more, 1)]
    return [*names, *(f"model.{each}" for each in names)]


def _split_vision(
    contents: Contents, names: Container[str], vision_modules: Collection[str]
) -> tuple[Contents, Contents | None]:
    """Split `contents` into changes of text and of vision modules, under the base's names."""
    there = {_plain_vision_name(name): name for name in vision_modules if name not in names}
    found = {
        module: there[plain]
        for module in contents.changed_modules
        if module not in names and (plain := _plain_vision_name(module)) in there
    }
    if not found:
        return contents, None
    vision = Contents(
        modules=[each for each in contents.modules if each.module in found],
        edits=[each for each in contents.edits if each.module in found],
        invocation=contents.invocation,
    )
    reading = replace(
        contents,
        modules=[each for each in contents.modules if each.module not in found],
        edits=[each for each in contents.edits if each.module not in found],
    )
    return reading, _renamed(vision, found.__getitem__)


def _plain_vision_name(name: str) -> str:
    """Return the vision module's `name` without prefixes that only some versions use."""
    return name.removeprefix("model.").replace(*_LEVEL, 1)


def _named_for_task(contents: Contents, names: Iterable[str]) -> Contents:
    if contents.task not in (Task.SPANS, FEATURES):
        return contents
    modules = _modules(contents)
    own, there = _layers(modules), _layers(names)
    if own is None or there is None or own == there:
        return contents
    first, _, rest = own.partition(".")
    ending = f".{own if contents.task == FEATURES else rest}"
    if not there.endswith(ending):
        return contents
    below = there.removesuffix(ending)

    def named(module: str) -> str:
        if contents.task == FEATURES:
            return f"{below}.{module}"
        head, _, tail = module.partition(".")
        return f"{below}.{tail}" if head == first else module

    return _renamed(contents, named)


def _named_for_bare(contents: Contents, names: Iterable[str]) -> Contents:
    """Return `contents` for a base as `AutoModel` loads it, without a task's class, like encoders.

    The class for a task prefixes all names of the bare model, for example with `bert.`.
    """
    own = _layers(_modules(contents))
    stacks = {stack for name in names if (stack := _layers([name]))}
    there = next((each for each in sorted(stacks) if own and own.endswith(f".{each}")), None)
    if own is None or own in stacks or there is None:
        return contents
    above = own.removesuffix(there)
    return _renamed(contents, lambda module: module.removeprefix(above))


def _named_for_text(contents: Contents, names: Collection[str]) -> Contents:
    """Return `contents` for a base that nests its text part differently."""
    own, there = _text_layers(_modules(contents)), _text_layers(names)
    if own is None or there is None or own == there or _plain(own) != _plain(there):
        return contents
    above, other = (f"{layers.rpartition('.')[0]}." for layers in (own, there))
    around, another = (_around(layers) for layers in (own, there))

    def named(module: str) -> str:
        if module.startswith(above):
            return other + module.removeprefix(above)
        # The output layer may stand beside the layers, inside the text part.
        if module.rpartition(".")[0] == around.removesuffix("."):
            return another + module.removeprefix(around)
        return module

    return _renamed(contents, named)


def _text_layers(names: Collection[str]) -> str | None:
    """Return the prefix before a layer's number, of the text part if there is one."""
    found = [name for name in names if not _TEXT.isdisjoint(name.split("."))]
    return _layers(found or (name for name in names if not is_vision_module(name)))


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _TEXT)


def _around(layers: str) -> str:
    """Return the prefix of the output layer's name, given that of the `layers`."""
    first, _, rest = layers.partition(".")
    return f"{first}." if first in _TEXT and rest else ""


def _modules(contents: Contents) -> list[str]:
    """Return the names of all modules that `contents` changes."""
    bottlenecks = (each.layer for each in contents.bottlenecks)
    return [*contents.changed_modules, *bottlenecks]


def _layers(names: Iterable[str]) -> str | None:
    """Return the prefix before a layer's number in `names`."""
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdecimal()), 0)
        if number:
            return ".".join(parts[:number])
    return None


def _renamed(contents: Contents, named: Callable[[str], str]) -> Contents:
    before: dict[str, str] = {}
    for module in _modules(contents):
        other = before.setdefault(named(module), module)
        if other != module:
            raise PackageError(
                f"modules {shown(other)} and {shown(module)} are both {shown(named(module))} of "
                "the base model",
                "INVALID_ADAPTER_CONFIG",
            )
    return replace(
        contents,
        modules=[replace(each, module=named(each.module)) for each in contents.modules],
        routers=[replace(each, module=named(each.module)) for each in contents.routers],
        experts=[replace(each, module=named(each.module)) for each in contents.experts],
        edits=[replace(each, module=named(each.module)) for each in contents.edits],
        bottlenecks=[replace(each, layer=named(each.layer)) for each in contents.bottlenecks],
    )
