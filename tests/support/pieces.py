"""Tokenizers that are not of the tokenizers library, made in a moment, as hubs have them."""

import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ENGLISH = [
    "the house is old and the garden is green",
    "a small boy reads a book in the old house",
    "nobody came to the garden that day because it was raining",
    "she said : hello , world ! what is it ?",
] * 3
GERMAN = [
    "das haus ist alt und der garten ist grün",
    "ein kleiner junge liest ein buch im alten haus",
    "niemand kam an diesem tag in den garten , weil es regnete",
    "„ schön “ , 中国 人 , 中国",
] * 3
RUN = "中国人"
"""What no piece of the English model has, and a vocabulary has as a whole."""
LETTERS = "▁abcdefghijklmnopqrstuvwxyz"
HEADS = [">>fra<<", ">>deu<<"]


def train(lines: Iterable[str], size: int, **options: Any) -> bytes:
    """Return a SentencePiece model of about `size` pieces."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, vocab_size=size, minloglevel=2,
        hard_vocab_limit=False, **options,
    )  # fmt: skip
    return made.getvalue()


def pieces_of(model: bytes) -> list[str]:
    import sentencepiece

    read = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [
        read.IdToPiece(number)
        for number in range(len(read))
        if not read.IsControl(number) and not read.IsUnknown(number)
    ]


def save_marian(folder: Path, heads: Iterable[str] = HEADS, **options: Any) -> int:
    """Save what MarianTokenizer reads, and return how many tokens there are.

    Each seventh piece is in no vocabulary, but for `LETTERS`.
    """
    source, target = train(ENGLISH, 90, **options), train(GERMAN, 90, **options)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    pieces = dict.fromkeys([*pieces_of(source), *pieces_of(target)])
    kept = [piece for number, piece in enumerate(pieces) if number % 7 or piece in LETTERS]
    tokens = list(dict.fromkeys(["</s>", "<unk>", *heads, *kept, RUN, "<pad>"]))
    write(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    write(folder / "tokenizer_config.json", {"tokenizer_class": "MarianTokenizer"})
    return len(tokens)


def save_m2m100(folder: Path, **options: Any) -> None:
    """Save what M2M100Tokenizer reads."""
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    model = train(ENGLISH + GERMAN, 120, **options)
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces_of(model)[:-6]]
    write(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    config = {
        "tokenizer_class": "M2M100Tokenizer", "src_lang": "de",
        "additional_special_tokens": [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]],
    }  # fmt: skip
    write(folder / "tokenizer_config.json", config)


def save_byte_pairs(folder: Path, name: str) -> None:
    """Save what PhobertTokenizer and BertweetTokenizer read, as the class `name`.

    Each sixth piece is in no vocabulary.
    """
    counts = Counter(word for line in ENGLISH for word in line.split())
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    codes = []
    for _ in range(60):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in counts.items():
            for pair in zip(words[word], words[word][1:], strict=False):
                pairs[pair] += count
        (one, other), count = pairs.most_common(1)[0]
        codes.append(f"{one} {other} {count}\n")
        words = {word: merged(pieces, one, other) for word, pieces in words.items()}
    (folder / "bpe.codes").write_text("".join(codes))
    seen = [
        piece.removesuffix("</w>") if piece.endswith("</w>") else f"{piece}@@"
        for pieces in words.values()
        for piece in pieces
    ]
    kept = [f"{piece} 1\n" for number, piece in enumerate(dict.fromkeys(seen)) if number % 6]
    (folder / "vocab.txt").write_text("".join(kept))
    write(folder / "tokenizer_config.json", {"tokenizer_class": name})


def merged(pieces: list[str], one: str, other: str) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        if found and (found[-1], piece) == (one, other):
            found[-1] += piece
        else:
            found.append(piece)
    return found


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
