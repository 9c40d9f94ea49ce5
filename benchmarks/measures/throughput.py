"""Output tokens per second with adapters, compared with fewer or none, by round."""

from collections.abc import Callable
from functools import partial

from benchmarks import load
from benchmarks.setting import AdapterSet, Setting, small_adapters

MIXED_RANKS = (8, 16, 32, 64)
DISTINCT = 32
FEW = 5


def distinct(setting: Setting) -> list[float]:
    """Measure 32 adapters of rank 16 in one batch, ÷ the base alone."""
    return _over_base(setting, AdapterSet(DISTINCT), "distinct", DISTINCT)


def mixed(setting: Setting) -> list[float]:
    """Measure 32 adapters of four different ranks in one batch, ÷ the base alone."""
    return _over_base(setting, AdapterSet(DISTINCT, MIXED_RANKS), "distinct", DISTINCT)


def one(concurrency: int) -> Callable[[Setting], list[float]]:
    """Measure `concurrency` requests for one adapter of rank 16, ÷ the base alone."""
    return partial(
        _over_base, adapters=AdapterSet(DISTINCT), popularity="identical", concurrency=concurrency
    )


def dora(setting: Setting) -> list[float]:
    """Measure 32 DoRA adapters of rank 16 in one batch, ÷ as many of LoRA."""
    return _over_other(
        setting, AdapterSet(DISTINCT, use_dora=True), AdapterSet(DISTINCT), "distinct"
    )


def tokens(setting: Setting) -> list[float]:
    """Measure 32 adapters of rank 16 with trained tokens in one batch, ÷ as many without."""
    return _over_other(
        setting, AdapterSet(DISTINCT, num_tokens=4), AdapterSet(DISTINCT), "distinct"
    )


def saved(setting: Setting) -> list[float]:
    """Measure 32 adapters of rank 16, one with saved embeddings, in one batch, ÷ without."""
    return _over_other(setting, AdapterSet(DISTINCT, num_saved=1), AdapterSet(DISTINCT), "distinct")


def many(registered: int) -> Callable[[Setting], list[float]]:
    """Measure zipf over `registered` adapters, with those requested loaded, ÷ zipf over five."""
    return partial(
        _over_other, adapters=small_adapters(registered), other=small_adapters(FEW),
        popularity="zipf",
    )  # fmt: skip


def _over_other(
    setting: Setting, adapters: AdapterSet, other: AdapterSet, popularity: str
) -> list[float]:
    # Both run all the time, but only one of them has work at a time.
    with (
        setting.serving(adapters, "--no-prefix-cache") as first,
        setting.serving(other, "--no-prefix-cache") as second,
    ):
        ratios = []
        for seed in range(setting.repeats):
            speeds = []
            for each, server in ((adapters, first), (other, second)):
                requests = setting.requests(popularity, setting.names(each), DISTINCT, seed)
                load.touch(server.target, requests)
                report = load.run(server.target, requests, DISTINCT)
                speeds.append(report.output_tokens_per_second)
            ratios.append(speeds[0] / speeds[1])
    return ratios


def _over_base(
    setting: Setting, adapters: AdapterSet, popularity: str, concurrency: int
) -> list[float]:
    names = setting.names(adapters)
    with setting.serving(adapters, "--no-prefix-cache") as server:
        ratios = []
        for seed in range(setting.repeats):
            speeds = []
            for kind in (popularity, "base"):
                requests = setting.requests(kind, names, concurrency, seed)
                load.touch(server.target, requests)
                report = load.run(server.target, requests, concurrency)
                speeds.append(report.output_tokens_per_second)
            ratios.append(speeds[0] / speeds[1])
    return ratios
