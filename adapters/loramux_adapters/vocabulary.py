"""Adapters with a vocabulary of their own: the embeddings were resized before training."""

from collections.abc import Mapping
from dataclasses import dataclass

from loramux_adapters.contents import Contents, Edit, EditKind
from loramux_adapters.errors import PackageError


@dataclass(frozen=True, slots=True)
class BaseVocabulary:
    """Input embedding and output layer of a base model."""

    embedding: str = ""
    """Name of the input embedding."""
    output: str = ""
    """Name of the output layer, which computes the logits."""
    num_embeddings: int = 0
    num_logits: int = 0
    is_tied: bool = False
    """Whether their weights are tied."""

    def size_for(self, contents: Contents) -> int:
        """Return the vocabulary size of the base with an adapter of `contents`; 0 if unchanged.

        Raises:
            PackageError: Embedding and output layer would have different sizes, so that PEFT would
                fill in random rows.
        """
        sizes = {self.embedding: self.num_embeddings, self.output: self.num_logits}
        before = dict(sizes)
        for edit in sorted(contents.edits, key=lambda edit: edit.kind is EditKind.TOKENS):
            if edit.module in sizes and edit.parameter == "weight":
                size = _size(edit, sizes[edit.module])
                for module in self._sized_by(edit, contents):
                    sizes[module] = size
        if sizes == before:
            return 0
        if self.output and sizes[self.embedding] != sizes[self.output]:
            raise PackageError(
                f"the adapter has {sizes[self.embedding]} tokens in module {self.embedding} and "
                f"{sizes[self.output]} in {self.output}: with a resized vocabulary, save both "
                "modules (modules_to_save or save_embedding_layers)",
                "ADAPTER_BASE_MISMATCH",
            )
        return sizes[self.output or self.embedding]

    def _sized_by(self, edit: Edit, contents: Contents) -> set[str]:
        """Return the modules whose number of rows `edit` determines."""
        is_shared = edit.kind is EditKind.SHARED_WEIGHT
        is_shared |= edit.kind is EditKind.TOKENS and edit.module == self.embedding
        if not (is_shared and self.is_tied):
            return {edit.module}
        other = self.output if edit.module == self.embedding else self.embedding
        has_own = any(e.module == other and e.parameter == "weight" for e in contents.edits)
        return {edit.module} if has_own else {edit.module, other}

    def resized(
        self, contents: Contents, base: Mapping[str, tuple[int, int]],
        parameters: Mapping[str, tuple[int, ...]],
    ) -> tuple[Mapping[str, tuple[int, int]], Mapping[str, tuple[int, ...]]]:  # fmt: skip
        """Return the shapes of the base's layers and parameters after resizing for `contents`.

        Args:
            contents: The adapter's changes.
            base: Name of each layer that can be changed -> (in_features, out_features).
            parameters: Name of each parameter that can be replaced -> its shape.

        Raises:
            PackageError: See `size_for`.
        """
        size = self.size_for(contents)
        if not size:
            return base, parameters
        weights = {f"{module}.weight" for module in (self.embedding, self.output)}
        changed = {
            name: (size, *shape[1:])
            for name, shape in parameters.items()
            if name in {*weights, f"{self.output}.bias"}
        }
        layers = {self.embedding: (size, base[self.embedding][1])}
        if self.output:
            layers[self.output] = base[self.output][0], size
        return {**base, **layers}, {**parameters, **changed}


def _size(edit: Edit, size: int) -> int:
    """Return how many rows a weight of `size` rows has after `edit`."""
    if edit.kind is not EditKind.TOKENS:
        return edit.tensor.shape[0] if edit.tensor.shape else 0
    added = sorted(token for token in edit.tokens if token >= size)
    for wanted, token in enumerate(added, size):
        if token != wanted:
            raise PackageError(
                f"tensor {edit.tensor.name}: it has a row for token {token} but none for {wanted}, "
                f"and the base model has {size} tokens",
                "ADAPTER_BASE_MISMATCH",
            )
    return size + len(added)
