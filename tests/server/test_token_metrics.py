"""The series of tokens, as they are scraped."""

from prometheus_client import CollectorRegistry

from loramux_server.metrics.tokens import TokenMetrics


def scraped(metrics: TokenMetrics) -> dict[tuple[str, str, str], float]:
    """Return name, adapter and bound -> value, but for when series began."""
    registry = CollectorRegistry()
    registry.register(metrics)
    return {
        (sample.name, sample.labels["adapter"], sample.labels.get("le", "")): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def test_gaps_are_in_the_first_bucket_that_they_fit() -> None:
    metrics = TokenMetrics((0.25, 0.5))
    series = metrics.of("poet")
    series.add(num_tokens=3, num_gaps=2, gap=0.25)
    series.add(num_tokens=1, num_gaps=1, gap=0.375)
    series.add(num_tokens=4, num_gaps=4, gap=2.0)
    assert scraped(metrics) == {
        ("loramux_generated_tokens_total", "poet", ""): 8,
        ("loramux_inter_token_seconds_bucket", "poet", "0.25"): 2,
        ("loramux_inter_token_seconds_bucket", "poet", "0.5"): 3,
        ("loramux_inter_token_seconds_bucket", "poet", "+Inf"): 7,
        ("loramux_inter_token_seconds_count", "poet", ""): 7,
        ("loramux_inter_token_seconds_sum", "poet", ""): 8.875,
    }


def test_each_label_has_one_series_until_it_is_forgotten() -> None:
    metrics = TokenMetrics((1.0,))
    metrics.of("poet").add(2, 1, 0.5)
    metrics.of("clerk").add(1, 0, 0.0)
    metrics.of("poet").add(2, 2, 0.5)
    tokens = "loramux_generated_tokens_total"
    assert scraped(metrics)[tokens, "poet", ""] == 4
    assert scraped(metrics)[tokens, "clerk", ""] == 1
    metrics.forget("poet")
    metrics.forget("nobody")
    assert {adapter for _, adapter, _ in scraped(metrics)} == {"clerk"}
    assert metrics.of("poet").num_tokens == 0
