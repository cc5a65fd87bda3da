"""Where an OpenEnv server is: `http://host:port`, or `https://:${NAME}@host` where it wants a token.

A password in the address is sent as `Authorization: Bearer`; `${NAME}` is taken from the environment of the process that
plays, so that no secret stands in a file, in a spec or in its hash.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from envfarm.errors import UserError

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SOCKETS = {"http": "ws", "https": "wss"}


@dataclass(frozen=True)
class Address:
    base: str
    """Without user, password and a slash at the end."""
    token: str | None = None

    @property
    def socket(self) -> str:
        scheme, _, rest = self.base.partition("://")
        return f"{_SOCKETS[scheme]}://{rest}/ws"

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}


def address(text: str) -> Address:
    """Raises: UserError for what is no address of a server, and for a variable that is not set."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise UserError(f"openenv: {text} needs the environment variable {found[1]}, which is not set")
        return quote(os.environ[found[1]], safe="")

    if wrong := problem(text):
        raise UserError(f"openenv: {wrong}")
    parts = urlsplit(_VARIABLE.sub(value, text))
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    base = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path.rstrip('/')}"
    return Address(base, unquote(parts.password) if parts.password else None)


def problem(text: str) -> str:
    """What keeps `text` from being an address; empty where nothing does. Looks at no variable."""
    expected = f"expected the URL of a running OpenEnv server, such as http://127.0.0.1:8000, found {text!r}"
    try:
        parts = urlsplit(_VARIABLE.sub("x", text))
        port = parts.port
    except ValueError as error:
        return f"{expected}: {error}"
    if parts.scheme not in _SOCKETS or not parts.hostname or port == 0 or parts.query or parts.fragment:
        return expected
    return ""
