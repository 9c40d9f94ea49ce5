"""Page sizes of lists."""

from loramux_server.field_errors import invalid

MAX_PAGE = 1000
DEFAULT_PAGE = 100


def page_size(requested: int) -> int:
    """Return the effective page size for the field `page_size`.

    Raises:
        InvalidArgumentError: It is negative.
    """
    if requested < 0:
        raise invalid("page_size", requested, f"0 to {MAX_PAGE}")
    return min(requested or DEFAULT_PAGE, MAX_PAGE)
