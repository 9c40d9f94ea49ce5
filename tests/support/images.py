"""A base model that sees images, without a model and without a processor of images."""

import asyncio
import hashlib

from loramux.errors import InvalidArgumentError
from loramux_server.images.messages import Array, Image, Placeholder, PreparedImage
from tests.support.models import byte_tokenizer

PLACEHOLDER = "<image>"
NUM_TOKENS = 3
"""Tokens that stand for an image."""
NUM_BYTES = 40
"""What the model takes of one."""

LISTED = """\
{%- for message in messages %}
{{- '[' + message.role + ']' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<image>' }}{%- else %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"""
"""Takes texts and lists, as Qwen's do."""
ONLY_LISTED = """\
{% for message in messages %}{{ '[' + message['role'] + ']' }}\
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}\
{% endfor %}{% endfor %}"""
"""Takes lists alone, and puts images before texts, as LLaVA's did."""
OF_TEXTS = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
"""Knows of no images."""

TOKENIZER = byte_tokenizer()
TOKENIZER.add_tokens([PLACEHOLDER])  # which is no control token to it
PLACEHOLDER_ID: int = TOKENIZER.convert_tokens_to_ids(PLACEHOLDER)
VISION_MODEL = {
    "tokenizer_json": TOKENIZER.backend_tokenizer.to_str(), "chat_template": LISTED,
    "vocab_size": len(TOKENIZER), "supports_images": True,
}  # fmt: skip
"""What the frontend is told of such a base model."""


class FakePreparer:
    """Takes any file that does not begin with `bad`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        """While it is not set, no image is done."""
        self.gate.set()
        self.fields: list[str] = []
        """Of images whose preparation began."""
        self.num_given_up = 0
        self.is_closed = False
        self.stands = Placeholder(PLACEHOLDER_ID)

    async def placeholder(self, tenant: str) -> Placeholder:
        return self.stands

    async def prepare(self, data: bytes, field: str, tenant: str) -> PreparedImage:
        self.fields.append(field)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_given_up += 1
            raise
        if data.startswith(b"bad"):
            raise InvalidArgumentError(f"{field}: no image", reason="INVALID_FIELD", field=field)
        return prepared(data)

    async def close(self) -> None:
        self.is_closed = True


def prepared(data: bytes) -> PreparedImage:
    """Return what becomes of the file `data`."""
    array = Array("float32", [NUM_BYTES // 4], data[:NUM_BYTES].ljust(NUM_BYTES, b"\0"))
    image = Image(hashlib.blake2b(data, digest_size=32).digest(), {"pixel_values": array})
    return PreparedImage([PLACEHOLDER_ID] * NUM_TOKENS, image)
