"""Objects in a body that are discriminated by `type`."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from loramux.gateway.parsing import converted
from loramux.gateway.refusal import unsupported

S = TypeVar("S", bound=msgspec.Struct)


def of_kind(
    name: str, given: Mapping[str, object], kinds: Mapping[str, type[S]], why: str = ""
) -> S:
    """Return `given` as the struct of its `type`.

    Args:
        name: Its path in the body.
        given: The object; fields that are null count as missing.
        kinds: Type -> the struct of its other fields.
        why: Appended to the error message about unknown types.

    Raises:
        InvalidArgumentError: Its type is not one of `kinds`, or a field does not fit; the error
            names the field.
    """
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        known = " or ".join(map(repr, kinds))
        raise unsupported(f"{name}.type", f"{name}.type is {kind!r:.100}; expected {known}{why}")
    fields = {
        field: value for field, value in given.items() if field != "type" and value is not None
    }
    return converted(fields, kinds[kind], name)
