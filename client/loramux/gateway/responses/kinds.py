"""Objects of a body whose `type` says what else they have."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from loramux.gateway.parsing import converted
from loramux.gateway.refusal import unsupported

S = TypeVar("S", bound=msgspec.Struct)


def of_kind(
    name: str, given: Mapping[str, object], kinds: Mapping[str, type[S]], why: str = ""
) -> S:
    """Return what `given`, the field `name` of a body, is.

    Args:
        name: The field.
        given: Its value; null is the same as no field.
        kinds: Type -> what such an object has beside `type`.
        why: What the message says of other types.

    Raises:
        InvalidArgumentError: It has another type, or not what its type has; the error names it.
    """
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        known = " or ".join(map(repr, kinds))
        raise unsupported(f"{name}.type", f"{name}.type is {kind!r:.100}; expected {known}{why}")
    fields = {
        field: value for field, value in given.items() if field != "type" and value is not None
    }
    return converted(fields, kinds[kind], name)
