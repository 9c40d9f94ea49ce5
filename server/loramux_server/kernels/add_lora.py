"""The segmented low-rank matmul: its definition in plain torch.

Legend: T tokens, K input width, N output width over all parts of a group, R slab rows, S segments,
P parts.
"""

import torch

from loramux_server.lora.segments import Int32, Segments


def add_lora(
    y_TN: torch.Tensor,
    x_TK: torch.Tensor,
    a_RK: torch.Tensor,
    b_RN: torch.Tensor,
    columns_P: list[int],
    segments: Segments,
    rank_SP: Int32,
) -> None:
    """Add each segment's low-rank update to `y_TN`, in place.

    Semantics, for segment s with tokens t0:t1, first row `row`, size `size`, and part p of rank r
    with output columns n0:n1:

        y[t0:t1, n0:n1] += x[t0:t1] @ a[P*row + p*size :][:r].T @ b[row:][:r, n0:n1]

    The weights of an adapter are read in place, through views: nothing is gathered, whatever the
    number of tokens. The scale of the adapter is folded into `b_RN`.

    Args:
        y_TN: Output of the base layers, changed in place.
        x_TK: Their common input.
        a_RK: A rows of all adapters, P for each rank row.
        b_RN: B rows of all adapters.
        columns_P: P + 1 borders between the columns of the parts.
        segments: Which adapter applies to which tokens.
        rank_SP: True rank of each segment's adapter in each part; 0 for none.
    """
    num_parts = rank_SP.shape[1]
    rows = zip(
        segments.start_S.tolist(),
        segments.end_S.tolist(),
        segments.row_S.tolist(),
        segments.size_S.tolist(),
        rank_SP.tolist(),
        strict=True,
    )
    for start, end, row, size, ranks in rows:
        x = x_TK[start:end].to(a_RK.dtype)
        for part, rank in enumerate(ranks):
            if not rank:
                continue
            first = num_parts * row + part * size
            n0, n1 = columns_P[part], columns_P[part + 1]
            h = x @ a_RK[first : first + rank].T
            y = y_TN[start:end, n0:n1]
            if y.dtype == b_RN.dtype:
                y.addmm_(h, b_RN[row : row + rank, n0:n1])
            else:
                y += (h @ b_RN[row : row + rank, n0:n1]).to(y.dtype)
