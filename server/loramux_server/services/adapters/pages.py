"""Page sizes of lists."""

from loramux_server.field_errors import invalid

MAX_PAGE = 1000
DEFAULT_PAGE = 100


def page_size(asked: int) -> int:
    """Return the effective page size for the field `page_size`.

    Raises:
        InvalidArgumentError: It is negative.
    """
    if asked < 0:
        raise invalid("page_size", asked, f"0 to {MAX_PAGE}")
    return min(asked or DEFAULT_PAGE, MAX_PAGE)
