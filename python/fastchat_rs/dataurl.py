"""`data:` URLs with pictures (RFC 2397). Knows no HTTP; errors name the place and what would do."""

import base64
import binascii

from fastchat_rs.errors import ConfigError

_SHOWN = 40


def decoded(url: str, place: str) -> bytes:
    """The bytes of `data:image/<kind>;base64,<data>`. What kind they are is seen in the bytes, not in the name."""
    head, comma, body = url.partition(",")
    media, *parameters = head.removeprefix("data:").split(";")
    if not comma or not head.startswith("data:"):
        raise ConfigError(f"{place}: '{url[:_SHOWN]}' is not a data URL; expected data:image/png;base64,...")
    if not media.lower().startswith("image/"):
        raise ConfigError(f"{place}: a data URL of type '{media[:_SHOWN]}'; expected image/png, jpeg, webp or gif")
    if not any(parameter.strip().lower() == "base64" for parameter in parameters):
        raise ConfigError(f"{place}: a data URL that is not base64; expected data:image/png;base64,...")
    try:
        return base64.b64decode(body.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"{place}: the data URL's base64 is damaged") from error
