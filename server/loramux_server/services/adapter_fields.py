"""Validation of the request fields that name adapters."""

from loramux.v1 import generation_pb2
from loramux_server.field_errors import at_fault, invalid, wrong
from loramux_server.store.reference import parse_reference
from loramux_server.wire.adapter_source import Combination

MAX_ADAPTERS = 4
MAX_ADAPTER_WEIGHT = 10.0
COMBINATIONS: dict[int, Combination] = {
    generation_pb2.COMBINATION_UNSPECIFIED: Combination.CAT,
    generation_pb2.COMBINATION_CAT: Combination.CAT,
    generation_pb2.COMBINATION_LINEAR: Combination.LINEAR,
}


def check_adapters(request: generation_pb2.GenerateRequest) -> None:
    """Check that the fields of `request` that name adapters are valid.

    Raises:
        InvalidArgumentError: One is not; the message names it, its value and what would be right.
    """
    if request.adapter and request.adapters:
        raise at_fault("adapters", "adapter and adapters are both set; set one of them")
    if request.adapter:
        parse_reference(request.adapter, "adapter")
    if request.HasField("scale"):
        if not request.adapter:
            raise invalid(
                "scale", request.scale, "none without adapter; use weight for each of adapters"
            )
        _check_weight("scale", request.scale)
    if request.combination not in COMBINATIONS:
        raise invalid("combination", request.combination, "COMBINATION_CAT or COMBINATION_LINEAR")
    if request.combination and not request.adapters:
        name = generation_pb2.Combination.Name(request.combination)
        raise invalid("combination", name, "none without adapters")
    if len(request.adapters) > MAX_ADAPTERS:
        count = len(request.adapters)
        raise wrong("adapters", f"has {count} entries; expected at most {MAX_ADAPTERS}")
    for i, each in enumerate(request.adapters):
        parse_reference(each.adapter, f"adapters[{i}].adapter")
        if each.HasField("weight"):
            _check_weight(f"adapters[{i}].weight", each.weight)


def _check_weight(field: str, value: float) -> None:
    # Written so that NaN fails.
    if not -MAX_ADAPTER_WEIGHT <= value <= MAX_ADAPTER_WEIGHT:
        most = f"{MAX_ADAPTER_WEIGHT:g}"
        raise invalid(field, value, f"a number from -{most} to {most}")
