"""Names of modules that a base calls otherwise than the model that an adapter was trained on.

transformers has a class for each task, and the layers below its head do not always have the name
that they have in the one that continues text. Llama's `model.layers` are `transformer.layers` in
`LlamaForQuestionAnswering`, and in what `AutoModel` loads nothing stands before `layers`. What sees
images as well has its layers one level further down, which is called otherwise in each version.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from loramux_adapters.contents import Contents
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.experts import ExpertsShape, split_experts
from loramux_adapters.head import Task

FEATURES = "FEATURE_EXTRACTION"
"""What PEFT calls the task of an adapter of what `AutoModel` loads, which has no head."""

_TEXT = frozenset(("language_model", "text_model"))
"""What the part for text is called in models that see images as well."""


def named_for(
    contents: Contents, names: Collection[str], experts: Mapping[str, ExpertsShape] | None = None
) -> Contents:
    """Return `contents` with its modules under the names that they have in a base.

    Changes of layers that are experts there become such; see `split_experts`. Those for other tasks
    than QUESTION_ANS and FEATURE_EXTRACTION keep theirs, and so do those whose layers the base does
    not have: they do not fit it.

    Args:
        contents: What an adapter does.
        names: Names of modules of the base.
        experts: Its experts by name.

    Raises:
        PackageError: Two of its modules would have one name.
    """
    contents = _named_for_task(contents, names)
    contents = _named_for_text(contents, names)
    if not experts:
        return contents
    modules, routers, of_experts = split_experts(contents.modules, names, experts)
    return replace(
        contents,
        modules=modules,
        routers=[*contents.routers, *routers],
        experts=[*contents.experts, *of_experts],
    )


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


def _named_for_text(contents: Contents, names: Collection[str]) -> Contents:
    """Return `contents` for a base that has more, or less, around its part for text."""
    own, there = _text_layers(_modules(contents)), _text_layers(names)
    if own is None or there is None or own == there or _plain(own) != _plain(there):
        return contents
    above, other = (f"{layers.rpartition('.')[0]}." for layers in (own, there))
    around, another = (_around(layers) for layers in (own, there))

    def named(module: str) -> str:
        if module.startswith(above):
            return other + module.removeprefix(above)
        # What makes logits may stand beside all layers, inside of the part for text.
        if module.rpartition(".")[0] == around.removesuffix("."):
            return another + module.removeprefix(around)
        return module

    return _renamed(contents, named)


def _text_layers(names: Collection[str]) -> str | None:
    """Return what stands before the number of a layer, of the part for text if there is one."""
    found = [name for name in names if not _TEXT.isdisjoint(name.split("."))]
    return _layers(found or names)


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _TEXT)


def _around(layers: str) -> str:
    """Return what stands before the name of the layer that makes logits, where `layers` are."""
    first, _, rest = layers.partition(".")
    return f"{first}." if first in _TEXT and rest else ""


def _modules(contents: Contents) -> list[str]:
    """Return the names of all that `contents` changes."""
    bottlenecks = (each.layer for each in contents.bottlenecks)
    return [*contents.changed_modules, *bottlenecks]


def _layers(names: Iterable[str]) -> str | None:
    """Return what stands before the number of a layer in `names`."""
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
