"""Logits as requests change them before a token is chosen: biases and penalties.

Legend: R rows, V tokens of the vocabulary, M tokens of which a row says something.
"""

from dataclasses import dataclass, fields

import torch

NUM_FACTORS = 4


@dataclass(frozen=True, slots=True)
class Adjustments:
    """What is done to the logits of a step's rows.

    A row that says something of fewer tokens than others repeats its first one; a row that says
    nothing has any token, with no bias and unseen.
    """

    token_RM: torch.Tensor
    """The tokens, int64."""
    bias_RM: torch.Tensor
    """What is added to the logit of each, float32; -inf for one that may not be chosen."""
    is_seen_RM: torch.Tensor
    """Whether prompt or output have it, int32."""
    count_RM: torch.Tensor
    """How often the output has it, int32."""
    factors_R4: torch.Tensor
    """What each row asks for, float32:

    - what positive logits of seen tokens are multiplied with, and what others are;
    - what is subtracted if the output has a token, and what for each time.
    """
    lacks_one_R: torch.Tensor
    """Whether the output has one token more than is counted, the one that the row was given."""

    def to(self, device: torch.device) -> "Adjustments":
        """Return the same on `device`."""
        return Adjustments(*(getattr(self, field.name).to(device) for field in fields(self)))


def adjust(logits_RV: torch.Tensor, input_R: torch.Tensor, of: Adjustments) -> torch.Tensor:
    """Return `logits_RV`, float32, as the rows' requests change them.

    Semantics, for a token of which a row says something; its other logits stay as they are:

        y = logit + bias
        y = y * (positive factor if y > 0 else other factor)    if it is seen
        y = y - presence - frequency * count                    if its count is not 0

    Shapes depend on no value and the host is not asked, so a CUDA graph can hold this.

    Args:
        logits_RV: The logits.
        input_R: The token that each row was given.
        of: What the rows ask for.
    """
    lacks_R1, input_R1 = of.lacks_one_R[:, None] > 0, input_R[:, None]
    is_last_RM = (of.token_RM == input_R1) & lacks_R1
    # The last token of the output may be a new one. Else its place is repeated, or the first one.
    place_R1 = is_last_RM.int().argmax(1, keepdim=True)
    is_new_R1 = lacks_R1 & ~is_last_RM.any(1, keepdim=True)

    def and_last(values_RM: torch.Tensor, new: int) -> torch.Tensor:
        return torch.cat((values_RM, values_RM.gather(1, place_R1).masked_fill(is_new_R1, new)), 1)

    own_R1 = of.token_RM.gather(1, place_R1)
    token_RM = torch.cat((of.token_RM, torch.where(is_new_R1, input_R1, own_R1)), 1)
    is_seen_RM = and_last(of.is_seen_RM.maximum(is_last_RM.int()), 1)
    count_RM = and_last(of.count_RM + is_last_RM, 1)
    positive_R1, other_R1, presence_R1, frequency_R1 = of.factors_R4[:, :, None].unbind(1)
    y_RM = logits_RV.gather(1, token_RM) + and_last(of.bias_RM, 0)
    factor_RM = torch.where(y_RM > 0, positive_R1, other_R1)
    y_RM = torch.where(is_seen_RM > 0, y_RM * factor_RM, y_RM)
    y_RM = y_RM - presence_R1 * (count_RM > 0) - frequency_R1 * count_RM
    return logits_RV.scatter(1, token_RM, y_RM)
