"""The description of a base model for the frontend."""

from loramux_server.engine.kv_room import KvRoom
from loramux_server.lora.row_allocator import RowSize
from loramux_server.lora.shard import UNSHARDED
from loramux_server.models.base_model import BaseModel
from loramux_server.wire.engine_sizes import EngineSizes
from loramux_server.wire.model_info import Layer, ModelInfo
from loramux_server.wire.weight_format import StorageFormat


def model_info(
    model: BaseModel,
    context_length: int,
    source_length: int,
    adapter_rows: int,
    row_size: RowSize,
    storage_format: StorageFormat,
    room: KvRoom,
    sizes: EngineSizes,
    no_vision_reason: str,
) -> ModelInfo:
    """Return the description of `model`.

    Args:
        model: The prepared base model.
        context_length: Tokens that a request may have.
        source_length: Those of them that are for the encoder of an encoder-decoder.
        adapter_rows: Rank rows that fit into the adapter memory.
        row_size: The size of one.
        storage_format: Storage format of adapters.
        room: Room for KV blocks and recurrent states.
        sizes: The engine's sizes, including those that its config leaves at auto.
        no_vision_reason: Why it takes no images although its architecture could; empty otherwise.
    """
    layers = {}
    for name, place in model.places.items():
        shape = model.groups[place.group].whole
        layers[name] = Layer(shape.in_features, shape.out_features[place.part])
    known = model.replaceable
    vision_layers = model.vision.layers if model.vision else {}
    vision_parameters = model.vision.parameters if model.vision else {}
    experts = {name: each.shape for name, each in model.experts.items()}
    routers = {
        f"{shape.router}.weight": [shape.count, shape.width]
        for shape in experts.values()
        if shape.router
    }
    layers |= {name: Layer(*features) for name, features in known.outer_layers.items()}
    return ModelInfo(
        name=model.name,
        architecture=model.architecture,
        kind=model.kind,
        fingerprint=model.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        context_length=context_length,
        source_length=source_length,
        writing=model.writing,
        vocab_size=model.vocab_size,
        num_parameters=model.num_parameters,
        eos_token_ids=model.eos_token_ids,
        tokenizer_json=model.text.tokenizer_json,
        chat_template=model.text.chat_template,
        generation=model.generation,
        special_tokens=model.text.special_tokens,
        layers=layers,
        vision_layers={name: Layer(*features) for name, features in vision_layers.items()},
        vision_parameters={name: list(shape) for name, shape in vision_parameters.items()},
        parameters={name: list(shape) for name, shape in known.shapes.items()} | routers,
        experts=experts,
        heads=dict(model.heads.shapes) if model.heads else {},
        vocabulary=known.vocabulary,
        adapter_rows=adapter_rows,
        row_bytes=row_size.num_bytes,
        storage_format=storage_format,
        takes_edits=model.shard == UNSHARDED,
        embedding_width=model.embedding_width,
        embedding=model.text.embedding.on(model.kind),
        embedding_fault=model.text.embedding.fault,
        cache_shapes=[
            (shape.num_heads, shape.key_width, shape.value_width)
            for shape in (model.prefix_shapes or model.cache_shapes)
        ],
        takes_token_types=model.takes_token_types,
        supports_images=model.vision is not None and not no_vision_reason,
        no_vision_reason=no_vision_reason,
        has_recurrent_layers=bool(model.recurrent.states),
        max_running=room.max_running,
        num_blocks=room.num_blocks,
        num_states=room.num_states,
        sizes=sizes,
    )
