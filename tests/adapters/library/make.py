"""Make the folders of bottleneck adapters in this folder, and what the library computes with them.

Run with the packages adapters 1.3 and transformers 4.57 (another than the server's):
`python make.py`. Weights are random and seeded; logits are those of the adapter alone.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import adapters  # noqa: TID251
from adapters import BnConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig  # noqa: TID251

HERE = Path(__file__).parent
PROMPT = torch.tensor([[1, 5, 9, 23, 42, 7]])
CONFIGS = {
    "pfeiffer": SeqBnConfig(reduction_factor=8),
    "houlsby": DoubleSeqBnConfig(reduction_factor={"0": 4, "default": 8}),
    "parallel": ParBnConfig(reduction_factor=8, scaling="learned"),
    "norms": BnConfig(
        mh_adapter=True, output_adapter=True, reduction_factor=8, non_linearity="gelu",
        original_ln_before=True, ln_after=True, scaling=0.7,
    ),
    "rest": BnConfig(
        mh_adapter=True, output_adapter=True, reduction_factor=16, non_linearity="leakyrelu",
        original_ln_before=True, residual_before_ln=False, ln_after=True,
        adapter_residual_before_ln=True, leave_out=[1], scaling="channel",
    ),
}  # fmt: skip


def model(kind):
    torch.manual_seed(0)
    if kind == "llama":
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
            )
        )
    else:
        made = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=64,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return made.eval()


for kind in ("llama", "gpt2"):
    base = model(kind)
    base.save_pretrained(HERE / kind / "base")
    logits = {}
    for name, config in CONFIGS.items():
        adapted = model(kind)
        adapters.init(adapted)
        adapted.add_adapter("one", config=config)
        adapted.set_active_adapters("one")
        adapted.eval()
        torch.manual_seed(7)
        with torch.no_grad():
            for weight_name, weight in adapted.named_parameters():
                if ".adapters." in weight_name:
                    weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.5))
            logits[name] = adapted(input_ids=PROMPT).logits[0, -1].contiguous()
        adapted.save_adapter(str(HERE / kind / name), "one", use_safetensors=True, with_head=False)
    save_file(logits, HERE / kind / "logits.safetensors")
