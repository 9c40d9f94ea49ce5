"""What a model makes of each token of a prompt, as log-probabilities."""

import math
from collections.abc import Sequence
from typing import Any

import torch


@torch.inference_mode()
def expected_logprobs(
    model: torch.nn.Module, prompt: Sequence[int], **options: Any
) -> torch.Tensor:
    """Return what `model` says of each token of `prompt` but the first, [tokens - 1, vocabulary].

    Args:
        model: Of transformers or PEFT, whose logits may begin with those of virtual tokens.
        prompt: Its tokens.
        options: What else the model is given.
    """
    ids = torch.tensor([list(prompt)])
    logits = model(input_ids=ids, use_cache=False, **options).logits[0, -len(prompt) :]
    return torch.log_softmax(logits[:-1].float(), -1)


def check_prompt_logprobs(
    reported: torch.Tensor, prompt: Sequence[int], wanted_TV: torch.Tensor, tolerance: float
) -> None:
    """Assert that `told`, a row for each token but the first, is what `wanted_TV` says.

    A row is as `kernels.prompt_logprobs` has it. Ranks may differ where tokens are as likely as
    `tolerance` can tell.
    """
    told_TL = reported.reshape(len(prompt) - 1, -1) if len(prompt) > 1 else reported.reshape(0, 2)
    count = told_TL.shape[1] // 2 - 1
    for row, token, wanted_V in zip(told_TL.tolist(), prompt[1:], wanted_TV, strict=True):
        rank, chosen, values, tokens = row[0], row[1], row[2 : 2 + count], row[2 + count :]
        actual = float(wanted_V[token])
        assert math.isclose(chosen, actual, abs_tol=tolerance)
        least = int((wanted_V > actual + tolerance).sum()) + 1
        most = int((wanted_V >= actual - tolerance).sum())
        assert least <= rank <= most
        assert values == sorted(values, reverse=True)
        assert len(set(tokens)) == count
        own = wanted_V[[int(each) for each in tokens]]
        torch.testing.assert_close(torch.tensor(values), own, rtol=0, atol=tolerance)
        best = wanted_V.topk(count).values
        torch.testing.assert_close(torch.tensor(values), best, rtol=0, atol=tolerance)
