"""Names of modules that a base calls otherwise than the model that an adapter was trained on.

transformers has a class for each task, and the layers below its head do not always have the name
that they have in the one that continues text. Llama's `model.layers` are `transformer.layers` in
`LlamaForQuestionAnswering`, and in what `AutoModel` loads nothing stands before `layers`. What sees
images as well has its layers one level further down, which is called otherwise in each version,
and what sees is called otherwise, too.
"""

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import replace

from loramux_adapters.behind import split_behind
from loramux_adapters.contents import Contents
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.experts import ExpertsShape, split_experts
from loramux_adapters.head import FEATURES, HeadShape, Task

_TEXT = frozenset(("language_model", "text_model"))
"""What the part for text is called in models that see images as well."""
_SEEING = ("vision", "visual", "projector", "connector")
"""Parts of the names of what sees images there."""
_LEVEL = ("vision_tower.vision_model.", "vision_tower.")
"""A level of names that some versions have, and what others have."""


def named_for(
    contents: Contents,
    names: Collection[str],
    experts: Mapping[str, ExpertsShape] | None = None,
    sight: Collection[str] = (),
    heads: Mapping[str, HeadShape] | None = None,
) -> Contents:
    """Return `contents` with its modules under the names that they have in a base.

    Changes of layers that are experts there become such; see `split_experts`. What is done to
    modules of `sight` becomes its `sight`, and to what stands behind the layers its `behind`, under
    the names that this has in the class for its task. Those for other tasks
    than QUESTION_ANS and FEATURE_EXTRACTION keep theirs, and so do those whose layers the base does
    not have: they do not fit it.

    Args:
        contents: What an adapter does.
        names: Names of modules of the base.
        experts: Its experts by name.
        sight: Names of its modules that see images, as far as they are not in `names`.
        heads: What it has behind its layers, by task; see `HeadShape`.

    Raises:
        PackageError: Two of its modules would have one name.
    """
    contents, behind = split_behind(contents, heads or {})
    contents, seeing = _split_sight(contents, names, sight)
    contents = _named_for_bare(_named_for_task(contents, names), names)
    contents = replace(_named_for_text(contents, names), sight=seeing, behind=behind)
    if not experts:
        return contents
    modules, routers, of_experts = split_experts(contents.modules, names, experts)
    return replace(
        contents,
        modules=modules,
        routers=[*contents.routers, *routers],
        experts=[*contents.experts, *of_experts],
    )


def sees_images(module: str) -> bool:
    """Return whether `module` is, by its name, of what sees images in some base."""
    return any(word in module for word in _SEEING)


def names_of_sight(name: str) -> list[str]:
    """Return what a module that sees images, or its parameter, is called in any version."""
    plain = _plain_sight(name)
    more, less = _LEVEL
    names = [plain, plain.replace(less, more, 1)]
    return [*names, *(f"model.{each}" for each in names)]


def _split_sight(
    contents: Contents, names: Container[str], sight: Collection[str]
) -> tuple[Contents, Contents | None]:
    """Return what `contents` does to what reads text, and to what sees images, by its names."""
    there = {_plain_sight(name): name for name in sight if name not in names}
    found = {
        module: there[plain]
        for module in contents.changed_modules
        if module not in names and (plain := _plain_sight(module)) in there
    }
    if not found:
        return contents, None
    seeing = Contents(
        modules=[each for each in contents.modules if each.module in found],
        edits=[each for each in contents.edits if each.module in found],
        invocation=contents.invocation,
    )
    reading = replace(
        contents,
        modules=[each for each in contents.modules if each.module not in found],
        edits=[each for each in contents.edits if each.module not in found],
    )
    return reading, _renamed(seeing, found.__getitem__)


def _plain_sight(name: str) -> str:
    """Return `name` without what only some versions of transformers put into it."""
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
    """Return `contents` for a base that is what `AutoModel` loads, as encoders are.

    In a model for a task all of it has one name more before its own, such as `bert.`.
    """
    own = _layers(_modules(contents))
    stacks = {stack for name in names if (stack := _layers([name]))}
    there = next((each for each in sorted(stacks) if own and own.endswith(f".{each}")), None)
    if own is None or own in stacks or there is None:
        return contents
    above = own.removesuffix(there)
    return _renamed(contents, lambda module: module.removeprefix(above))


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
    return _layers(found or (name for name in names if not sees_images(name)))


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
