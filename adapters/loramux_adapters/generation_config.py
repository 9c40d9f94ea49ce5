"""transformers' `generation_config.json`: every field is honoured or refused by name.

Semantics follow `transformers.GenerationConfig`, transformers 5. Only what the file states counts:
`generate` of transformers fills in a `top_k` of 50, which is not done here. Without `do_sample`,
the file's temperature is used as it is.

In a base model's folder the file is read as vLLM reads it (`base_defaults_of`): many such files ask
for unsupported features, and their models are served nevertheless.
"""

from collections.abc import Mapping

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.generation import check_generation

FILE = "generation_config.json"
MAX_BYTES = 64 << 10

HONOURED: Mapping[str, str] = {
    "do_sample": "",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "decoder_start_token_id": "decoder_start_token_id",
    "forced_bos_token_id": "forced_bos_token_id",
}
"""Field -> name of the default that it sets; `do_sample` false sets a temperature of 0."""
_DRAWS = ("temperature", "top_k", "top_p", "min_p")
"""Defaults that have no meaning without sampling."""

RECORDED = frozenset({
    "transformers_version", "_from_model_config", "bos_token_id", "pad_token_id",
    "use_cache", "cache_implementation", "cache_config", "max_cache_len",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "compile_config", "disable_compile", "continuous_batching_config",
    "low_memory", "prefill_chunk_size", "renormalize_logits", "remove_invalid_values",
    "early_stopping", "length_penalty", "use_mtp", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "speculation_type",
})  # fmt: skip
"""Fields that do not change the tokens generated for one prompt without beams: left out."""

_OFF: Mapping[str, tuple[object, ...]] = {
    "max_length": (20,),  # saved by transformers 4 where nothing was set
    "min_length": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "token_healing": (False,),
}
"""Values of refused fields, other than null, that change nothing."""

REFUSED = frozenset({
    "max_time", "top_h", "bad_words_ids", "forced_eos_token_id",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "sequence_bias", "watermarking_config", "assistant_ensemble_weight", "dola_layers",
    "constraints", "force_words_ids", *_OFF,
})  # fmt: skip
"""Unsupported fields that would change the result: refused unless off."""


OF_BASES = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "max_new_tokens",
)  # fmt: skip
"""Fields of a base model's file that become defaults: those that vLLM 0.32 uses.

The two penalties are not transformers fields, but files for vLLM have them.
"""
_ELSEWHERE = frozenset({
    "do_sample", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
})  # fmt: skip
"""Fields of that file that are read when the model is loaded, or change nothing by themselves."""


def base_defaults_of(config: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Return the defaults that a base model's generation config sets.

    `do_sample` false sets a temperature of 0, as for adapters; vLLM ignores it. If it is missing,
    the numbers are used as they are, like in vLLM, though transformers would not sample.

    Returns:
        Defaults by name, and the sorted fields that would change results but are not applied.

    Raises:
        PackageError: A field has an invalid value; the message names it.
    """
    found = {
        HONOURED.get(field, field): config[field]
        for field in OF_BASES
        if config.get(field) is not None
    }
    if config.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name not in _DRAWS}
        found["temperature"] = 0.0
    changing = ("min_new_tokens", "stop_strings", *REFUSED)
    left_out = [
        field
        for field in changing
        if field not in _ELSEWHERE
        and config.get(field) is not None
        and config[field] not in _OFF.get(field, (0, [], ""))
    ]
    return dict(check_generation(found, FILE)), sorted(left_out)


def defaults_of(config: Mapping[str, object]) -> dict[str, object]:
    """Return the generation defaults that `config`, a parsed `generation_config.json`, sets.

    Raises:
        PackageError: A field is malformed (reason INVALID_ADAPTER_CONFIG) or asks for something
            unsupported (UNSUPPORTED_ADAPTER_FEATURE). The message names the field.
    """
    for field, value in config.items():
        is_known = field in HONOURED or field in RECORDED
        if not is_known and value is not None and value not in _OFF.get(field, ()):
            why = "is not supported" if field in REFUSED else "is not a known field"
            raise PackageError(
                f"{FILE}: {shown(field)} = {shown(value)} {why}; remove it from the file, or pack "
                "without the file (--generation-config none)",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
    samples = config.get("do_sample")
    if samples is not None and type(samples) is not bool:
        raise PackageError(
            f"{FILE}: do_sample is {shown(samples)}; expected true or false",
            "INVALID_ADAPTER_CONFIG",
        )
    found = {
        name: config[field]
        for field, name in HONOURED.items()
        if name and config.get(field) is not None
    }
    for name in ("stop", "stop_token_ids"):
        if name in found and not isinstance(found[name], list):
            found[name] = [found[name]]
    if samples is False:
        for name in _DRAWS:
            found.pop(name, None)
        found["temperature"] = 0.0
    return dict(check_generation(found, FILE))
