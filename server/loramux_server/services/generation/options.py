"""Effective options of a request: its own, then its adapter's and the base model's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass

from loramux.v1 import generation_pb2
from loramux_server.forms.form import Form, FormKind
from loramux_server.reasoning.thinking import Thinking
from loramux_server.services.generation.beam_fields import (
    beams_of,
    is_search,
    searched,
    searching_defaults,
)
from loramux_server.services.generation.beams import BeamOptions
from loramux_server.services.generation.defaults import used, with_defaults
from loramux_server.services.generation.forms import form_of
from loramux_server.services.generation.prepared import Prepared
from loramux_server.services.generation.prompt_logprobs import check_prompt_logprobs
from loramux_server.services.generation.sampling import (
    DEFAULT_MAX_TOKENS,
    TextOptions,
    samplings,
    text_options,
)
from loramux_server.services.resolved_adapters import ResolvedAdapters
from loramux_server.wire.model_info import ModelInfo
from loramux_server.wire.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Options:
    """A request's options, completed and checked."""

    samplings: list[Sampling]
    """Sampling settings of each completion."""
    used: generation_pb2.SamplingParams
    """The effective parameters, as reported in the answer."""
    text: TextOptions
    form: Form | None
    """The form of each completion; None for free text."""
    thinking: Thinking | None
    """How reasoning is separated from the answer; None if it is not."""
    beams: BeamOptions | None
    """Options of the beam search; None if there is none."""
    is_open: bool = False
    """Whether no length was given, so that only the context limits the completions."""

    @property
    def num_expected(self) -> int:
        """Tokens to reserve from the quota for all completions together, or for a search.

        The maximum; for completions without a given length, at most the default of a text, since
        few answers are nearly as long as a context.
        """
        if self.beams:
            return self.beams.most_tokens
        most = [sampling.max_tokens for sampling in self.samplings]
        return sum(min(each, DEFAULT_MAX_TOKENS) if self.is_open else each for each in most)


def options_of(
    request: generation_pb2.GenerateRequest,
    prepared: Prepared,
    *,
    model: ModelInfo,
    adapters: ResolvedAdapters,
    defaults: Mapping[str, object],
) -> Options:
    """Return the effective options of `request`, whose fields are checked.

    Args:
        request: The request.
        prepared: Its prompt.
        model: The base model.
        adapters: Those of the request.
        defaults: Defaults of its adapter, which precede those of the base model.

    Raises:
        LoramuxError: This model or adapter does not support it, or it does not fit the context.
    """
    form, thinking = _form(request, prepared, model)
    defaults = searching_defaults(request.sampling, defaults, model.generation)
    params = searched(with_defaults(request.sampling, defaults, model, form, prepared.end_token))
    num_virtual = adapters.source.virtual_tokens if adapters.source else 0
    num_before = prepared.num_decoder_prompt
    if num_before and adapters.source and adapters.source.has_cache:
        # Prefix tuning puts keys and values before the decoder's tokens, prompt tuning puts
        # embeddings before the source.
        num_before, num_virtual = num_before + num_virtual, 0
    is_chat = bool(request.messages) and not is_search(params)
    chosen = samplings(
        params,
        prepared.num_prompt,
        model,
        defaults,
        num_virtual=num_virtual,
        num_image_tokens=prepared.num_image_tokens,
        num_decoder_prompt=num_before,
        fills_context=is_chat,
        form=form,
        bad_words=prepared.bad_words,
    )
    check_prompt_logprobs(params, prepared.num_prompt)
    return Options(
        samplings=chosen,
        used=used(params, chosen),
        text=text_options(params),
        form=form,
        thinking=thinking,
        beams=beams_of(params, chosen[0], model, adapters.vocab_size, prepared.num_decoder_prompt),
        is_open=is_chat and not (params.HasField("max_tokens") or "max_tokens" in defaults),
    )


def _form(
    request: generation_pb2.GenerateRequest, prepared: Prepared, model: ModelInfo
) -> tuple[Form | None, Thinking | None]:
    """Return the form of a completion, and how reasoning is separated in it."""
    tool_use, thinking = prepared.tool_use, prepared.thinking
    form = tool_use.form(request, model) if tool_use else form_of(request.sampling)
    if not (form and thinking):
        return form, thinking
    # A grammar describes the whole completion.
    if form.kind is FormKind.GRAMMAR or thinking.has_own_tokens:
        return form, None
    return thinking.before(form), thinking
