"""Names of modules that a base calls otherwise than the model that an adapter was trained on.

transformers has a class for each task, and the layers below its head do not always have the name
that they have in the one that continues text. Llama's `model.layers` are `transformer.layers` in
`LlamaForQuestionAnswering`, and in what `AutoModel` loads nothing stands before `layers`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from loramux_adapters.contents import Contents
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.experts import ExpertsShape, split_experts
from loramux_adapters.head import Task

FEATURES = "FEATURE_EXTRACTION"
"""What PEFT calls the task of an adapter of what `AutoModel` loads, which has no head."""


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

    before: dict[str, str] = {}
    for module in modules:
        other = before.setdefault(named(module), module)
        if other != module:
            raise PackageError(
                f"modules {shown(other)} and {shown(module)} are both {shown(named(module))} of "
                "the base model",
                "INVALID_ADAPTER_CONFIG",
            )
    return _renamed(contents, named)


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
    return replace(
        contents,
        modules=[replace(each, module=named(each.module)) for each in contents.modules],
        experts=[replace(each, module=named(each.module)) for each in contents.experts],
        edits=[replace(each, module=named(each.module)) for each in contents.edits],
        bottlenecks=[replace(each, layer=named(each.layer)) for each in contents.bottlenecks],
    )
