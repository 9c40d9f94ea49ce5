"""UniLoRA as plain LoRA.

Method: Li et al., "Uni-LoRA: One Vector is All You Need" (arXiv 2506.00799). Fields and tensors:
`peft.tuners.unilora`, PEFT 0.21.

Each entry of A and B is an entry of a vector that all layers share, times a scale. PEFT draws the
indices for all layers in the order of the model, or saves them.

Legend: R rank, I input features, O output features, N entries of the vector.
"""

from loramux_adapters.errors import PackageError
from loramux_adapters.weights.fold import Layer, Method, Parts, part, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors, Wide

_VECTOR = "base_model.unilora_theta_d"


def _unilora(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    a_RI = _factor(layer, parts, "A", (layer.rank, None))
    return (_factor(layer, parts, "B", (None, layer.rank)), a_RI), 0.0


def _factor(layer: Layer, parts: Parts, factor: str, shape: tuple[int | None, int | None]) -> Wide:
    vector_N = shaped(layer, parts, _VECTOR, None)
    scales = shaped(layer, parts, f".unilora_scales_{factor}", *shape)
    chosen = part(layer, parts, f".unilora_indices_{factor}")
    if chosen.shape != scales.shape or not ((chosen >= 0) & (chosen < len(vector_N))).all():
        raise PackageError(
            f"module {layer.module}: unilora_indices_{factor} do not have one index from 0 to "
            f"{len(vector_N) - 1} for each of its scales"
        )
    entries: Wide = vector_N[chosen] * scales
    return entries


UNILORA = Method(
    folded_fields(
        {"r"},
        {"proj_seed", "theta_d_length", "unilora_dropout", "init_theta_d_bound"},
        absent={"exclude_modules"},
        refused={
            "save_indices": "PEFT draws its indices anew at each load, in the order of the model's "
            "layers; save the adapter with save_indices=True"
        },
        harmless={"save_indices": (True,)},
    ),
    None,
    4,
    tuple(f".unilora_{what}_{factor}" for what in ("indices", "scales") for factor in "AB"),
    _unilora,
    shared=(_VECTOR,),
    bias_only="unilora_only",
)
