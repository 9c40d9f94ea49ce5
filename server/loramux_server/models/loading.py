"""Folder or hub id -> base model, loaded by transformers."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from loramux_adapters.train.text_models import is_encoder, is_encoder_decoder
from loramux_server.images.decoding import RefusedImageError
from loramux_server.images.example import NUM_PIXELS, picture
from loramux_server.images.folder import revision_of
from loramux_server.images.loading import NoProcessorError
from loramux_server.images.messages import PreparedImage
from loramux_server.images.processor import ImageProcessor
from loramux_server.kernels.backend import resolve
from loramux_server.kernels.weight_storage import Quantization
from loramux_server.models.base_model import BaseModel
from loramux_server.models.decoder_model import prepare
from loramux_server.models.dequantize.loading import held_dtype, load_dequantized
from loramux_server.models.dequantize.method import check_unquantized, saved_method
from loramux_server.models.encoders.encoder_model import prepare_encoder
from loramux_server.models.generation import AUTO, generation_of
from loramux_server.models.heads import Heads
from loramux_server.models.quantized import (
    MXFP4,
    check_quantized,
    hold_dequantized,
    mxfp4_config,
    torchao_config,
)
from loramux_server.models.servable import UnservableModelError
from loramux_server.models.text_format import read_text_format
from loramux_server.wire.model_kind import ModelKind

_LOADS = {ModelKind.ENCODER: AutoModel, ModelKind.SEQ2SEQ: AutoModelForSeq2SeqLM}
"""Classes that load models other than decoders."""
_POOLER = "pooler."
"""Prefix of the names of an encoder's pooler parameters."""
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_base_model(
    model: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    kernels: str = "auto",
    quantization: Quantization = Quantization.NONE,
    generation_config: str = AUTO,
    stays_on_host: bool = False,
    serves_images: bool = False,
    images_off_reason: str = "",
) -> BaseModel:
    """Load the base model in folder or hub id `model` and prepare it for serving.

    No code from the model's folder is executed: remote code is never trusted.

    Args:
        model: The folder or hub id.
        revision: Branch, tag or commit of the hub id; None means the current main branch.
        dtype: Its dtype; `auto` is the one that suits `device`, or the saved one if its layers stay
            quantized.
        device: Where it is to run.
        kernels: The backend. The CPU's quantizes weights itself when it takes them; for others it
            is done here.
        quantization: How weights are quantized.
        generation_config: Source of its default sampling parameters; see `models.generation`.
        stays_on_host: Leave it in host memory, so that the caller can move a shard of it.
        serves_images: Whether to serve images, if models of this type support them.
        images_off_reason: Why not.

    Raises:
        UnservableModelError: The model cannot be loaded, or its type is not supported.
    """
    target = _device(device)
    try:
        _check_there(model)
        path = revision_of(model, revision)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        method = saved_method(config)
        is_dequantized = method is not None and method.is_dequantized_here
        is_mxfp4 = method is not None and method.name == MXFP4
        is_quantized = method is not None and not is_mxfp4 and not is_dequantized
        if (is_quantized or is_mxfp4) and quantization is not Quantization.NONE:
            raise ValueError(
                f"its saved weights are quantized already, so quantization must be 'none', "
                f"got {str(quantization)!r}"
            )
        options: dict[str, Any] = {"dtype": _DTYPES.get(dtype, "auto")}
        if is_mxfp4:
            options["quantization_config"] = mxfp4_config(path)
        if quantization is not Quantization.NONE and resolve(kernels, target) != "cpu":
            options["quantization_config"] = torchao_config(quantization, target)
            is_quantized = True
        elif dtype == "auto" and target.type == "cpu" and not is_quantized:
            options["dtype"] = torch.float32
        if is_quantized and stays_on_host:
            raise ValueError("quantized layers cannot be sharded: tensor_parallel must be 1")
        if is_quantized and target.type == "cuda":
            # Quantize on the GPU, without ever having all weights on the host.
            options["device_map"] = {"": target}
        kind, example, no_vision_reason = model_kind(config), None, ""
        loads = _LOADS.get(kind)
        if loads is None:
            loads, example, no_vision_reason = _decoder(
                path, type(config), serves_images=serves_images, images_off_reason=images_off_reason
            )
        if method is not None and is_dequantized:
            if options["dtype"] == "auto":
                options["dtype"] = held_dtype(config, method)
            stays = torch.device("cpu") if stays_on_host else target
            module, loading = load_dequantized(
                loads, path, config, method, device=stays, options=options
            )
        else:
            module, loading = loads.from_pretrained(
                path,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        if method is None:
            check_unquantized(loading["unexpected_keys"])
        _check_whole(module, loading["missing_keys"], kind)
        if is_mxfp4:
            hold_dequantized(module, options["dtype"])
        check_quantized(module, quantization)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        named = repr(model) if revision is None else f"revision {revision!r} of {model!r}"
        raise UnservableModelError(f"cannot load a base model from {named}: {error}") from None
    if not stays_on_host:
        # Until here, weights that keep their saved dtype are pages of the mapped file.
        module = module.to(target)
    if kind is not ModelKind.DECODER:
        heads = Heads.of(module, config, path) if kind is ModelKind.ENCODER else None
        is_read = kind is ModelKind.ENCODER
        generation = {} if is_read else generation_of(module, generation_config)
        whole = prepare_encoder(module, kind, name=_name(model), text=read_text_format(path))
        return replace(whole, heads=heads, generation=generation)
    generation = generation_of(module, generation_config)
    prepared = prepare(
        module,
        name=_name(model),
        text=read_text_format(path),
        example=example,
        no_vision_reason=no_vision_reason,
    )
    return replace(prepared, generation=generation)


def _check_there(path: str) -> None:
    """Check that a path that cannot be a hub id is a folder, and that it is not GGUF.

    Raises:
        OSError: There is no such folder.
        ValueError: It is GGUF.
    """
    folder = Path(path)
    is_gguf = path.endswith(".gguf") or (
        any(folder.glob("*.gguf")) and not (folder / "config.json").exists()
    )
    if is_gguf:
        raise ValueError(
            "GGUF is not supported: use the folder of safetensors that it was converted from, with "
            "--quantization int8 to save memory"
        )
    is_hub_id = path.count("/") <= 1 and not path.startswith(("/", ".", "~"))
    if not is_hub_id and not folder.is_dir():
        raise OSError("no such folder")


def _name(path: str) -> str:
    """Return the name of the model in folder or hub id `path`; `.` gets the name of the folder."""
    name = Path(path).name
    return Path(path).resolve().name if name in ("", "..") else name


def model_kind(config: PreTrainedConfig) -> ModelKind:
    """Return the kind of model that `config` describes."""
    if is_encoder_decoder(config):
        return ModelKind.SEQ2SEQ
    return ModelKind.ENCODER if is_encoder(config) else ModelKind.DECODER


def _decoder(
    path: str, kind: type[PreTrainedConfig], *, serves_images: bool, images_off_reason: str
) -> tuple[Any, PreparedImage | None, str]:
    """Return what loads the decoder in `path`: the text model alone, if that suffices.

    Returns:
        The loading class; an image to test with, or None; and why images are not served although
        models of this type support them.
    """
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForCausalLM, None, ""
    example, no_vision_reason = None, images_off_reason
    if serves_images:
        try:
            example = ImageProcessor.load(path, NUM_PIXELS).prepare(picture())
        except (NoProcessorError, RefusedImageError) as error:
            no_vision_reason = str(error)
    has_text_alone = kind in MODEL_FOR_CAUSAL_LM_MAPPING
    if example is None and has_text_alone:
        return AutoModelForCausalLM, None, no_vision_reason
    return AutoModelForImageTextToText, example, "" if example else no_vision_reason


def _check_whole(module: PreTrainedModel, missing: Collection[str], kind: ModelKind) -> None:
    """Check that no weight is `missing`, since transformers would initialize it randomly.

    Poolers of encoders may be missing and are set to zero: many encoders are saved without one, and
    only heads that bring their own need it.

    Raises:
        ValueError: A weight is missing.
    """
    if kind is ModelKind.ENCODER:
        for name in (name for name in missing if name.startswith(_POOLER)):
            module.get_parameter(name).data.zero_()
        missing = [name for name in missing if not name.startswith(_POOLER)]
    if not missing:
        return
    first, *others = sorted(missing)
    what = f"the weight {first}" + (f" and {len(others)} others" if others else "")
    raise ValueError(
        f"it lacks {what} of {type(module).__name__}: save the whole model. One that was saved "
        "without its output layer can serve embeddings and adapters with heads if its config.json "
        "has tie_word_embeddings"
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter if torch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise UnservableModelError(f"device {name!r} cannot be used: {reason}") from None
    if device.type not in ("cpu", "cuda"):
        raise UnservableModelError(f"device {name!r} cannot be used; expected cpu or cuda")
    return device
