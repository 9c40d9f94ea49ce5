"""How a base was quantized before it was saved, by the quantization_config of its config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig

from loramux_server.models.dequantize import awq, gptq, packed

_SUPPORTED = (
    f"FP8, GPTQ ({', '.join(map(str, gptq.BITS))} bits), AWQ ({awq.FORMAT}), compressed-tensors "
    "(float-, int- and pack-quantized), MXFP4, torchao and bitsandbytes"
)
BY_TRANSFORMERS = ("torchao", "bitsandbytes", "mxfp4")
_OLDEST = "bitsandbytes"
"""Its early configs have no quant_method."""
_WAY_OUT = "or serve the unquantized model with --quantization"
_USUAL_BLOCK = (128, 128)
"""FP8's block size if the config does not say."""
_COMPRESSED = (
    "float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mixed-precision",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SavedMethod:
    """How weights were quantized."""

    name: str
    """Its quant_method, such as gptq."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The quantization_config."""

    @property
    def is_dequantized_here(self) -> bool:
        """Whether weights are dequantized by this package, and not by transformers."""
        return self.name not in BY_TRANSFORMERS

    @property
    def title(self) -> str:
        """Its name for messages."""
        bits = self.config.get("bits", self.config.get("w_bit"))
        what = self.config.get("format", "") if self.name == "compressed-tensors" else ""
        return " ".join(
            each for each in (self.name, what, "" if bits is None else f"of {bits} bits") if each
        )

    @property
    def group_size(self) -> int | None:
        """Inputs that share a scale; None if the config does not say, or differs between layers."""
        sizes = {self.config.get("group_size", self.config.get("q_group_size"))}
        sizes |= {weights.get("group_size") for weights in self._weights()}
        sizes.discard(None)
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def block(self) -> tuple[int, int] | None:
        """Outputs and inputs that share a scale, if weights are quantized in blocks.

        Raises:
            ValueError: The config has several block sizes, or an impossible one.
        """
        usual = _USUAL_BLOCK if self.name == "fp8" else None
        found = [self.config.get("weight_block_size", usual)]
        found += [weights.get("block_structure") for weights in self._weights()]
        # Earlier versions of compressed-tensors wrote "128x128".
        parts = [each.split("x") if isinstance(each, str) else each for each in found if each]
        blocks = {tuple(map(int, block)) for block in parts}
        if len(blocks) > 1:
            raise ValueError(
                f"its quantization_config has blocks of {' and '.join(map(str, blocks))}, but only "
                "one block size is supported"
            )
        for block in blocks:
            if len(block) != 2 or min(block) < 1:
                raise ValueError(
                    f"its quantization_config has blocks of {list(block)}; expected two sizes "
                    "of at least 1"
                )
            return block[0], block[1]
        return None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the method's own kernels, if config.json does not say."""
        return torch.float16 if self.name in ("gptq", "awq") else torch.bfloat16

    def _weights(self) -> list[Mapping[str, Any]]:
        """Return compressed-tensors' settings of weights, for each group of layers."""
        groups = self.config.get("config_groups") or {}
        return [group.get("weights") or {} for group in groups.values()]


def saved_method(config: PreTrainedConfig) -> SavedMethod | None:
    """Return how the base of `config` was quantized before it was saved; None if it was not.

    Raises:
        ValueError: The method is not supported.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        found = getattr(config.get_text_config(), "quantization_config", None)
    if found is None:
        return None
    config = found if isinstance(found, dict) else found.to_dict()
    name = config.get("quant_method", _OLDEST)
    method = SavedMethod(str(getattr(name, "value", name)), config)
    if method.name in BY_TRANSFORMERS:
        return method
    check = _CHECKS.get(method.name)
    if check is None:
        raise ValueError(
            f"it was saved with quant_method {method.name!r}, which is not supported. Use one of "
            f"{_SUPPORTED}, {_WAY_OUT}"
        )
    try:
        check(config)
        _ = method.block, method.group_size
    except (AttributeError, TypeError) as error:
        raise ValueError(f"its quantization_config is malformed: {error}") from None
    return method


def check_unquantized(unexpected: Mapping[str, object] | set[str]) -> None:
    """Check that no tensor that the model did not use belongs to a quantized weight.

    Raises:
        ValueError: One does.
    """
    for name in sorted(unexpected):
        if name.endswith(QUANTIZED):
            raise ValueError(
                f"it has {name}, so its weights are quantized, but its config.json has no "
                "quantization_config: add the one that it was published with"
            )


QUANTIZED = (
    ".qweight", ".qzeros", ".scales", ".weight_scale", ".weight_scale_inv", ".weight_packed",
    ".weight_zero_point", ".weight_global_scale",
)  # fmt: skip
"""Name suffixes that only tensors of quantized weights have."""


def _check_fp8(config: Mapping[str, Any]) -> None:
    fmt = str(config.get("fmt", "e4m3"))
    _expect("fmt", fmt, fmt in ("e4m3", "float8_e4m3fn", "e5m2"), "e4m3")


def _check_modelopt(config: Mapping[str, Any]) -> None:
    algorithm = config.get("quant_algo")
    _expect("quant_algo", algorithm, algorithm == "FP8", "FP8")


def _check_gptq(config: Mapping[str, Any]) -> None:
    bits = config.get("bits")
    _expect("bits", bits, bits in gptq.BITS, " or ".join(map(str, gptq.BITS)))
    layout = gptq_format(config)
    _expect("checkpoint_format", layout, layout in gptq.FORMATS, " or ".join(gptq.FORMATS))


def gptq_format(config: Mapping[str, Any]) -> str:
    """Return GPTQ's checkpoint format by the `config`; by default the original one."""
    return str(config.get("checkpoint_format") or config.get("format") or gptq.FORMATS[0])


def _check_awq(config: Mapping[str, Any]) -> None:
    bits = config.get("bits", config.get("w_bit", awq.BITS))
    _expect("bits", bits, bits == awq.BITS, str(awq.BITS))
    version = str(config.get("version") or config.get("format") or awq.FORMAT).lower()
    _expect("version", version, version == awq.FORMAT, awq.FORMAT)


def _check_compressed(config: Mapping[str, Any]) -> None:
    groups = [group for group in (config.get("config_groups") or {}).values() if group]
    formats = [config.get("format"), *(group.get("format") for group in groups)]
    for each in formats:
        _expect("format", each, each is None or each in _COMPRESSED, " or ".join(_COMPRESSED))
    sparsity = (config.get("sparsity_config") or {}).get("format", "dense")
    _expect("sparsity_config.format", sparsity, sparsity == "dense", "dense")
    transforms = (config.get("transform_config") or {}).get("config_groups")
    _expect("transform_config", sorted(transforms or ()), not transforms, "no transforms")
    for weights in (group.get("weights") or {} for group in groups):
        bits, kind = weights.get("num_bits"), weights.get("type", "int")
        is_served = bits == 8 if kind == "float" else bits in packed.BITS
        right = "8 (float), or 4 or 8 (int)"
        _expect("weights.num_bits", f"{bits} ({kind})", not weights or is_served, right)


def _expect(field_name: str, value: object, is_served: bool, right: str) -> None:
    if not is_served:
        raise ValueError(
            f"its quantization_config has {field_name} {value!r}, which is not supported. Use "
            f"{right}, {_WAY_OUT}"
        )


_CHECKS = {
    "fp8": _check_fp8,
    "fbgemm_fp8": lambda _: None,
    "modelopt": _check_modelopt,
    "gptq": _check_gptq,
    "awq": _check_awq,
    "compressed-tensors": _check_compressed,
}
"""quant_method -> check that a config is one that can be dequantized here."""
