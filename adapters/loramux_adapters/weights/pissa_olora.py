"""LoRA initialized from the base's weights (PiSSA, OLoRA), as plain LoRA for the unchanged base.

Methods: Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large
Language Models" (arXiv 2404.02948), and Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of
Large Language Models" (arXiv 2406.01775). Computation: `pissa_init` and `olora_init` of
`peft.tuners.lora.layer`, PEFT 0.21.

PEFT initializes A and B to a part of rank R of the weight and subtracts that part from the base,
again at each load. So the update of the unchanged base is that of A and B minus the part, of rank
2 R.

Legend: R rank, I input features, O output features.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.fields import unsupported
from loramux_adapters.known_layers import KnownLayers
from loramux_adapters.lora_config import Bias
from loramux_adapters.packing import Output
from loramux_adapters.peft_config import MAX_RANK, check_config
from loramux_adapters.peft_folder import open_tensors, read_config
from loramux_adapters.saved import saved_names, saved_tensors
from loramux_adapters.tensorfile import read_header, tensor_reader
from loramux_adapters.weights.base_weight import weight
from loramux_adapters.weights.dtypes import Array
from loramux_adapters.weights.fold import Layer, finite_values, modules_of, part, shaped
from loramux_adapters.weights.spectrum import Factors
from loramux_adapters.weights.update import Update, write_updates

FIELD = "init_lora_weights"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_ALONE = ("use_dora", "lora_bias", "alora_invocation_tokens", "target_parameters")
"""Fields that are not supported together with it."""


def _principal(weight_OI: Array, rank: int) -> Factors:
    u_OK, s_K, v_KI = np.linalg.svd(weight_OI, full_matrices=False)
    return (u_OK[:, :rank] * s_K[:rank]).astype(np.float64), v_KI[:rank].astype(np.float64)


def _orthonormal(scale: float, weight_OI: Array, rank: int) -> Factors:
    q_OK, r_KI = np.linalg.qr(weight_OI)
    return scale * q_OK[:, :rank].astype(np.float64), r_KI[:rank].astype(np.float64)


def pack_pissa_olora(
    source: Path,
    output: Output,
    *,
    notes: Mapping[str, object | None] | None = None,
    base: KnownLayers | None = None,
) -> None:
    """Write the LoRA folder `source`, initialized from the weights of `base`, to `output`.

    Raises:
        PackageError: The folder is not such an adapter, has an unsupported field, or the weights
            of the base are not at hand.
    """
    given = read_config(source)
    start = str(given[FIELD])
    config = {**given, FIELD: True}
    checked = check_config(config)
    for name in _ALONE:
        if given.get(name):
            raise unsupported(name, given[name], f"it does not combine with {FIELD} = {start!r}")
    with open_tensors(source) as file:
        header = read_header(file, os.fstat(file.fileno()).st_size)
        read = tensor_reader(file, header.data_start)
        saved = saved_tensors(
            {n: each for n, each in header.tensors.items() if not n.endswith((_A, _B))},
            saved_names(config),
        )
        if checked.bias is not Bias.NONE:
            saved |= {n: each for n, each in header.tensors.items() if n.endswith(".bias")}

        own = {n: each for n, each in header.tensors.items() if n not in saved}
        updates = []
        for module, tensors in modules_of(own, (_A, _B)):
            layer = Layer(module, checked.rank_of(module), config, base)
            parts = finite_values(tensors, read)
            rank = len(part(layer, parts, _A))
            if 2 * rank > MAX_RANK or rank != layer.rank:
                raise PackageError(
                    f"module {module}: rank {rank} differs from adapter_config.json, or is above "
                    f"{MAX_RANK // 2}, the highest supported with {FIELD} = {start!r}",
                    "UNSUPPORTED_ADAPTER_FEATURE",
                )
            weight_OI = weight(base, module, f"{FIELD} = {start!r}")
            a_RI = shaped(layer, parts, _A, rank, weight_OI.shape[1])
            b_OR = shaped(layer, parts, _B, len(weight_OI), rank)
            scale = checked.scale_of(module)
            parted = _principal(weight_OI, rank) if start == "pissa" else (
                _orthonormal(scale, weight_OI, rank)
            )  # fmt: skip
            updates.append(
                Update(
                    module,
                    1.0,
                    np.concatenate([a_RI, parted[1]]).astype(np.float32),
                    np.concatenate([scale * b_OR, -parted[0]], 1).astype(np.float32),
                )
            )
        if not updates:
            raise PackageError(f"{source} has no adapter tensors")
        write_updates(
            config, updates, "F32", output, notes=notes or {}, source=source, saved=(saved, read)
        )
