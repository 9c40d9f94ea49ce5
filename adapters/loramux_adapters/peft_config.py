"""PEFT's `adapter_config.json` for LoRA: every field is honoured or refused by name.

Fields follow `peft.LoraConfig`, PEFT 0.21.
"""

from collections.abc import Mapping

from loramux_adapters.errors import shown
from loramux_adapters.experts import PARAMETERS, ROUTER_WEIGHTS
from loramux_adapters.fields import (
    Fields,
    alpha,
    boolean,
    integer,
    invalid,
    layers,
    mapping,
    names,
    refuse_unsupported,
    text,
    unsupported,
)
from loramux_adapters.lora_config import Bias, LoraConfig
from loramux_adapters.pattern import Pattern
from loramux_adapters.pattern_code import Steps
from loramux_adapters.saved import saved_names
from loramux_adapters.targets import Keyed, layer_names, named
from loramux_adapters.trainable_tokens import token_indices

MAX_RANK = 512
MAX_SCALE = 1000.0
MAX_INVOCATION = 1024
MAX_TOKEN = (1 << 31) - 1

FIELDS = Fields(
    honoured=frozenset({
        "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "use_dora",
        "bias", "lora_bias", "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
        "alora_invocation_tokens", "task_type", "target_parameters",
    }),
    # `fan_in_fan_out` matters to PEFT only for merging, and the configs of initializations only
    # before training. `merge_weights` of PEFT 0.1 and 0.2 says whether the update is merged into
    # the base outside of training, which changes neither the result nor what is saved.
    # `auto_mapping` and `megatron_core` name Python modules: nothing here ever imports one.
    recorded=frozenset({
        "peft_version", "base_model_name_or_path", "revision", "auto_mapping",
        "inference_mode", "lora_dropout", "fan_in_fan_out", "loftq_config", "eva_config",
        "corda_config", "lora_ga_config", "runtime_config", "megatron_core", "qalora_group_size",
        "merge_weights",
    }),
    refused={
        "init_lora_weights": "the adapter starts from the base, whose weights PEFT changes again "
        "at each load: `loramux pack --base` converts pissa and olora to a plain LoRA; save others "
        "with path_initial_model_for_weight_conversion, as a LoRA of its own; for loftq, save and "
        "serve the base that it rounded, and set init_lora_weights to true",
        "layer_replication": "it repeats layers of the base: replicate them in the base's own "
        "checkpoint",
        "megatron_config": "layers of Megatron are not those of transformers",
        "use_qalora": "it averages the inputs of groups of weights; merge it into a quantized base",
        "velora_config": "its result depends on how it was trained",
        "monteclora_config": "its weights are drawn anew for each request",
        "use_bdlora": "pack the adapter with `loramux pack`, which fills in the zeros around its "
        "blocks",
        "arrow_config": "it chooses among adapters by the hidden state of each token",
        "kasa_config": "it needs the singular values of the base at each load",
    },
    # Other initializations take the initial factors from the base, whose weights PEFT changes
    # again at each load.
    harmless={"init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica")},
)  # fmt: skip


def check_config(config: Mapping[str, object]) -> LoraConfig:
    """Validate `config`, a parsed `adapter_config.json` of a LoRA.

    Raises:
        PackageError: A field is malformed (reason INVALID_ADAPTER_CONFIG) or asks for something
            unsupported (UNSUPPORTED_ADAPTER_FEATURE). The message names the field.
    """
    refuse_unsupported(config, FIELDS)
    rank = integer(config, "r", 8, 1, MAX_RANK)
    ranks = mapping(config, "rank_pattern")
    alphas = mapping(config, "alpha_pattern")
    targets = config.get("target_modules")
    steps = Steps()
    checked = LoraConfig(
        rank=rank,
        alpha=alpha(config.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=boolean(config, "use_rslora"),
        ranks=Keyed.read(
            "rank_pattern",
            {
                key: integer(ranks, key, rank, 1, MAX_RANK, f"rank_pattern[{shown(key)}]")
                for key in ranks
            },
            steps,
        ),
        alphas=Keyed.read(
            "alpha_pattern",
            {key: alpha(value, f"alpha_pattern[{shown(key)}]") for key, value in alphas.items()},
            steps,
        ),
        target_modules=None if targets == "all-linear" else named(config, "target_modules", steps),
        exclude_modules=named(config, "exclude_modules", steps),
        layers=layers(config.get("layers_to_transform")),
        layers_pattern=layer_names(config, steps),
        base_model=text(config, "base_model_name_or_path"),
        use_dora=boolean(config, "use_dora"),
        lora_bias=boolean(config, "lora_bias"),
        bias=_bias(config),
        saved=saved_names(config),
        tokens=token_indices(config),
        ensures_tying=boolean(config, "ensure_weight_tying"),
        parameters=_parameters(config),
        invocation=_invocation(config),
    )
    if isinstance(checked.target_modules, Pattern) and checked.layers is not None:
        value = config["layers_to_transform"]
        raise invalid(
            "layers_to_transform",
            f"is {shown(value)}; PEFT does not accept it with an expression in target_modules",
        )
    if checked.target_modules == frozenset() and not checked.parameters:
        raise invalid("target_modules", "is empty; name the modules that the adapter changes")
    return checked


def _parameters(config: Mapping[str, object]) -> frozenset[str]:
    """Return the suffixes of the names of adapted parameters; all are of mixtures of experts."""
    name = "target_parameters"
    found = names(config, name)
    for parameter in found:
        last = parameter.split(".")[-2:]
        if last[-1] not in PARAMETERS and ".".join(last) not in ROUTER_WEIGHTS:
            wanted = ", ".join(repr(str(each)) for each in (*PARAMETERS, *ROUTER_WEIGHTS))
            raise unsupported(
                name, parameter, f"expected parameters of mixtures of experts: {wanted}"
            )
        if config.get("use_dora") or config.get("lora_bias"):
            raise unsupported(name, parameter, "PEFT adapts parameters with A and B only")
    return frozenset(found)


def _invocation(config: Mapping[str, object]) -> tuple[int, ...]:
    """Return the tokens that activate the adapter; empty if it is always active."""
    name = "alora_invocation_tokens"
    value = config.get(name) or []
    if not isinstance(value, list) or len(value) > MAX_INVOCATION:
        raise invalid(
            name, f"is {shown(value)}; expected a list of at most {MAX_INVOCATION} tokens"
        )
    for token in value:
        if type(token) is not int or not 0 <= token <= MAX_TOKEN:
            raise invalid(name, f"has {shown(token)}; expected a token id from 0 to {MAX_TOKEN}")
    if not value:
        return ()
    if config.get("use_dora"):
        raise unsupported("use_dora", True, f"PEFT does not combine it with {name}")
    task = config.get("task_type")
    if task != "CAUSAL_LM":
        # For other tasks, PEFT does not look for the tokens, and the adapter is never active.
        raise unsupported("task_type", task, f"{name} needs 'CAUSAL_LM'")
    return tuple(value)


def _bias(config: Mapping[str, object]) -> Bias:
    value = config.get("bias") or Bias.NONE
    if not isinstance(value, str) or value not in set(Bias):
        wanted = ", ".join(repr(str(bias)) for bias in Bias)
        raise invalid("bias", f"is {shown(value)}; expected one of {wanted}")
    return Bias(value)
