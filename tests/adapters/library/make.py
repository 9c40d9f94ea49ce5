"""Make the folders of bottleneck adapters in this folder, and what the library computes with them.

Run with the packages adapters 1.3 and transformers 4.57 (another than the server's):
`python make.py`. Weights are random and seeded. What is kept is of the adapter alone: the logits of
a decoder, or the hidden states of an encoder.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MBartConfig,
    T5Config,
)

import adapters  # noqa: TID251
from adapters import (  # noqa: TID251
    AutoAdapterModel,
    BnConfig,
    DoubleSeqBnConfig,
    ParBnConfig,
    SeqBnConfig,
)

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


WHOLE = {
    name: CONFIGS[name].replace(reduction_factor=4) for name in ("pfeiffer", "parallel", "rest")
} | {"houlsby": DoubleSeqBnConfig(reduction_factor=4, cross_adapter=True)}
"""Of models with an encoder; "rest" leaves out a layer."""
SHAPE = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32, "initializer_range": 0.3,
}  # fmt: skip
PAIR = {
    "vocab_size": 64, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 32, "init_std": 0.3,
}  # fmt: skip
KINDS = {
    "llama": LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    ),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "bert": BertConfig(**SHAPE),
    "distilbert": DistilBertConfig(
        vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=32,
        initializer_range=0.3,
    ),
    "albert": AlbertConfig(**SHAPE, embedding_size=12),
    "deberta": DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "t5": T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    ),
    "bart": BartConfig(**PAIR),
    "mbart": MBartConfig(**PAIR),
}  # fmt: skip
WRITTEN = torch.tensor([[0, 7, 11]])


def model(config):
    torch.manual_seed(0)
    kind = AutoModel
    if config.model_type in ("llama", "gpt2"):
        kind = AutoModelForCausalLM
    elif config.is_encoder_decoder:
        kind = AutoModelForSeq2SeqLM
    made = kind.from_config(config)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return made.eval()


def randomize(adapted, *parts):
    """Give the parameters of a model whose names have one of `parts` other values."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if any(part in name for part in parts):
                weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.5))


def save_heads(folder):
    """Save adapters with heads for the models in `folder`, and what they make of texts."""
    base = AutoAdapterModel.from_pretrained(str(folder / "bert" / "base"))
    names = dict(enumerate(("calm", "cross", "glad")))
    adders = {
        "classification": lambda name: base.add_classification_head(
            name, num_labels=3, id2label=names
        ),
        "multilabel": lambda name: base.add_classification_head(
            name, num_labels=4, multilabel=True, layers=3, activation_function="gelu"
        ),
        "regression": lambda name: base.add_classification_head(name, num_labels=1, layers=1),
        "tagging": lambda name: base.add_tagging_head(name, num_labels=5, layers=2),
        "spans": lambda name: base.add_qa_head(name),
    }
    (folder / "heads").mkdir(exist_ok=True)
    logits = {}
    for name, add in adders.items():
        base.add_adapter(name, config=WHOLE["houlsby"])
        add(name)
        base.set_active_adapters(name)
        base.eval()
        randomize(base, f".adapters.{name}.", f"heads.{name}.")
        with torch.no_grad():
            output = base(input_ids=PROMPT, head=name)
        logits[name] = head_logits(output)
        base.save_adapter(str(folder / "heads" / name), name, use_safetensors=True)
    for name in ("bert", "distilbert"):
        model = AutoModelForSequenceClassification.from_pretrained(str(folder / name / "base"))
        adapters.init(model)
        model.add_adapter("one", config=WHOLE["pfeiffer"])
        model.set_active_adapters("one")
        model.eval()
        randomize(model, ".adapters.", "classifier")
        with torch.no_grad():
            logits[f"class-{name}"] = model(input_ids=PROMPT).logits
        model.save_adapter(
            str(folder / "heads" / f"class-{name}"), "one", use_safetensors=True, with_head=True
        )
    save_file(logits, folder / "heads" / "logits.safetensors")


def head_logits(output):
    """Return [1, labels], or [tokens, labels]."""
    if "start_logits" in output:
        return torch.stack([output.start_logits[0], output.end_logits[0]], -1).contiguous()
    return output.logits if output.logits.dim() == 2 else output.logits[0].contiguous()


def reported(adapted):
    """Return what is kept of a model."""
    if adapted.config.is_encoder_decoder:
        return adapted(input_ids=PROMPT, decoder_input_ids=WRITTEN).logits[0, -1]
    output = adapted(input_ids=PROMPT)
    return output.logits[0, -1] if "logits" in output else output.last_hidden_state[0]


for name_of_kind in sys.argv[1:] or [*KINDS, "heads"]:
    if name_of_kind == "heads":
        os.chdir(HERE)  # adapters name their base by the path that it was loaded from
        save_heads(Path())
        continue
    config_of_kind = KINDS[name_of_kind]
    folder = HERE / name_of_kind
    model(config_of_kind).save_pretrained(folder / "base")
    wanted = {}
    for name, config in (CONFIGS if name_of_kind in ("llama", "gpt2") else WHOLE).items():
        adapted = model(config_of_kind)
        adapters.init(adapted)
        adapted.add_adapter("one", config=config)
        adapted.set_active_adapters("one")
        adapted.eval()
        randomize(adapted, ".adapters.")
        with torch.no_grad():
            wanted[name] = reported(adapted).contiguous()
        adapted.save_adapter(str(folder / name), "one", use_safetensors=True, with_head=False)
    save_file(wanted, folder / "logits.safetensors")
