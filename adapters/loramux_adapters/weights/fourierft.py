"""FourierFT: the update of a layer, as sparse coefficients of its Fourier transform.

Method: Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform" (arXiv
2405.03003). Fields and tensors: `peft.tuners.fourierft`, PEFT 0.21.

The positions of the coefficients are not saved: they are the first of a permutation that torch
draws from a seed. Algorithm: `randperm_cpu` in `aten/src/ATen/native/TensorFactories.cpp`; numpy's
Mersenne Twister is the same as torch's.

Legend: I input features, O output features, N coefficients.
"""

import math

import numpy as np
import numpy.typing as npt

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.fields import integer
from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Wide

_MAX_SEED = (1 << 32) - 1
_MAX_WEIGHTS = ((1 << 32) - 1) // 20
"""Above this, torch draws 64-bit numbers."""


def _fourierft(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    values_N = shaped(layer, parts, ".fourierft_spectrum", None)
    if len(values_N) > weight_OI.size or weight_OI.size >= _MAX_WEIGHTS:
        raise PackageError(
            f"module {layer.module}: {len(values_N)} coefficients for {weight_OI.size} weights are "
            "not supported; a layer must have at least as many weights as coefficients, and fewer "
            f"than {_MAX_WEIGHTS}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    scale = layer.config.get("scaling", 150.0)
    if type(scale) not in (int, float) or not math.isfinite(scale):  # type: ignore[arg-type]
        raise PackageError(
            f"adapter_config.json: scaling is {shown(scale)}; expected a number",
            "INVALID_ADAPTER_CONFIG",
        )
    seed = integer(layer.config, "random_loc_seed", 777, 0, _MAX_SEED)
    spectrum = np.zeros(weight_OI.shape)
    spectrum.reshape(-1)[_first_drawn(weight_OI.size, len(values_N), seed)] = values_N
    change_OI: Wide = np.fft.ifft2(spectrum).real * float(scale)  # type: ignore[arg-type]
    return weight_OI + change_OI


def _first_drawn(size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the first `count` numbers of `torch.randperm(size)` for `seed`."""
    generator = np.random.RandomState(seed)
    drawn = generator.randint(0, 1 << 32, min(count, size - 1), dtype=np.uint32)
    moved: dict[int, int] = {}
    found = np.empty(count, np.int64)
    for place in range(count):
        other = place + int(drawn[place]) % (size - place) if place < size - 1 else place
        found[place] = moved.get(other, other)
        moved[other] = moved.get(place, place)
    return found


FOURIERFT = Method(
    folded_fields(
        {"random_loc_seed", "scaling"},
        # The tensors have the number of coefficients.
        {"n_frequency", "n_frequency_pattern"},
        refused={"bias": "biases are not supported with it"},
        harmless={"bias": ("none",)},
    ),
    None,
    8,
    (".fourierft_spectrum",),
    merge=_fourierft,
)
