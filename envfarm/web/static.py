"""A site of static pages: files that somebody reads for it, and forms that are handed on. One `App`, no sockets.

`/` and other addresses that end so are `index.html` there. HTML is served as it is, any other file as lines of text.
A POST sends its fields to `take` and then shows the page at that address, or says that it was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from envfarm.web.http import App, Request, Response, ServerConnection, redirect

INDEX = "index.html"


class StaticSite:
    """`read` gives a file's bytes by its path in the site (`shoes/red.html`) and raises FileNotFoundError,
    IsADirectoryError, or another OSError or ValueError where there is none to be shown; `take` gets what forms send."""

    def __init__(self, read: Callable[[str], bytes], take: Callable[[str, dict[str, str]], None]):
        self._read, self._take = read, take

    def __call__(self, request: Request) -> Response:
        parts = [part for part in request.path.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in request.path:
            return _missing(request.path)
        if request.method == "POST":
            self._take(request.path, request.form)
        if request.path.endswith("/"):
            parts.append(INDEX)
        try:
            data = self._read("/".join(parts))
        except IsADirectoryError:
            return redirect(request.path + "/")
        except (OSError, ValueError):
            return Response("<p>Sent.</p>") if request.method == "POST" else _missing(request.path)
        text = data.decode("utf-8", "replace")
        return Response(text if parts[-1].endswith((".html", ".htm")) else _as_page(text))


class Direct:
    """A site in the browser's own process: a `Transport` without sockets. Each request is a connection of its own."""

    def __init__(self, app: App):
        self._app = app

    def exchange(self, request: bytes) -> bytes:
        answer = ServerConnection(self._app).receive(request)
        return answer or Response("<p>That is no whole request.</p>", 400).encode()


def _missing(path: str) -> Response:
    return Response(f"<p>There is no page {escape(path)}.</p>", 404)


def _as_page(text: str) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in text.splitlines())
