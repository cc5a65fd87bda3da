"""What lies around on the worker's side for an agent to find: were anything of it in reach, an attempt would say so.

A listening TCP port, an abstract Unix socket, a readable file, an inheritable descriptor and an environment variable.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from types import TracebackType


class Bait:
    """A context manager. `word` is in the file, in what the descriptor reads and in the variable's value."""

    def __enter__(self) -> Bait:
        self.word = f"bait{secrets.token_hex(8)}"
        self._listener = socket.create_server(("0.0.0.0", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.abstract = f"bait{secrets.token_hex(8)}"
        self._abstract = socket.socket(socket.AF_UNIX)
        self._abstract.bind(f"\0{self.abstract}")
        self._abstract.listen()
        self._file = tempfile.NamedTemporaryFile(prefix="bait", delete=True)
        self._file.write(self.word.encode())
        self._file.flush()
        os.chmod(self._file.name, 0o644)
        os.set_inheritable(self._file.fileno(), True)
        self.path: str = self._file.name
        self._variable = f"BAIT_{secrets.token_hex(4)}"
        os.environ[self._variable] = self.word
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del os.environ[self._variable]
        self._file.close()
        self._abstract.close()
        self._listener.close()

    def known_to_the_script(self) -> str:
        """Lines of Python: what an agent is told of it. Not the word: that it would have to find."""
        return f"PORT, ABSTRACT, BAIT_FILE, WORKER = {self.port!r}, {self.abstract!r}, {self.path!r}, {os.getpid()!r}\n"
