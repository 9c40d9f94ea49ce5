"""Loads a package's low-rank changes of experts.

Legend: E experts, R rank, K input width, N output width.
"""

from collections.abc import Mapping

import torch

from loramux_adapters import Package
from loramux_adapters.experts import ExpertLora, ExpertsShape, Projection
from loramux_server.lora.experts_edit import ExpertPiece, ExpertRows, ExpertsEdit, rows_of
from loramux_server.lora.packed_edits import Read
from loramux_server.lora.slab import DTYPES, FORMATS
from loramux_server.wire.weight_format import WeightFormat, format_of


def pack_experts(
    package: Package, shapes: Mapping[str, ExpertsShape], held: torch.dtype, read: Read
) -> dict[str, ExpertsEdit]:
    """Return the changes of `package`, by name of the experts module.

    Args:
        package: A package that fits the base.
        shapes: The experts of the base.
        held: The base's dtype; if that is float32, changes keep the format they were saved in.
        read: Returns the values of a tensor.
    """
    found: dict[str, list[ExpertLora]] = {}
    for change in package.contents.experts:
        found.setdefault(change.module, []).append(change)
    form = format_of(package) if held is torch.float32 else FORMATS[held]
    return {
        module: ExpertsEdit(
            _rows([c for c in changes if c.projection is not Projection.DOWN],
                  shapes[module], form, read),
            _rows([c for c in changes if c.projection is Projection.DOWN],
                  shapes[module], form, read),
        )
        for module, changes in found.items()
    }  # fmt: skip


def _rows(
    changes: list[ExpertLora], shape: ExpertsShape, form: WeightFormat, read: Read
) -> ExpertRows | None:
    if not changes:
        return None
    last = changes[0].projection is Projection.DOWN
    first = Projection.GATE_UP if shape.is_gated else Projection.UP
    features = shape.features(Projection.DOWN if last else first)
    assert features is not None
    pieces = [_piece(change, shape, read) for change in changes]
    return rows_of(pieces, shape.count, features, form, DTYPES[form])


def _piece(change: ExpertLora, shape: ExpertsShape, read: Read) -> ExpertPiece:
    a, b = read(change.a), read(change.b)
    is_second = change.projection is Projection.UP and shape.is_gated
    return ExpertPiece(
        a_ERK=a.reshape(change.num_experts, change.rank, -1),
        b_ERN=b.reshape(len(b), change.rank, change.num_experts).permute(2, 1, 0),
        scale=change.scale,
        begin=shape.inner if is_second else 0,
        number=change.number,
    )
