"""The manifest of a package: its PEFT config, and notes with further facts about the adapter.

Ranks, alphas, targets and task are only in the PEFT config, which is kept as it is, so they cannot
disagree with it. Notes are optional. A package without notes has the same bytes, and so the same
digest, as one of a version without notes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.added_tokens import parse_added_tokens
from loramux_adapters.embedding import check_embedding
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.generation import check_generation
from loramux_adapters.labels import check_labels
from loramux_adapters.special_tokens import check_special_tokens
from loramux_adapters.strict_json import parse_object

FORMAT_VERSION = 1
MANIFEST_KEY = "loramux.manifest"
MAX_TEMPLATE_BYTES = 64 << 10
NOTES: Mapping[str, tuple[type, str]] = {
    "base": (dict, "an object"),
    "labels": (list, "a list"),
    "chat_template": (str, "a string"),
    "generation": (dict, "an object"),
    "added_tokens": (list, "a list"),
    "special_tokens": (dict, "an object"),
    "classification": (dict, "an object"),
    "embedding": (dict, "an object"),
    "licence": (str, "a string"),
    "provenance": (dict, "an object"),
    "evaluation": (dict, "an object"),
    "tensors": (dict, "an object"),
    "signature": (dict, "an object"),
}
"""Name of each note -> its Python type, and that type in words.

`tensors` has the digest of each tensor; `signature` signs everything else in the manifest.
"""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest with valid version, kind and notes; the PEFT config is not validated yet."""

    peft_config: Mapping[str, object]
    notes: Mapping[str, object]


def parse_manifest(text: str) -> Manifest:
    """Parse and validate the JSON `text`.

    Raises:
        PackageError: It is malformed, or of an unsupported version or kind.
    """
    try:
        manifest = parse_object(text.encode(), "the manifest")
    except ValueError as error:
        raise PackageError(str(error), "INVALID_ADAPTER_CONFIG") from None
    version, kind, config = (manifest.pop(key, None) for key in ("format", "kind", "peft_config"))
    if type(version) is not int or version != FORMAT_VERSION:
        raise PackageError(
            f"the manifest has format {shown(version)}; expected {FORMAT_VERSION}",
            "INVALID_ADAPTER_CONFIG",
        )
    if not isinstance(config, dict):
        raise PackageError("the manifest has no peft_config object", "INVALID_ADAPTER_CONFIG")
    if kind != _kind(config):
        raise PackageError(
            f"the manifest has kind {shown(kind)}; expected {shown(_kind(config))} for the "
            "peft_type of its peft_config",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    return Manifest(config, check_notes(manifest, "the manifest"))


def check_notes(notes: Mapping[str, object], where: str) -> Mapping[str, object]:
    """Validate `notes` and return them; messages begin with `where`."""
    for name, value in notes.items():
        if name not in NOTES:
            raise PackageError(
                f"{where}: {shown(name)} is not a known key; expected one of {', '.join(NOTES)}",
                "INVALID_ADAPTER_CONFIG",
            )
        kind, words = NOTES[name]
        if not isinstance(value, kind):
            raise PackageError(
                f"{where}: {name} is {shown(value)}; expected {words}", "INVALID_ADAPTER_CONFIG"
            )
    template, generation = notes.get("chat_template"), notes.get("generation")
    if isinstance(template, str) and not 1 <= len(template.encode()) <= MAX_TEMPLATE_BYTES:
        raise PackageError(
            f"{where}: chat_template has {len(template.encode())} bytes; "
            f"expected 1 to {MAX_TEMPLATE_BYTES}",
            "INVALID_ADAPTER_CONFIG",
        )
    if isinstance(generation, dict):
        check_generation(generation, f"{where}: generation")
    classification = notes.get("classification")
    if isinstance(classification, dict):
        check_labels(classification, f"{where}: classification")
    embedding = notes.get("embedding")
    if isinstance(embedding, dict):
        check_embedding(embedding, f"{where}: embedding")
    added = notes.get("added_tokens")
    if isinstance(added, list):
        parse_added_tokens(added, f"{where}: added_tokens")
    special = notes.get("special_tokens")
    if isinstance(special, dict):
        check_special_tokens(special, f"{where}: special_tokens")
    return notes


def with_step(notes: Mapping[str, object], step: Mapping[str, object]) -> dict[str, object]:
    """Return `notes` for an adapter made from the noted one: append `step` to `provenance.steps`.

    The digests of the old tensors and the signature are left out.
    """
    kept = {name: note for name, note in notes.items() if name not in ("tensors", "signature")}
    provenance = kept.get("provenance")
    known = provenance if isinstance(provenance, dict) else {}
    steps = known.get("steps", [])
    kept["provenance"] = known | {"steps": [*(steps if isinstance(steps, list) else []), step]}
    return kept


def manifest_text(peft_config: Mapping[str, object], notes: Mapping[str, object]) -> str:
    """Return the manifest as JSON; equal input gives equal text, regardless of key order."""
    fixed = {
        "format": FORMAT_VERSION,
        "kind": _kind(peft_config),
        "peft_config": _sorted(peft_config),
    }
    return compact_json(fixed | {name: _sorted(notes[name]) for name in NOTES if name in notes})


def _kind(peft_config: Mapping[str, object]) -> str:
    return str(peft_config.get("peft_type")).lower()


def compact_json(value: object) -> str:
    """Return `value` as JSON without white space."""
    return json.dumps(value, separators=(",", ":"))


def _sorted(value: object) -> object:
    if isinstance(value, Mapping):
        return {
            # The first pattern that matches a module counts, so their order has to be kept.
            key: entry if key in ("rank_pattern", "alpha_pattern") else _sorted(entry)
            for key, entry in sorted(value.items())
        }
    if isinstance(value, list):
        return [_sorted(entry) for entry in value]
    return value
