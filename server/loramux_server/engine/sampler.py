"""Logits -> the next token of each request.

A token depends on its own row, its request's parameters, its seed and its position, never on the
rest of the batch: random numbers are counter-based, not from a shared generator.
"""

import hashlib
import logging
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from loramux_server.engine.allowed import only_allowed
from loramux_server.engine.request import Request
from loramux_server.engine.token_counts import SampledRow, adjustments_of
from loramux_server.forms.bits import has_bit
from loramux_server.kernels.adjust import adjust
from loramux_server.kernels.cpu.draw import draw_cpu
from loramux_server.kernels.cpu.logprobs import logprobs_cpu
from loramux_server.kernels.draw import Draws, draw
from loramux_server.kernels.logprobs import logprobs
from loramux_server.wire.messages import Logprobs
from loramux_server.wire.sampling import Sampling

_log = logging.getLogger(__name__)

_ALL = (0.0, 1.0, -math.inf)
"""Top-k, top-p and min-p of a row of `Draws` that excludes no token."""
_LIKELIEST = (0.0, *_ALL, 0.0)
"""A row of `Draws` for greedy sampling."""

_FORM_FAULT = "STRUCTURED_OUTPUT_FAILED"
FAULTS = {
    "ADAPTER_NOT_FINITE": "the logits are not finite: the weights overflow on this prompt",
    "INTERNAL": "no token could be chosen with these sampling parameters",
    _FORM_FAULT: "every token that the structured output allows has probability 0",
}
"""Error reason -> message, for a row without a token."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token that was sampled for one request."""

    token: int
    fault: str | None = None
    """Why there is no token, as a name of `loramux.v1.ErrorReason`; `token` then means nothing."""
    logprobs: Logprobs | None = None
    is_deferred: bool = False
    """Whether it has to be sampled in a later step; `token` means nothing then, too."""


def sample(
    logits_RV: torch.Tensor,
    requests: Sequence[Request],
    vocab_size: int | None = None,
    drafts: Mapping[Request, Sequence[int]] = MappingProxyType({}),
) -> list[list[Sampled]]:
    """Sample the next tokens of each of `requests`.

    Args:
        logits_RV: For each request one row, and one for each token of its draft: the logits of
            what follows. float32. Rows may end with tokens that exist with other adapters only.
        requests: The requests, in the order of their rows.
        vocab_size: Vocabulary size of the base.
        drafts: The drafts of some of the requests.

    Returns:
        One token of each request, and more as long as they equal its draft: exactly those that
        sampling one by one would give. None follows one with a fault, or one that is deferred.
    """
    tokens_R = likeliest(logits_RV)
    finite = are_finite(logits_RV, tokens_R).tolist()
    rows = [
        (request, number)
        for request in requests
        for number in range(len(drafts.get(request, ())) + 1)
    ]
    draws = draws_of(
        [None if _is_apart(r.sampling) else (r.sampling, len(r.output) + n) for r, n in rows]
    )
    chosen = _choose(logits_RV, tokens_R, draws).tolist()
    results: list[list[Sampled]] = []
    row = 0
    for request in requests:
        size = request.own_vocab_size or vocab_size
        draft = drafts.get(request, ())
        results.append([])
        before: list[int] = []
        for number in range(row, row + len(draft) + 1):
            logits_V = logits_RV[number, :size]
            found = _sampled(logits_V, request, before, chosen[number], is_finite=finite[number])
            results[-1].append(found)
            drafted = draft[len(before)] if len(before) < len(draft) else None
            if found.fault or found.is_deferred or found.token != drafted:
                break
            before.append(found.token)
        row += len(draft) + 1
    return results


def _sampled(
    logits_V: torch.Tensor, request: Request, before: Sequence[int], token: int, *, is_finite: bool
) -> Sampled:
    """Return the next token of `request` after its output and the tokens `before`.

    Args:
        logits_V: Its logits.
        request: The request.
        before: Tokens that were sampled in the same step.
        token: The token, if its parameters leave the logits unchanged.
        is_finite: Whether the logits are finite.
    """
    if not is_finite:
        return Sampled(0, fault="ADAPTER_NOT_FINITE")
    allowed = request.shape.mask_after(len(before))
    if request.sampling.form and allowed is None:
        return Sampled(0, is_deferred=True)
    try:
        if _is_apart(request.sampling):
            changed = _choose_changed(logits_V, request, before, allowed)
            if changed is None:
                return Sampled(0, fault="INTERNAL" if allowed is None else _FORM_FAULT)
            token = changed
        # All allowed tokens may have probability zero.
        if allowed is not None and not has_bit(allowed, token):
            return Sampled(0, fault=_FORM_FAULT)
        return Sampled(token, logprobs=_logprobs(logits_V, token, request))
    except Exception:
        # Whatever it is, this request's parameters caused it: the others must not fail for it.
        _log.exception("no token could be chosen with %s", request.sampling)
        return Sampled(0, fault="INTERNAL")


def chosen_from(
    tokens: Sequence[int], finite: Sequence[int], logprobs: Sequence[Logprobs | None]
) -> list[Sampled]:
    """Return the samples `tokens`, each from a row whose logits are `finite` or not."""
    return [
        Sampled(token, logprobs=of_row) if is_finite else Sampled(0, fault="ADAPTER_NOT_FINITE")
        for token, is_finite, of_row in zip(tokens, finite, logprobs, strict=True)
    ]


def uniform(seed: int, position: int) -> float:
    """Return a pseudorandom number in [0, 1) that depends on `seed` and `position` alone."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)


def likeliest(logits_RV: torch.Tensor) -> torch.Tensor:
    """Return the most likely token of each row, or one whose logit is NaN if there is any."""
    if logits_RV.device.type == "cpu":
        # Vectorized and on this thread; torch's argmax wakes other threads and takes twice as long.
        return torch.from_numpy(logits_RV.numpy().argmax(axis=-1))
    return logits_RV.argmax(dim=-1)


def are_finite(logits_RV: torch.Tensor, likeliest_R: torch.Tensor) -> torch.Tensor:
    """Return whether the logits of each row are finite, judged by its most likely token."""
    # The maximum is NaN if any logit is, and infinite if the row overflowed.
    return logits_RV.gather(1, likeliest_R[:, None])[:, 0].isfinite()


def draws_of(wanted: Sequence[tuple[Sampling, int] | None]) -> Draws | None:
    """Return how to sample a token for each row, on the host; None if all rows are greedy.

    Args:
        wanted: The parameters of each row's request, and the position of the token in its output;
            None for a greedy row.
    """
    rows = [_parameters(*want) if want else _LIKELIEST for want in wanted]
    if all(row == _LIKELIEST for row in rows):
        return None
    is_cut = any(row[1:4] != _ALL for row in rows)
    return Draws(torch.tensor(rows, dtype=torch.float64), is_cut)


def _parameters(sampling: Sampling, position: int) -> tuple[float, ...]:
    """Return a row of `Draws`."""
    if sampling.is_greedy:
        return _LIKELIEST
    margin = sampling.temperature * math.log(sampling.min_p) if sampling.min_p else -math.inf
    number = uniform(sampling.seed, position)
    return 1 / sampling.temperature, sampling.top_k, sampling.top_p, margin, number


def _choose(
    logits_RV: torch.Tensor, likeliest_R: torch.Tensor, draws: Draws | None
) -> torch.Tensor:
    """Return the token of each row, sampled as `draws` says; None takes the most likely."""
    if draws is None:
        return likeliest_R
    if logits_RV.device.type == "cpu":
        return draw_cpu(logits_RV, likeliest_R, draws)
    rows_R5 = draws.rows_R5.to(logits_RV.device)
    return draw(logits_RV, likeliest_R, replace(draws, rows_R5=rows_R5))


def _is_apart(sampling: Sampling) -> bool:
    """Return whether a token is sampled from adjusted or masked logits."""
    return sampling.changes_logits or sampling.form is not None


def _choose_changed(
    logits_V: torch.Tensor, request: Request, before: Sequence[int], allowed: bytes | None
) -> int | None:
    """Return the next token; None if its bad words exclude all tokens that are `allowed`."""
    output = [*request.output, *before] if before else request.output
    position, logits_1V = len(output), logits_V[None]
    adjustments = adjustments_of([SampledRow(request.counts, position, output)])
    if adjustments is not None:
        device = logits_V.device
        nothing_1 = torch.zeros(1, dtype=torch.int64, device=device)  # all of the output is known
        logits_1V = adjust(logits_1V, nothing_1, adjustments.to(device))
    if allowed is not None:
        logits_1V = only_allowed(logits_1V[0], allowed)[None]
    best_1 = likeliest(logits_1V)
    if request.sampling.bad_words and float(logits_1V[0, best_1[0]]) == -math.inf:
        return None
    return int(_choose(logits_1V, best_1, draws_of([(request.sampling, position)])))


def _logprobs(logits_V: torch.Tensor, token: int, request: Request) -> Logprobs | None:
    count = request.sampling.num_logprobs
    if count is None:
        return None
    form = logprobs_cpu if logits_V.device.type == "cpu" else logprobs
    token_1 = torch.tensor([token], device=logits_V.device)
    (row,) = form(logits_V[None], token_1, count).tolist()
    return logprobs_of(row, count)


def logprobs_of(row: Sequence[float], count: int) -> Logprobs:
    """Return the chosen and the first `count` top log-probabilities of a `kernels.logprobs` row."""
    size = len(row) // 2
    tokens = map(int, row[1 + size :])
    return Logprobs(row[0], list(zip(tokens, row[1 : 1 + size], strict=True))[:count])
