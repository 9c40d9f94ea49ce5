"""Chooses the operations that run a base model, and checks that they compute what it does."""

import logging

from loramux_server.engine.model_runner import ModelRunner
from loramux_server.kernels.backend import Backend, choose_backend
from loramux_server.kernels.weight_storage import Quantization
from loramux_server.models.base_model import BaseModel
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.engine_config import EngineConfig

_log = logging.getLogger(__name__)


def backend_of(config: EngineConfig, model: BaseModel) -> Backend:
    """Return the operations that `config` selects for `model`.

    Raises:
        UnservableModelError: They do not run on its device, or do not support another setting.
    """
    device, name = model.device, config.kernels
    if model.encoder_runner and device.type == "cuda" and not model.encoder_runner.is_given_tokens:
        if name == "triton":
            raise UnservableModelError(
                f"kernels 'triton' do not support {model.architecture}, whose linear layers do not "
                "get one row per token of a batch; use kernels 'torch'"
            )
        name = "torch"
    try:
        if config.deterministic and config.tensor_parallel > 1:
            raise ValueError(
                f"deterministic: tensor_parallel must be 1, got {config.tensor_parallel}"
            )
        return choose_backend(
            name,
            device,
            Quantization(config.quantization),
            is_deterministic=config.deterministic,
        )
    except ValueError as error:
        raise UnservableModelError(str(error)) from None


def check_runner(
    runner: ModelRunner, model: BaseModel, config: EngineConfig, backend: Backend
) -> None:
    """Check that `runner` computes with `backend` what `model` does, and as `config` wants.

    Raises:
        UnservableModelError: It does not.
    """
    # For other kernels the model itself is quantized, so its own forward has the same rounding.
    if config.quantization != Quantization.NONE and backend.name == "cpu":
        _log.info(
            "quantizing weights to %s changes the logits by %.2g of their spread",
            config.quantization,
            runner.difference,
        )
    elif not runner.difference <= model.check.tolerance:
        raise UnservableModelError(
            f"kernels {config.kernels!r} do not reproduce the model's own forward pass on this "
            f"machine: logits differ by {runner.difference:.2g} of their spread"
        )
    if config.deterministic and not (runner.is_invariant and _takes_adapters(model)):
        raise UnservableModelError(
            f"deterministic: logits of {model.architecture} depend on the composition of the "
            "batch, because some of its layers do not run on batch-invariant kernels"
        )


def _takes_adapters(model: BaseModel) -> bool:
    """Return whether kernels 'cpu' compute adapter updates for all layers of `model`."""
    from loramux_server.kernels.cpu.add_lora import serves

    return all(
        serves(group.shape.in_features, group.projection().columns) for group in model.groups
    )
