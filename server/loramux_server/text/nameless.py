"""Tokenizers that do not know control tokens by their names, so that no text becomes one.

The library can be told to take `</s>` in a text for text, and then does not look for it. But where
the vocabulary has it as a piece, as those of T5, XLM-R and DeBERTa do, the model of the tokenizer
finds it all the same. So there such a piece gets a name that nobody can write.
"""

import secrets
from collections.abc import Mapping, Set
from typing import Any

from tokenizers import Tokenizer

_SECRET = secrets.token_hex(8)


def name_for(token: int) -> str:
    """Return what `token` is called instead, while this process lives."""
    return f"{_SECRET}x{token}x"


def finds(tokenizer: Tokenizer, names: Mapping[int, str]) -> bool:
    """Return whether `tokenizer`, which is told to take `names` for text, makes tokens of them.

    Args:
        tokenizer: The tokenizer.
        names: Token -> its name.
    """
    return any(
        token in tokenizer.encode(text, add_special_tokens=False).ids
        for token, name in names.items()
        for text in (name, f"a {name} a", f"a{name}a")
    )


def nameless(described: Mapping[str, Any], tokens: Set[int]) -> dict[str, Any]:
    """Return a tokenizer that knows none of its added `tokens` by name.

    Args:
        described: It, as tokenizer.json describes it.
        tokens: The tokens. One that stands for all that the tokenizer does not know keeps its name
            where the model calls it by that.
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
    """Return the pieces of a merge, and what becomes of them."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second, first + second
