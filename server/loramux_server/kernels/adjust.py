"""Logit adjustments before sampling: logit biases and penalties.

Legend: R rows, V vocabulary size, E entries, each for one token of one row.
"""

from dataclasses import dataclass, fields

import torch

NUM_FACTORS = 4


@dataclass(frozen=True, slots=True)
class Adjustments:
    """Sparse logit adjustments for the rows of a step.

    There is at least one entry. Duplicates of an entry are applied once.
    """

    row_E: torch.Tensor
    """The row, int32."""
    token_E: torch.Tensor
    """The token, int32."""
    bias_E: torch.Tensor
    """Logit bias, float32; -inf forbids the token."""
    is_seen_E: torch.Tensor
    """Whether the token occurs in the prompt or the output, int32."""
    count_E: torch.Tensor
    """Occurrences in the output, int32."""
    factors_R4: torch.Tensor
    """Penalties of each row, float32:

    - factors for the positive and for the other logits of seen tokens (repetition penalty);
    - presence penalty and frequency penalty.
    """
    lacks_one_R: torch.Tensor
    """Whether `count_E` lacks the last output token, which is the row's input token; int32."""

    def to(self, device: torch.device) -> "Adjustments":
        """Return a copy on `device`."""
        return Adjustments(*(getattr(self, field.name).to(device) for field in fields(self)))


def adjust(logits_RV: torch.Tensor, input_R: torch.Tensor, of: Adjustments) -> torch.Tensor:
    """Return `logits_RV`, float32, with the adjustments applied.

    Semantics, for a token that has an entry; a row's other logits are unchanged:

        y = logit + bias
        y = y * (positive factor if y > 0 else other factor)    if it is seen
        y = y - presence - frequency * count                    if its count is not 0

    Shapes do not depend on values and nothing synchronizes with the host, so this can be captured
    in a CUDA graph.

    Args:
        logits_RV: The logits.
        input_R: The input token of each row.
        of: The adjustments.
    """
    row_E, lacks_R = of.row_E.long(), of.lacks_one_R > 0
    is_last_E = (of.token_E == input_R[row_E]) & lacks_R[row_E]
    # Each row gets one more entry: for its last output token, if that has none yet. Otherwise an
    # existing entry, of any row, is duplicated: duplicates are harmless.
    number_E = torch.arange(1, len(row_E) + 1, device=row_E.device) * is_last_E
    place_R = torch.zeros_like(input_R).scatter_reduce(0, row_E, number_E, "amax")
    is_new_R = lacks_R & (place_R == 0)
    place_R = (place_R - 1).clamp(min=0)

    def and_last(values_E: torch.Tensor, new_R: torch.Tensor) -> torch.Tensor:
        return torch.cat((values_E, torch.where(is_new_R, new_R, values_E[place_R])))

    zero_R = torch.zeros_like(of.lacks_one_R)
    token_E = and_last(of.token_E.long(), input_R)
    bias_E = and_last(of.bias_E, zero_R.to(of.bias_E.dtype))
    is_seen_E = and_last(of.is_seen_E.maximum(is_last_E.int()), zero_R + 1)
    count_E = and_last(of.count_E + is_last_E, zero_R + 1)
    row_E = and_last(row_E, torch.arange(len(input_R), device=row_E.device))
    positive_E, other_E, presence_E, frequency_E = of.factors_R4[row_E].unbind(1)
    logit_X, place_E = logits_RV.flatten(), row_E * logits_RV.shape[1] + token_E
    y_E = logit_X[place_E] + bias_E
    y_E = torch.where(is_seen_E > 0, y_E * torch.where(y_E > 0, positive_E, other_E), y_E)
    y_E = y_E - presence_E * (count_E > 0) - frequency_E * count_E
    return logit_X.scatter(0, place_E, y_E).view_as(logits_RV)
