"""The files of a tokenizer that transformers saved without a tokenizer.json."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer

CONFIG = "tokenizer_config.json"
LEGACY = ("special_tokens_map.json", "added_tokens.json")
"""Files of older versions: names of special tokens, and ids of added ones."""
MODEL_CONFIG = "config.json"
TEMPLATE = "chat_template.jinja"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Roles of special tokens, in the order in which those missing in a vocabulary get their ids."""
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is matched in a text before the model segments the rest."""

    content: str
    is_special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class TokenizerFolder:
    """The files of a tokenizer."""

    def __init__(self, path: Path) -> None:
        """Read the tokenizer config of the folder `path`.

        Raises:
            OSError: A file cannot be read.
            ValueError: One is malformed.
        """
        self.path = path
        self.config = self.json(CONFIG)
        if "added_tokens_decoder" not in self.config:
            self.config |= self.json(LEGACY[0])

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in the file `name`; an empty one if there is no such file.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not a JSON object.
        """
        path = self.path / name
        found = json.loads(path.read_bytes()) if path.is_file() else {}
        if not isinstance(found, dict):
            raise ValueError(f"{name} is not a JSON object")
        return found

    def vocabulary(self, name: str) -> dict[str, int]:
        """Return the tokens in the file `name`, and their ids.

        Raises:
            OSError: It cannot be read.
            ValueError: It is not a JSON object of integers.
        """
        found = self.json(name)
        for text, token in found.items():
            if not isinstance(token, int) or isinstance(token, bool):
                raise ValueError(f"{name}: the id of {text!r} is {token!r}; expected an integer")
        return found

    def named(self, defaults: Mapping[str, str]) -> dict[str, Added]:
        """Return the special tokens by role, such as `eos_token`, in the order of NAMES.

        Raises:
            ValueError: One is neither a string nor a token.
        """
        found = {name: self.config.get(name, defaults.get(name)) for name in NAMES}
        return {name: _added(token) for name, token in found.items() if token}

    def added(
        self, vocabulary: Mapping[str, int], named: Iterable[Added], instead: Iterable[str] = ()
    ) -> dict[int, Added]:
        """Return the added tokens by id; ids may lie beyond those of `vocabulary`.

        Args:
            vocabulary: All other tokens.
            named: The special tokens that have a role.
            instead: Further special tokens to assume if the folder lists none.

        Raises:
            ValueError: One is neither a string nor a token.
        """
        listed = next((self.config[key] for key in _EXTRA if self.config.get(key)), instead)
        if isinstance(listed, dict):
            listed = listed.values()
        special = [*named, *map(_added, listed)]
        contents = {token.content for token in special}
        noted = self.config.get("added_tokens_decoder", {})
        if not noted:
            beside = self.vocabulary(LEGACY[1])
            noted = {token: {"content": text, "special": False} for text, token in beside.items()}
        found = {}
        for number, token in noted.items():
            each = _added(token)
            is_special = each.is_special or each.content in contents
            found[int(number)] = Added(
                each.content, is_special, each.lstrip, each.rstrip, each.single_word
            )
        ids = {**vocabulary, **{token.content: number for number, token in found.items()}}
        for each in special:
            found.setdefault(ids.setdefault(each.content, len(ids)), each)
        return found

    def chat_template(self) -> str | None:
        """Return the chat template; None if there is none."""
        if (path := self.path / TEMPLATE).is_file():
            return path.read_text()
        found = self.config.get("chat_template")
        if isinstance(found, list):  # several, by name
            found = {each["name"]: each["template"] for each in found}.get("default")
        return found or None


def add_to(tokenizer: Tokenizer, added: Mapping[int, Added]) -> None:
    """Register the tokens `added`, which its model has, as added tokens of `tokenizer`."""
    tokenizer.add_tokens([
        LibraryToken(
            token.content, special=token.is_special, lstrip=token.lstrip, rstrip=token.rstrip,
            single_word=token.single_word, normalized=False,
        )
        for _, token in sorted(added.items())
    ])  # fmt: skip


def _added(value: object) -> Added:
    if isinstance(value, str):
        return Added(value)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"{CONFIG}: {value!r} is not a token")
    flags = (bool(value.get(flag)) for flag in ("lstrip", "rstrip", "single_word"))
    return Added(value["content"], bool(value.get("special", True)), *flags)
