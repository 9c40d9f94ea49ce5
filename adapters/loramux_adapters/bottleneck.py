"""Bottleneck adapters, as the `adapters` library trains and saves them.

Methods: Houlsby et al. (arXiv 1902.00751), Pfeiffer et al. (arXiv 2005.00247) and He et al. (arXiv
2110.04366). Fields: `adapters.BnConfig`, version 1.3.

A two-layer network with a narrow middle is inserted between the output h of attention or of the MLP
and the residual sum with the input x. A sequential adapter reads h, or h + x; a parallel one reads
x. Where a norm follows the sum (post-norm), it reads the norm of h + x. In encoder-decoder models
both parts have them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.activations import activation
from loramux_adapters.bottleneck_sites import PLACES
from loramux_adapters.contents import Bottleneck, Contents, Edit, EditKind
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import (
    PREFIX,
    Fields,
    boolean,
    invalid,
    path_of,
    refuse_unsupported,
    text,
)
from loramux_adapters.tensorfile import TensorInfo

PEFT_TYPE = "BOTTLENECK"
"""`peft_type` in the config of a package; PEFT has no such method."""
FIELDS = Fields(
    honoured=frozenset({
        "peft_type", "non_linearity", "original_ln_before", "residual_before_ln", "ln_after",
        "adapter_residual_before_ln", "is_parallel", "scaling", "task_type", "head_activation",
    }),
    # The tensors' names and shapes tell more than the first six.
    recorded=frozenset({
        "mh_adapter", "output_adapter", "cross_adapter", "reduction_factor", "leave_out",
        "architecture", "dropout",
        "stochastic_depth", "init_weights", "init_weights_seed", "phm_dim", "factorized_phm_W",
        "shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range",
        "learn_phm", "hypercomplex_nonlinearity", "phm_rank", "phm_bias", "dtype",
        "inv_adapter_reduction_factor", "base_model_name_or_path", "library",
    }),
    refused={
        "original_ln_after": "the input would not be added to the output",
        "ln_before": "the library cannot save its norm as safetensors",
        "use_gating": "its gate is a mean over all tokens, including later ones",
        "phm_layer": "layers of Kronecker products are not supported",
        "inv_adapter": "adapters of the embedding are not supported",
    },
    harmless={"original_ln_after": (True,)},
)  # fmt: skip
_PART = re.compile(
    rf"{re.escape(PREFIX)}(?P<layer>.+?)\.(?P<place>{'|'.join(map(re.escape, PLACES))})"
    r"\.(?P<part>(?:adapter_|scaling|gate)[a-z0-9_.]*)"
)


@dataclass(frozen=True, slots=True)
class BottleneckConfig:
    """What a validated config says about every bottleneck of an adapter."""

    activation: str
    is_parallel: bool
    reads_sum: bool
    """Whether the network reads h + x, not h alone."""
    adds_sum: bool
    """Whether the network's input is added to its output, not h."""
    has_norm_after: bool
    adds_before_norm: bool
    """Whether the residual is added before the norm after the network."""
    scale: float | None
    """Factor of the network's output; None if it was learned."""
    base_model: str
    has_head: bool = False
    """Whether the adapter has a task type, so that there may be tensors of a head."""


def check_bottleneck(config: Mapping[str, object]) -> BottleneckConfig:
    """Return what `config` says: the fields of the library's config plus `peft_type`.

    Raises:
        PackageError: A field is malformed (reason INVALID_ADAPTER_CONFIG) or asks for something
            that is not supported (UNSUPPORTED_ADAPTER_FEATURE). The message names the field.
    """
    refuse_unsupported(config, FIELDS)
    scale = config.get("scaling", 1.0)
    if scale not in ("learned", "channel") and type(scale) not in (int, float):
        raise invalid("scaling", f"is {shown(scale)}; expected a number, 'learned' or 'channel'")
    before = config.get("residual_before_ln", True)
    if type(before) is not bool:
        raise invalid("residual_before_ln", f"is {shown(before)}; expected true or false")
    return BottleneckConfig(
        activation=activation(config.get("non_linearity"), "non_linearity"),
        is_parallel=boolean(config, "is_parallel"),
        reads_sum=boolean(config, "original_ln_before"),
        adds_sum=not before,
        has_norm_after=boolean(config, "ln_after"),
        adds_before_norm=boolean(config, "adapter_residual_before_ln"),
        scale=None if isinstance(scale, str) else float(scale),  # type: ignore[arg-type]
        base_model=text(config, "base_model_name_or_path"),
        has_head=bool(text(config, "task_type")),
    )


def bottleneck_contents(config: BottleneckConfig, tensors: Mapping[str, TensorInfo]) -> Contents:
    """Return the bottlenecks in `tensors`.

    Raises:
        PackageError: A tensor does not belong to one, is missing, or disagrees with another.
    """
    found: dict[tuple[str, str], dict[str, TensorInfo]] = {}
    edits: list[Edit] = []
    for tensor in tensors.values():
        name = _PART.fullmatch(tensor.name)
        if not name and config.has_head:
            # A parameter of a head of transformers' class; its module has no fixed name.
            module, _, parameter = path_of(tensor.name).rpartition(".")
            edits.append(Edit(module, EditKind.PARAMETER, tensor, parameter))
            continue
        if not name:
            raise PackageError(
                f"tensor {tensor.name} is not supported; expected the parts of a bottleneck, such "
                f"as '….{PLACES[0]}.adapter_up.weight'",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        found.setdefault((name["layer"], name["place"]), {})[name["part"]] = tensor
    return Contents(
        bottlenecks=[
            _bottleneck(config, layer, place, parts)
            for (layer, place), parts in sorted(found.items())
        ],
        edits=sorted(edits, key=lambda edit: edit.tensor.name),
    )


def _bottleneck(
    config: BottleneckConfig, layer: str, place: str, parts: dict[str, TensorInfo]
) -> Bottleneck:
    where = f"{layer}.{place}"
    wanted = {"down": "adapter_down.0", "up": "adapter_up"}
    if config.has_norm_after:
        wanted["norm"] = "adapter_norm_after"
    taken = {}
    for ours, theirs in wanted.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" not in parts:
                raise PackageError(f"module {where} has no {theirs}.{kind}")
            taken[f"{ours}.{kind}"] = parts[f"{theirs}.{kind}"]
    if config.scale is None:
        if "scaling" not in parts:
            raise PackageError(f"module {where} has no scaling")
        taken["scaling"] = parts["scaling"]
    for tensor in parts.values():
        if tensor not in taken.values():
            raise PackageError(
                f"tensor {tensor.name} is not part of the bottleneck in adapter_config.json",
                "INVALID_ADAPTER_CONFIG",
            )
    _check_shapes(where, taken)
    return Bottleneck(layer, place, taken)


def _check_shapes(where: str, parts: Mapping[str, TensorInfo]) -> None:
    shape = parts["down.weight"].shape
    if len(shape) != 2:
        raise PackageError(f"tensor {parts['down.weight'].name}: shape {shown(shape)} is not 2-D")
    narrow, wide = shape
    for name, tensor in parts.items():
        fitting: tuple[tuple[int, ...], ...] = ((wide,),)
        if name == "down.weight":
            fitting = (shape,)
        elif name == "down.bias":
            fitting = ((narrow,),)
        elif name == "up.weight":
            fitting = ((wide, narrow),)
        elif name == "scaling":
            fitting = ((1,), (wide,))
        if tensor.shape not in fitting:
            raise PackageError(
                f"module {where}: tensor {tensor.name} has shape {shown(tensor.shape)}; with "
                f"{shown(shape)} of the first layer, expected {' or '.join(map(shown, fitting))}"
            )
