"""Seeded workloads: adapter, prompt and output length of each request."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

POPULARITIES = ("distinct", "uniform", "zipf", "skewed", "identical", "base")
"""Distributions of requests over adapters, by Punica's names (arXiv 2310.18547): distinct takes
adapters in turn, uniform at random, zipf by 1/rank, skewed by 1/rank**1.5; identical takes one,
base none.
"""


@dataclass(frozen=True, slots=True)
class Planned:
    """A request to send."""

    prompt: list[int]
    adapter: str | None
    max_tokens: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens."""

    text: str
    draw: Callable[[random.Random], int]


def parse_lengths(text: str) -> Lengths:
    """Parse a distribution: `64`, `32:256` (uniform) or `lognormal:100:0.5`.

    A lognormal distribution has its median and the standard deviation of the logarithm.

    Raises:
        ValueError: `text` is not a distribution.
    """
    parts = text.split(":")
    try:
        if parts[0] == "lognormal":
            median, sigma = math.log(float(parts[1])), float(parts[2])
            return Lengths(text, lambda rng: max(1, round(rng.lognormvariate(median, sigma))))
        low, high = int(parts[0]), int(parts[-1])
        if len(parts) <= 2 and 1 <= low <= high:
            return Lengths(text, lambda rng: rng.randint(low, high))
    except (ValueError, IndexError):
        pass
    raise ValueError(
        f"{text!r} is not a distribution; expected N, LOW:HIGH or lognormal:MEDIAN:SIGMA"
    )


def plan(
    num_requests: int,
    *,
    popularity: str,
    adapters: Sequence[str],
    prompt: Lengths,
    output: Lengths,
    vocab_size: int,
    seed: int = 0,
    priority: int = 0,
) -> list[Planned]:
    """Return `num_requests` requests, reproducibly.

    Args:
        num_requests: Number of requests.
        popularity: One of POPULARITIES.
        adapters: Names to choose from.
        prompt: Lengths of the prompts, whose tokens are random.
        output: Lengths of the completions.
        vocab_size: Upper bound of token ids.
        seed: Random seed.
        priority: Priority of all requests.

    Raises:
        ValueError: `popularity` is unknown, or needs adapters and there are none.
    """
    if popularity not in POPULARITIES:
        raise ValueError(f"popularity {popularity!r} is not one of {', '.join(POPULARITIES)}")
    if popularity != "base" and not adapters:
        raise ValueError(f"popularity {popularity!r} needs adapters, but there are none")
    rng = random.Random(f"{popularity}/{seed}")
    order = list(adapters)
    random.Random(seed).shuffle(order)  # popularity must not follow the order of names
    return [
        Planned(
            prompt=[rng.randrange(3, vocab_size) for _ in range(prompt.draw(rng))],
            adapter=_adapter(popularity, order, index, rng),
            max_tokens=output.draw(rng),
            priority=priority,
        )
        for index in range(num_requests)
    ]


def _adapter(popularity: str, order: list[str], index: int, rng: random.Random) -> str | None:
    match popularity:
        case "base":
            return None
        case "identical":
            return order[0]
        case "distinct":
            return order[index % len(order)]
        case "uniform":
            return rng.choice(order)
    exponent = 1.5 if popularity == "skewed" else 1.0
    weights = [1 / rank**exponent for rank in range(1, len(order) + 1)]
    return rng.choices(order, weights)[0]
