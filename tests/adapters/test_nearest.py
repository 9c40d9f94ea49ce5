"""Which layers are named to who asks for one that is not there."""

import pytest

from loramux_adapters.nearest import nearest

LLAMA = [
    f"model.layers.{number}.{name}"
    for number in range(12)
    for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("model.layers.31.self_attn.q_proj", ["model.layers.11.self_attn.q_proj"]),
        ("model.decoder.layers.3.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("layers.3.mlp.up_proj", "model.layers.0.mlp.up_proj"),
        ("transformer.h.3.mlp.c_proj", "model.layers.0.mlp.up_proj"),
        ("lm_head", []),
        ("model.decoder.embed_tokens", []),
        ("transformer.h.3.attn.c_attn", "model.layers.0.self_attn.v_proj"),
        ("7." + "x" * 100_000, "model.layers.0.mlp.up_proj"),
    ],
)
def test_those_are_named_that_are_called_alike(module: str, found: str | list[str]) -> None:
    near = nearest(module, ["lm_head", *LLAMA])
    assert len(near) <= 3
    assert near == found if isinstance(found, list) else near[0] == found
    assert len({name.replace(".11.", ".0.") for name in near}) == len(near)
