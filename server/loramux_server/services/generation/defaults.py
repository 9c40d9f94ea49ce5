"""Generation defaults of the adapter or the base model, for what a request leaves open."""

from collections.abc import Mapping, Sequence

from loramux.v1 import generation_pb2
from loramux_adapters.generation import INTEGERS, LISTS, NUMBERS, TOKENS
from loramux_server.forms.form import Form
from loramux_server.services.generation.forms import ENDS
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import Sampling

_CLIPPED = ("max_tokens", "min_tokens", "top_k")
"""Defaults that are clipped to what the request and the base model allow."""


def with_defaults(
    params: generation_pb2.SamplingParams,
    defaults: Mapping[str, object],
    model: ModelInfo,
    form: Form | None,
    end_token: int | None = None,
) -> generation_pb2.SamplingParams:
    """Return `params`, completed by generation defaults.

    `max_tokens` is left to `samplings`, which knows how much room the context has. A `form` defines
    where the text ends; without one, `end_token`, if there is one, also ends it, unless
    `ignore_eos` is set.
    """
    if form:
        defaults = {name: value for name, value in defaults.items() if name not in ENDS}
    ends = [] if form or params.ignore_eos or end_token is None else [end_token]
    if not (defaults or ends):
        return params
    merged = generation_pb2.SamplingParams()
    for name, value in defaults.items():
        if name in LISTS:
            getattr(merged, name).extend([] if getattr(params, name) else value)
        elif name not in _CLIPPED and name not in TOKENS:
            setattr(merged, name, value)
    merged.MergeFrom(params)
    top_k, min_tokens = defaults.get("top_k"), defaults.get("min_tokens")
    if isinstance(top_k, int) and not params.HasField("top_k"):
        merged.top_k = min(top_k, model.vocab_size)
    if isinstance(min_tokens, int) and not params.HasField("min_tokens"):
        most = params.max_tokens if params.HasField("max_tokens") else model.output_length
        merged.min_tokens = min(min_tokens, most)
    merged.stop_token_ids.extend(token for token in ends if token not in merged.stop_token_ids)
    return merged


def used(
    params: generation_pb2.SamplingParams, chosen: Sequence[Sampling]
) -> generation_pb2.SamplingParams:
    """Return the effective parameters of completions: `params`, with values from `chosen`."""
    first = chosen[0]
    result = generation_pb2.SamplingParams()
    result.CopyFrom(params)
    for name in (*INTEGERS, *NUMBERS, "seed"):
        setattr(result, name, getattr(first, name))
    result.n = len(chosen)
    if not result.HasField("skip_special_tokens"):
        result.skip_special_tokens = True
    return result
