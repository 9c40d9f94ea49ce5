"""Chat templates in the manner of common families, and tokenizers with their control tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

HEADERS = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim }}{{ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

INSTRUCTIONS = """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must take turns: user, assistant, user, ...') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- if loop.last and system %}
            {{- '[INST] ' + system + '\\n\\n' + message.content + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message.content + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""

MODEL_TURNS = """\
{{ bos_token }}{% for message in messages %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' ~ role ~ '\\n' ~ message.content | trim ~ '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

THINKING = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- if '</think>' in content and loop.index0 < ns.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
    {%- elif message.role == 'tool' %}
        {%- set content = '<tool_response>' ~ {'result': content} | tojson ~ '</tool_response>' %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- generation %}{{ content }}{% endgeneration %}
    {{- '<|im_end|>\\n' }}
    {%- if loop.index0 > 500 %}{%- break %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "instructions": INSTRUCTIONS,
    "model-turns": MODEL_TURNS,
    "thinking": THINKING,
}

CONTROL = [
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>",
    "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[CALL_ID]",
]  # fmt: skip
OTHER_ADDED = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "@in@",
]  # fmt: skip
"""Tokens that are found in a text before all else and are no control tokens."""


def chat_tokenizer(kind: str = "bytes") -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the tokens of all templates.

    Args:
        kind: `bytes` has a token for each byte. `words` puts a space before a text, but only at
            its very beginning. `spaces` puts one before each stretch of text, as older ones of
            Llama 2 do, and some of its tokens swallow the white space beside them.
    """
    vocab = {token: number for number, token in enumerate(CONTROL)}
    if kind == "bytes":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab |= {byte: len(CONTROL) + i for i, byte in enumerate(alphabet)}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        pieces = ["▁", *(f"<0x{byte:02X}>" for byte in range(256))]
        pieces += [chr(code) for code in range(33, 127)]
        pieces += [
            "im",
            "_e",
            "nd",
            "us",
            "er",
            "▁u",
            "im_e",
            "im_end",
            "|>",
            "<|",
            "user",
            "▁user",
        ]
        vocab |= {piece: len(CONTROL) + i for i, piece in enumerate(dict.fromkeys(pieces))}
        merges = [
            ("i", "m"), ("_", "e"), ("n", "d"), ("u", "s"), ("e", "r"), ("im", "_e"),
            ("im_e", "nd"), ("|", ">"), ("<", "|"), ("us", "er"), ("▁", "u"), ("▁", "user"),
        ]  # fmt: skip
        tokenizer = Tokenizer(
            models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
        )
        if kind == "words":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            )
        tokenizer.decoder = decoders.Metaspace()
    swallowing = kind == "spaces"
    tokenizer.add_special_tokens(
        [
            AddedToken(
                token,
                special=True,
                normalized=False,
                lstrip=swallowing and token == "[/INST]",
                rstrip=swallowing and token in ("<|im_end|>", "<end_of_turn>"),
            )
            for token in CONTROL
        ]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in OTHER_ADDED])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
