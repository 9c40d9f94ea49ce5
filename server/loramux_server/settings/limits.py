"""Limits and timeouts of requests."""

from typing import Annotated

from msgspec import Meta

from loramux_server.settings.network import NetworkSettings

MOST_IMAGE_PIXELS = 178_956_970
"""Pillow opens no image with more."""


class LimitSettings(NetworkSettings, frozen=True, kw_only=True):
    """Limits and timeouts of requests. Sizes are in bytes, times in seconds."""

    default_timeout: Annotated[
        float, Meta(gt=0, description="Deadline in seconds of calls that come without one.")
    ] = 600.0
    max_completions: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description="Maximum number of completions per request (n); never more than "
            "--max-running and --max-waiting together.",
        ),
    ] = 64
    max_waiting_tokens: Annotated[
        int,
        Meta(
            ge=1,
            description="Queue limit in prompt tokens of all requests; a longer prompt may "
            "wait alone.",
        ),
    ] = 1 << 18
    max_waiting_bytes: Annotated[
        int,
        Meta(
            ge=1,
            description="Queue limit in bytes of all requests, as received, and of their "
            "images, as preprocessed for the model.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 256 << 20
    max_image_bytes: Annotated[
        int,
        Meta(
            ge=1,
            description="Maximum size of an image file. The size limit of a request follows "
            "from it: three such images and 4M for all else.",
            extra_json_schema={"format": "bytes"},
        ),
    ] = 8 << 20
    max_image_pixels: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_IMAGE_PIXELS,
            description="Maximum number of pixels of an image; checked before the model's own "
            "limit.",
        ),
    ] = 1 << 24
    max_lag: Annotated[
        float,
        Meta(
            ge=0,
            description="Overload protection: refuse requests while the frontend's event loop "
            "lags by more than this many seconds in three checks in a row. 0 means no limit.",
        ),
    ] = 1.0
    stream_interval: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Tokens to send in one message of a stream; the first token is sent at "
            "once.",
        ),
    ] = 1
    reader_timeout: Annotated[
        float,
        Meta(
            gt=0,
            description="End a stream if its client does not read what was sent for this many "
            "seconds.",
        ),
    ] = 10.0
