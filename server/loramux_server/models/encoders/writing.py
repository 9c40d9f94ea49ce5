"""Generation settings of encoder-decoders."""

from transformers import PreTrainedModel

from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.writing import Writing


def writing_of(module: PreTrainedModel, vocab_size: int, eos_token_ids: list[int]) -> Writing:
    """Return the settings in the generation config of `module`.

    Args:
        module: The model.
        vocab_size: Size of its vocabulary.
        eos_token_ids: Its end-of-sequence tokens: as in transformers, they are allowed even if
            listed as bad words.

    Raises:
        UnservableModelError: There is no decoder start token.
    """
    config = module.generation_config
    start = _first(config.decoder_start_token_id)
    if start is None:
        start = _first(config.bos_token_id)
    if start is None or not 0 <= start < vocab_size:
        raise UnservableModelError(
            f"{type(module).__name__} has no valid decoder start token: "
            f"decoder_start_token_id of its generation_config.json is {start}; expected a token id "
            f"from 0 to {vocab_size - 1}"
        )
    bad = {words[0] for words in config.bad_words_ids or () if len(words) == 1}
    forbidden = bad.difference(eos_token_ids) | set(config.suppress_tokens or ())
    return Writing(
        decoder_start=start,
        forced_bos=_first(config.forced_bos_token_id),
        forbidden=sorted(token for token in forbidden if 0 <= token < vocab_size),
    )


def _first(token: int | list[int] | None) -> int | None:
    """Return `token`, or the first one of a list with one for each text of a batch."""
    return token[0] if isinstance(token, list) else token
