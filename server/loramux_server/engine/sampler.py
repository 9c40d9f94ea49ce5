"""Logits -> the next token of each request.

A token depends on its own row, its request's parameters, its seed and its position, never on what
else is in the batch: random numbers come from a counter, not from a shared generator.
"""

import hashlib
import logging
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loramux_server.engine.messages import Logprobs, Sampling
from loramux_server.engine.request import Request

_log = logging.getLogger(__name__)

_FIRST_CANDIDATES = 1024
"""Tokens looked at before the whole vocabulary is sorted for top-p."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was chosen for one request."""

    token: int
    fault: str | None = None
    """Why there is no token, as a name of `loramux.v1.ErrorReason`; `token` then means nothing."""
    logprobs: Logprobs | None = None


def sample(
    logits_RV: torch.Tensor,
    requests: Sequence[Request],
    eos_token_ids: Sequence[int],
    vocab_size: int | None = None,
) -> list[Sampled]:
    """Choose the next token of each of `requests` from its row of `logits_RV` (float32).

    Rows end with tokens that the model has with another adapter only; `vocab_size` are those of the
    base.
    """
    tokens_R = likeliest(logits_RV)
    # The maximum is NaN if any logit is, and infinite if the row overflowed.
    finite = torch.isfinite(logits_RV.gather(1, tokens_R[:, None])[:, 0]).tolist()
    greedy = tokens_R.tolist()
    results = []
    for i, request in enumerate(requests):
        logits_V = logits_RV[i, : request.own_vocab_size or vocab_size]
        if not finite[i]:
            results.append(Sampled(0, fault="ADAPTER_NOT_FINITE"))
            continue
        try:
            token = greedy[i]
            if request.sampling.changes_logits or not request.sampling.is_greedy:
                token = _choose(logits_V, request, eos_token_ids)
            results.append(Sampled(token, logprobs=_logprobs(logits_V, token, request)))
        except Exception:
            # Whatever it is, it is of this request's parameters: the others must not end for it.
            _log.exception("no token could be chosen with %s", request.sampling)
            results.append(Sampled(0, fault="INTERNAL"))
    return results


def greedy(tokens: Sequence[int], finite: Sequence[int]) -> list[Sampled]:
    """Return the choice of `tokens`, each the likeliest of a row whose logits are `finite`."""
    return [
        Sampled(token) if is_finite else Sampled(0, fault="ADAPTER_NOT_FINITE")
        for token, is_finite in zip(tokens, finite, strict=True)
    ]


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on `seed` and `position` alone."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)


def likeliest(logits_RV: torch.Tensor) -> torch.Tensor:
    """Return the likeliest token of each row, or one whose logit is NaN if there is any."""
    if logits_RV.device.type == "cpu":
        # In vectors and on this thread: torch's takes twice as long and wakes the others for it.
        return torch.from_numpy(logits_RV.numpy().argmax(axis=-1))
    return logits_RV.argmax(dim=-1)


def _choose(logits_V: torch.Tensor, request: Request, eos_token_ids: Sequence[int]) -> int:
    sampling = request.sampling
    if sampling.changes_logits:
        logits_V = _changed(logits_V.clone(), request, eos_token_ids)
    if sampling.is_greedy:
        return int(logits_V.argmax())
    logits_V = logits_V / sampling.temperature
    logits_K, tokens_K = _candidates(logits_V, sampling)
    probability_K = torch.softmax(logits_K.double(), dim=-1)
    threshold = uniform(sampling.seed, len(request.output))
    index = int(torch.searchsorted(probability_K.cumsum(-1), threshold, right=True))
    index = min(index, len(logits_K) - 1)
    return index if tokens_K is None else int(tokens_K[index])


def _changed(
    logits_V: torch.Tensor, request: Request, eos_token_ids: Sequence[int]
) -> torch.Tensor:
    """Apply bias, minimum length and penalties, in this order, in place."""
    sampling = request.sampling
    if sampling.logit_bias:
        tokens = torch.tensor(list(sampling.logit_bias), device=logits_V.device)
        logits_V[tokens] += torch.tensor(list(sampling.logit_bias.values()), device=logits_V.device)
    if len(request.output) < sampling.min_tokens:
        ends = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends.update(eos_token_ids)
        logits_V[[token for token in ends if token < len(logits_V)]] = float("-inf")
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*request.prompt, *request.output}), device=logits_V.device)
        values = logits_V[seen]
        factor = torch.where(
            values > 0, 1 / sampling.repetition_penalty, sampling.repetition_penalty
        )
        logits_V[seen] = values * factor
    if (sampling.presence_penalty or sampling.frequency_penalty) and request.output:
        count_V = torch.bincount(
            torch.tensor(request.output, device=logits_V.device), minlength=logits_V.shape[0]
        )
        logits_V -= sampling.presence_penalty * (count_V > 0)
        logits_V -= sampling.frequency_penalty * count_V
    return logits_V


def _candidates(
    logits_V: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the logits that min-p, top-k and top-p leave, likeliest first, and their tokens.

    The tokens are None where nothing was left out and the logits are in their own order.
    """
    size = logits_V.shape[0]
    limit = sampling.top_k if 0 < sampling.top_k < size else size
    if limit == size and sampling.top_p >= 1.0 and not sampling.min_p:
        return logits_V, None
    total = logits_V.logsumexp(-1)
    count = min(limit, size if sampling.top_k else _FIRST_CANDIDATES)
    logits_K, tokens_K = logits_V.topk(min(count, size))
    if count < limit and not _is_enough(logits_K, total, sampling):
        logits_K, tokens_K = logits_V.sort(descending=True)
    keep = logits_K.shape[0]
    if sampling.min_p:
        low = logits_K[0] + torch.log(torch.tensor(sampling.min_p))
        keep = min(keep, int((logits_K >= low).sum()))
    if sampling.top_p < 1.0:
        # What top-k left is a distribution of its own.
        mass = logits_K.logsumexp(-1) if sampling.top_k else total
        before_K = (logits_K - mass).exp().cumsum(-1) - (logits_K - mass).exp()
        keep = min(keep, max(1, int((before_K < sampling.top_p).sum())))
    return logits_K[:keep], tokens_K[:keep]


def _is_enough(logits_K: torch.Tensor, total: torch.Tensor, sampling: Sampling) -> bool:
    """Return whether nothing behind these candidates could be kept."""
    by_mass = sampling.top_p < 1.0 and float((logits_K - total).exp().sum()) >= sampling.top_p
    by_ratio = sampling.min_p > 0 and float((logits_K[-1] - logits_K[0]).exp()) < sampling.min_p
    return by_mass or by_ratio


def _logprobs(logits_V: torch.Tensor, token: int, request: Request) -> Logprobs | None:
    count = request.sampling.num_logprobs
    if count is None:
        return None
    total = float(logits_V.logsumexp(-1))
    values_K, tokens_K = logits_V.topk(count)
    top = [
        (top_token, value - total)
        for top_token, value in zip(tokens_K.tolist(), values_K.tolist(), strict=True)
    ]
    return Logprobs(float(logits_V[token]) - total, top)
