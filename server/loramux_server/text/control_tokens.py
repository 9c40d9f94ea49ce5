"""Tokenizers that do not match control tokens by name, so that no text becomes one.

With `encode_special_tokens`, the library does not look for `</s>` in a text. But where the
vocabulary contains it as a piece, as in T5, XLM-R and DeBERTa, the tokenizer's model still finds
it. Such a piece is renamed to something that nobody can guess.
"""

import secrets
from collections.abc import Mapping, Set
from typing import Any

from tokenizers import Tokenizer

_SECRET = secrets.token_hex(8)


def name_for(token: int) -> str:
    """Return the new name of `token`, fixed for the lifetime of this process."""
    return f"{_SECRET}x{token}x"


def finds_control_tokens(tokenizer: Tokenizer, names: Mapping[int, str]) -> bool:
    """Return whether `tokenizer`, set to treat `names` as plain text, still makes tokens of them.

    Args:
        tokenizer: The tokenizer.
        names: Token -> its name.
    """
    return any(
        token in tokenizer.encode(text, add_special_tokens=False).ids
        for token, name in names.items()
        for text in (name, f"a {name} a", f"a{name}a")
    )


def hide_control_tokens(described: Mapping[str, Any], tokens: Set[int]) -> dict[str, Any]:
    """Return a tokenizer that knows none of its added `tokens` by name.

    Args:
        described: The tokenizer, as in tokenizer.json.
        tokens: Ids of the tokens. The model's unknown token keeps its name.
    """
    model, added = dict(described["model"]), described.get("added_tokens", [])
    unknown = model.get("unk_token")
    names = {
        token["content"]: name_for(token["id"])
        for token in added
        if token["id"] in tokens and token["content"] != unknown
    }
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {names.get(piece, piece): token for piece, token in vocab.items()}
    if "merges" in model:
        model["merges"] = [
            merge for merge in model["merges"] if names.keys().isdisjoint(_of(merge))
        ]
    return {
        **described,
        "model": model,
        "added_tokens": [
            {**token, "content": names.get(token["content"], token["content"])} for token in added
        ],
    }


def _of(merge: str | list[str]) -> tuple[str, str, str]:
    """Return the two pieces of a merge, and the piece that they form."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second, first + second
