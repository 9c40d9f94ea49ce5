"""AdaLoRA as plain LoRA: singular values are folded into B, and masked ranks removed.

Semantics follow `peft.tuners.adalora`, PEFT 0.21 (method: arXiv 2303.10512). A layer adds
`alpha / (init_r + 1e-5) * P (Λ Q) x`, where PEFT calls Q `lora_A`, Λ `lora_E` and P `lora_B`, and
omits masked ranks when it saves. Shapes: R rank, I input features, O output features.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import PREFIX, Fields, refuse_unsupported
from loramux_adapters.packing import Output
from loramux_adapters.peft_config import FIELDS as LORA_FIELDS
from loramux_adapters.peft_config import MAX_RANK, check_config
from loramux_adapters.peft_folder import open_tensors, read_config
from loramux_adapters.saved import saved_names, saved_tensors
from loramux_adapters.tensorfile import TensorInfo, read_header, tensor_reader
from loramux_adapters.weights.dtypes import Array, decoded
from loramux_adapters.weights.update import Update, write_updates

_FACTORS = ("lora_A", "lora_B", "lora_E")
_OWN_FIELDS = frozenset({
    "target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
    "total_step", "rank_pattern",
})  # fmt: skip

_UNREAD = {"r", "use_rslora", "rank_pattern"}
"""Fields that PEFT ignores; the remaining ranks are those of the tensors."""
_LOST = {"bias", "use_dora", "lora_bias", "alora_invocation_tokens"}
"""Fields that are honoured for LoRA, but would be lost here."""
FIELDS = Fields(
    honoured=(LORA_FIELDS.honoured - _LOST - _UNREAD) | {"init_r"},
    recorded=LORA_FIELDS.recorded | (_OWN_FIELDS - {"init_r"}) | _UNREAD,
    refused={
        **LORA_FIELDS.refused,
        **dict.fromkeys(
            sorted(_LOST | {"use_bdlora", "init_lora_weights"}), "it cannot be converted"
        ),
    },
    harmless={**LORA_FIELDS.harmless, "bias": ("none",)},
)


def as_lora_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return the AdaLoRA `config` as a LoRA config, with the initial rank and scale.

    Raises:
        PackageError: `init_r` is not a valid rank.
    """
    rank = config.get("init_r", 12)
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise PackageError(
            f"adapter_config.json: init_r is {shown(rank)}; expected an integer from 1 to "
            f"{MAX_RANK}",
            "INVALID_ADAPTER_CONFIG",
        )
    kept = {name: value for name, value in config.items() if name not in _OWN_FIELDS}
    return kept | {"peft_type": "LORA", "r": rank}


def pack_adalora(
    source: Path, output: Output, *, notes: Mapping[str, object | None] | None = None
) -> None:
    """Write the AdaLoRA folder `source` to `output` as an equivalent LoRA package.

    Raises:
        PackageError: The folder is not such an adapter, or has an unsupported field.
    """
    config = as_lora_config(read_config(source))
    checked = check_config(config)
    refuse_unsupported(config, FIELDS)
    scale = checked.alpha / (checked.rank + 1e-5)
    with open_tensors(source) as file:
        header = read_header(file, os.fstat(file.fileno()).st_size, is_foreign=True)
        read = tensor_reader(file, header.data_start)
        saved = saved_tensors(header.tensors, saved_names(config))
        own = {name: each for name, each in header.tensors.items() if name not in saved}
        updates = []
        for module, factors in sorted(_modules(own).items()):
            a_RI, b_OR, e_R1 = (
                decoded(b"".join(read(factors[factor])), factors[factor].dtype).reshape(
                    factors[factor].shape
                )
                for factor in _FACTORS
            )
            kept_R = np.flatnonzero(e_R1)
            if len(kept_R):
                folded_OR: Array = b_OR[:, kept_R] * e_R1[kept_R, 0]
                updates.append(Update(module, scale, a_RI[kept_R], folded_OR))
        dtypes = {tensor.dtype for tensor in own.values()}
        if not updates:
            raise PackageError(f"{source}: every rank is masked; the adapter changes nothing")
        dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
        write_updates(
            config, updates, dtype, output, notes=notes or {}, source=source, saved=(saved, read)
        )


def _modules(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Return the tensors of each layer, with matching shapes."""
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        module, _, factor = name.rpartition(".")
        if not module.startswith(PREFIX) or factor not in _FACTORS:
            raise PackageError(
                f"tensor {name} is not supported; expected '{PREFIX}….lora_A', '.lora_B' or "
                "'.lora_E'",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )
        found.setdefault(module.removeprefix(PREFIX), {})[factor] = tensor
    for module, factors in found.items():
        missing = [factor for factor in _FACTORS if factor not in factors]
        if missing:
            raise PackageError(f"module {module} has no {missing[0]}")
        a, b, e = (factors[factor].shape for factor in _FACTORS)
        if not len(a) == len(b) == 2 or e != (a[0], 1) or b[1] != a[0]:
            raise PackageError(
                f"module {module}: shapes {shown(a)}, {shown(b)} and {shown(e)} of lora_A, lora_B "
                "and lora_E do not have the same rank"
            )
    return found
