"""Validation of beam search parameters, and what cannot be combined with them."""

from collections.abc import Iterator, Mapping

from loramux.errors import FailedPreconditionError
from loramux.v1 import generation_pb2
from loramux_adapters.errors import shown
from loramux_server.field_errors import invalid
from loramux_server.services.generation.beams import BeamOptions
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import Sampling

MAX_BEAMS = 10
MAX_LENGTH_PENALTY = 10.0

_DRAWS = ("temperature", "top_k", "top_p", "min_p")
"""Sampling parameters, which a search does not use: as in transformers, their defaults are
ignored."""
_PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Penalty -> its neutral value."""


def is_search(params: generation_pb2.SamplingParams) -> bool:
    """Return whether `params` ask for beam search."""
    return params.num_beams > 1


def check_beams(request: generation_pb2.GenerateRequest) -> None:
    """Check the beam search parameters of `request`, if it has any.

    Raises:
        InvalidArgumentError: One is invalid; the message names the field, its value and what would
            be right.
    """
    params = request.sampling
    if params.HasField("num_beams") and not 1 <= params.num_beams <= MAX_BEAMS:
        raise invalid("sampling.num_beams", params.num_beams, f"an integer from 1 to {MAX_BEAMS}")
    for name in ("length_penalty", "early_stopping"):
        if params.HasField(name) and not params.HasField("num_beams"):
            raise invalid(f"sampling.{name}", getattr(params, name), "none without num_beams")
    # Written so that NaN fails.
    if not -MAX_LENGTH_PENALTY <= params.length_penalty <= MAX_LENGTH_PENALTY:
        expected = f"a number from -{MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}"
        raise invalid("sampling.length_penalty", params.length_penalty, expected)
    if not is_search(params):
        return
    if params.n > params.num_beams:
        raise invalid("sampling.n", params.n, f"at most num_beams, {params.num_beams}")
    for field, value, expected in _conflicts(request):
        raise invalid(field, value, f"{expected} with num_beams, {params.num_beams}")


def searching_defaults(
    params: generation_pb2.SamplingParams,
    defaults: Mapping[str, object],
    of_base: Mapping[str, object],
) -> Mapping[str, object]:
    """Return the generation defaults that apply to `params`, with or without beam search.

    Args:
        params: The request's parameters.
        defaults: Those of the adapter.
        of_base: Those of the base model, for what the adapter leaves open. Its penalties do not
            apply to a search: nobody chose them for this request.

    Raises:
        FailedPreconditionError: The adapter's default stop strings are not supported by beam
            search.
    """
    if not is_search(params):
        return {**of_base, **defaults}
    if defaults.get("stop"):
        raise FailedPreconditionError(
            f"the adapter has the stop strings {shown(defaults['stop'])}, which beam search does "
            "not support; omit num_beams",
            reason="UNSUPPORTED_ADAPTER_FEATURE",
            field="sampling.num_beams",
        )
    kept = {name: value for name, value in of_base.items() if name not in _PENALTIES}
    return {name: value for name, value in {**kept, **defaults}.items() if name not in _DRAWS}


def searched(params: generation_pb2.SamplingParams) -> generation_pb2.SamplingParams:
    """Return `params` as a beam search needs them, if they ask for one.

    They include the adapter's defaults.

    Raises:
        InvalidArgumentError: A penalty among the adapter's defaults is not supported, and the
            request does not override it.
    """
    if not is_search(params):
        return params
    for name, neutral in _PENALTIES.items():
        value = getattr(params, name)
        if params.HasField(name) and value != neutral:  # type: ignore[arg-type]
            expected = f"{neutral:g} with num_beams; set it to override the adapter's default"
            raise invalid(f"sampling.{name}", value, expected)
    filled = generation_pb2.SamplingParams(length_penalty=1.0, early_stopping=False)
    filled.MergeFrom(params)
    filled.temperature = 0.0
    return filled


def beams_of(
    params: generation_pb2.SamplingParams,
    sampling: Sampling,
    model: ModelInfo,
    own_vocab_size: int,
    num_decoder_prompt: int = 0,
) -> BeamOptions | None:
    """Return the options of the beam search; None if there is none.

    Args:
        params: The effective parameters.
        sampling: The sampling settings derived from them.
        model: The base model.
        own_vocab_size: Vocabulary size with the adapter; 0 if it is the base's.
        num_decoder_prompt: Tokens of an encoder-decoder's decoder prompt.

    Raises:
        InvalidArgumentError: There are fewer tokens that do not end a completion than beams.
    """
    if not is_search(params):
        return None
    ends = sampling.stop_token_ids | frozenset(() if sampling.ignore_eos else model.eos_token_ids)
    forbidden = frozenset(model.writing.forbidden if model.writing else ())
    most = (own_vocab_size or model.vocab_size) - len(ends | forbidden)
    if params.num_beams > most:
        expected = f"at most {most}, the number of tokens that do not end a text"
        raise invalid("sampling.num_beams", params.num_beams, expected)
    return BeamOptions(
        num_beams=params.num_beams,
        max_tokens=sampling.max_tokens,
        ends=ends,
        forbidden=forbidden,
        min_tokens=sampling.min_tokens,
        # transformers takes a single token after the decoder's start token for a forced one, which
        # counts as generated.
        num_forced=1 if num_decoder_prompt == 2 else 0,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
    )


def _conflicts(
    request: generation_pb2.GenerateRequest,
) -> Iterator[tuple[str, object, str]]:
    """Yield each field that beam search does not support, its value, and what would be right."""
    params = request.sampling
    if params.temperature:
        yield "sampling.temperature", params.temperature, "0 or none"
    if params.top_k > 0:
        yield "sampling.top_k", params.top_k, "0 or none"
    if params.HasField("top_p") and params.top_p != 1.0:
        yield "sampling.top_p", params.top_p, "1 or none"
    if params.min_p:
        yield "sampling.min_p", params.min_p, "0 or none"
    for name, neutral in _PENALTIES.items():
        if params.HasField(name) and getattr(params, name) != neutral:  # type: ignore[arg-type]
            yield f"sampling.{name}", getattr(params, name), f"{neutral:g} or none"
    for name in ("logprobs", "prompt_logprobs"):
        if params.HasField(name):  # type: ignore[arg-type]
            yield f"sampling.{name}", getattr(params, name), "none"
    if params.logit_bias:
        yield "sampling.logit_bias", dict(params.logit_bias), "none"
    if params.bad_words:
        yield "sampling.bad_words", list(params.bad_words), "none"
    if params.stop:
        yield "sampling.stop", list(params.stop), "none (stop_token_ids are supported)"
    if params.HasField("structured_output"):
        yield "sampling.structured_output", params.structured_output.WhichOneof("form"), "none"
    if request.tools:
        yield "tools", [tool.name for tool in request.tools], "none"
    if request.prediction:
        yield "prediction", request.prediction, "none"
    if request.prediction_token_ids:
        yield "prediction_token_ids", list(request.prediction_token_ids[:8]), "none"
