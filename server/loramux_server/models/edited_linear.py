"""Linear layers with changes of adapters other than low-rank ones, in plain torch.

Legend: T tokens, K input width, N output width over all layers that share an input.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from loramux_server.lora.edits import LayerEdit
from loramux_server.lora.segments import Segments

Project = Callable[[torch.Tensor], torch.Tensor]


def project_edited(
    project: Project, x_TK: torch.Tensor, segments: Segments, group: int, columns: list[int]
) -> torch.Tensor:
    """Return the output of `project` for `x_TK`, with the changes of each segment's adapter.

    Semantics, for tokens t0:t1 of an adapter and columns n0:n1 of a layer that it changes:

        y[t0:t1, n0:n1] = project(x[t0:t1] * input)[:, n0:n1]

    If the adapter replaces the weight, affine.of(weight(x[t0:t1])) is used instead.

    Args:
        project: Computes the layers with the low-rank updates from the slab; rows are independent.
        x_TK: Their input.
        segments: Which adapter applies to which tokens.
        group: Number of the group of layers.
        columns: Boundaries between the layers' outputs.
    """
    found = list(_of_group(segments, group))
    has_one_layer = len(columns) == 2
    x_of_layer = {
        (start, part): (x_TK[start:end] * edit.input_K).to(x_TK.dtype)
        for start, end, edits in found
        for part, edit in edits.items()
        if edit.input_K is not None
    }
    if has_one_layer and x_of_layer:
        x_TK = x_TK.clone()
        for start, end, _ in found:
            if (start, 0) in x_of_layer:
                x_TK[start:end] = x_of_layer[start, 0]
    y_TN = project(x_TK)
    for start, end, edits in found:
        for part, edit in edits.items():
            n0, n1 = columns[part : part + 2]
            y = y_TN[start:end, n0:n1]
            if (start, part) in x_of_layer and not has_one_layer:
                # The other layers of the group take the unscaled input.
                whole = x_TK.clone()
                whole[start:end] = x_of_layer[start, part]
                y.copy_(project(whole)[start:end, n0:n1])
            if edit.weight is not None:
                y.copy_(edit.affine.of(edit.weight(x_TK[start:end])))
    return y_TN


def _of_group(segments: Segments, group: int) -> Iterator[tuple[int, int, Mapping[int, LayerEdit]]]:
    """Yield start, end and changes of the segments that change this group."""
    for start, end, edits in segments.edited():
        if group in edits.layers:
            yield start, end, edits.layers[group]
