"""Checking whether a package can be served on the base model, before it gets a name."""

import datetime
from typing import BinaryIO, cast

from loramux_adapters import Package, PackageError, check_fit, read_package
from loramux_adapters.added_tokens import parse_added_tokens
from loramux_adapters.contents import Contents
from loramux_adapters.errors import shown
from loramux_adapters.fit import check_vision
from loramux_adapters.generation import FORCED_BOS, TOKENS
from loramux_server.chat.template import FailedTemplateError, check_syntax
from loramux_server.lora.edits import num_edit_bytes, num_vision_bytes
from loramux_server.store.blobs import Staged
from loramux_server.store.finite import check_finite
from loramux_server.store.record import UPLOAD, AdapterRecord
from loramux_server.store.reference import Reference
from loramux_server.store.served_base import ServedBase
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.wire.model_kind import ModelKind
from loramux_server.wire.weight_format import format_of

_KINDS = {ModelKind.ENCODER: "an encoder", ModelKind.SEQ2SEQ: "an encoder-decoder"}


def check_package(file: BinaryIO, size: int, base: ServedBase) -> Package:
    """Return the package in `file` if it can be served on `base`.

    Reads every tensor once, one at a time.

    Raises:
        PackageError: It cannot; the message says why.
    """
    vision_modules = {name.rpartition(".")[0] for name in base.vision_parameters}
    package = read_package(file, size).named_for(
        base.layers, base.experts, vision_modules, base.heads
    )
    _check_notes(package, base)
    contents = package.contents
    if package.task and base.kind is ModelKind.SEQ2SEQ:
        raise PackageError(
            f"the adapter was trained for task_type {package.task}; the base model is an "
            "encoder-decoder, which supports only SEQ_2_SEQ_LM",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    layers, parameters = base.vocabulary.resized(contents, base.layers, base.parameters)
    check_fit(
        contents, layers, parameters, base.token, base.experts, base.no_vision_reason, base.heads
    )  # fmt: skip
    if contents.vision:
        check_vision(contents.vision, base.vision_layers, base.vision_parameters)
    _check_invocation(contents.invocation, base)
    if (contents.has_more or contents.outer_modules) and not base.takes_edits:
        raise PackageError(
            "the adapter has more than low-rank updates of the model's layers, the only ones "
            "supported with tensor_parallel above 1",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    _check_embeddings(contents, base)
    if package.virtual and package.virtual.count > base.most_virtual(package.virtual):
        raise PackageError(
            f"the adapter has {package.virtual.count} virtual tokens; the context of "
            f"{base.context_length} leaves no room for a prompt and a completion",
            "ADAPTER_TOO_LARGE",
        )
    item_bytes = base.storage_format.item_bytes(format_of(package).item_bytes)
    num_rows = base.row_size.rows_of(package.rank, item_bytes, num_edit_bytes(package))
    if num_rows > base.max_rows:
        raise PackageError(
            f"rank {package.rank} does not fit the adapter memory: with all its tensors the "
            f"adapter takes {num_rows} rank rows of {base.max_rows}; start the server with more "
            "--adapter-memory",
            "ADAPTER_TOO_LARGE",
        )
    needed = num_bytes(package) + num_vision_bytes(package)
    if needed > base.max_host_bytes:
        raise PackageError(
            f"the adapter takes {needed} bytes of host memory, which holds "
            f"{base.max_host_bytes}; start the server with more --host-adapter-memory",
            "ADAPTER_TOO_LARGE",
        )
    check_finite(file, package.file.data_start, contents)
    for part in (contents.vision, contents.post_layers):
        if part:
            check_finite(file, package.file.data_start, part)
    return package


def _check_embeddings(contents: Contents, base: ServedBase) -> None:
    """Refuse an adapter that has both embeddings of virtual tokens and of the base's tokens."""
    if contents.virtual is None or contents.virtual.has_cache:
        return
    for edit in contents.edits:
        if edit.module == base.vocabulary.embedding:
            raise PackageError(
                f"tensor {edit.tensor.name}: embeddings of virtual tokens together with changed "
                "embeddings of the base model's tokens are not supported: PEFT looks the latter up "
                "in the untrained embeddings",
                "UNSUPPORTED_ADAPTER_FEATURE",
            )


def _check_invocation(invocation: tuple[int, ...], base: ServedBase) -> None:
    if invocation and base.kind is not ModelKind.DECODER:
        raise PackageError(
            "adapter_config.json: alora_invocation_tokens: an adapter that is activated within a "
            f"prompt requires a decoder-only base model; this is {_KINDS[base.kind]}",
            "ADAPTER_BASE_MISMATCH",
        )
    unknown = [token for token in invocation if token >= base.vocab_size]
    if unknown:
        raise PackageError(
            f"adapter_config.json: alora_invocation_tokens holds token {unknown[0]}; the base "
            f"model has tokens from 0 to {base.vocab_size - 1}",
            "ADAPTER_BASE_MISMATCH",
        )
    if len(invocation) >= base.context_length:
        raise PackageError(
            f"adapter_config.json: alora_invocation_tokens has {len(invocation)} tokens; the "
            f"context of {base.context_length} leaves no room for a completion",
            "ADAPTER_BASE_MISMATCH",
        )


def record_of(reference: Reference, staged: Staged, package: Package) -> AdapterRecord:
    """Return the record of a checked package, as an upload without a version number."""
    return AdapterRecord(
        tenant=reference.tenant,
        name=reference.name,
        digest=staged.digest,
        seal=staged.seal,
        size_bytes=staged.size,
        rank=package.rank,
        num_bytes=num_bytes(package),
        item_bytes=format_of(package).item_bytes,
        edit_bytes=num_edit_bytes(package),
        virtual_tokens=package.virtual.count if package.virtual else 0,
        has_cache=bool(package.virtual and package.virtual.has_cache),
        task=package.task,
        method=package.method,
        invocation=package.contents.invocation,
        target_modules=tuple(package.target_modules),
        base_model=package.config.base_model,
        source=UPLOAD,
        created_at=datetime.datetime.now(datetime.UTC),
    )


def num_bytes(package: Package) -> int:
    """Return the bytes that the weights of `package` take in memory."""
    num_weights = sum(
        module.rank * (module.in_features + module.out_features)
        for module in package.modules
        if not module.is_outer
    )
    return num_weights * format_of(package).item_bytes + num_edit_bytes(package)


def _check_notes(package: Package, base: ServedBase) -> None:
    """Demand that the chat template, added tokens and generation defaults of the package are valid.

    Raises:
        PackageError: One is not.
    """
    template, generation = (package.notes.get(name) for name in ("chat_template", "generation"))
    if isinstance(template, str):
        try:
            check_syntax(template)
        except FailedTemplateError as error:
            raise PackageError(f"chat_template: {error}", "INVALID_ADAPTER_CONFIG") from None
    defaults = generation if isinstance(generation, dict) else {}
    if FORCED_BOS in defaults and base.kind is not ModelKind.SEQ2SEQ:
        raise PackageError(
            f"generation: {FORCED_BOS} is {shown(defaults[FORCED_BOS])}; that is supported only on "
            "encoder-decoder base models",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    vocab_size = base.vocabulary.size_for(package.contents) or base.vocab_size
    added = parse_added_tokens(cast(list[object], package.notes.get("added_tokens", [])), "")
    if added and base.tokenizer_json is not None:
        try:
            if added[-1].id >= vocab_size:
                raise ValueError(f"token {added[-1].id} is beyond the vocabulary of {vocab_size}")
            TextTokenizer(base.tokenizer_json, added)
        except ValueError as error:
            raise PackageError(f"added_tokens: {error}", "ADAPTER_BASE_MISMATCH") from None
    named = {name: [defaults[name]] for name in TOKENS if name in defaults}
    named["stop_token_ids"] = defaults.get("stop_token_ids", [])
    for name, token in ((name, token) for name, tokens in named.items() for token in tokens):
        if token >= vocab_size:
            raise PackageError(
                f"generation: {name} holds token {token}; the base model has tokens from "
                f"0 to {vocab_size - 1}",
                "ADAPTER_BASE_MISMATCH",
            )
