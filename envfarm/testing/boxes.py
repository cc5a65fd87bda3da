"""A box that runs nothing and remembers everything: what an environment puts into a box, without the cost of one."""

from __future__ import annotations

import builtins

from envfarm.box import WORKDIR, Entry, ExecResult, Snapshot


class RecordingBox:
    """A `SyncBox` that keeps written files and commands; commands succeed with no output. For looking at contents only."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commands: list[str] = []

    def exec(self, command: str, *, stdin: bytes = b"", timeout_s: float | None = None) -> ExecResult:
        self.commands.append(command)
        return ExecResult(exit_code=0, stdout=b"", stderr=b"")

    def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes:
        found = self.files.get(self._absolute(path))
        if found is None:
            raise FileNotFoundError(path)
        return found

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self.files[self._absolute(path)] = data

    def list(self, path: str = WORKDIR, *, max_entries: int = 10_000) -> list[Entry]:
        below = self._absolute(path).rstrip("/") + "/"
        return [
            Entry(path=name[len(below) :], kind="file", size=len(data), mode=0o644)
            for name, data in sorted(self.files.items())
            if name.startswith(below)
        ]

    def archive(self, paths: builtins.list[str], *, max_bytes: int = 16 << 20) -> dict[str, bytes]:
        wanted = [self._absolute(p) for p in paths]
        return {
            name[len(WORKDIR) + 1 :]: data
            for name, data in self.files.items()
            if any(name == w or name.startswith(w.rstrip("/") + "/") for w in wanted)
        }

    def snapshot(self) -> Snapshot:
        return Snapshot(files=b"", shell=b"")

    def stop(self) -> None:
        pass

    @property
    def content(self) -> str:
        """Everything that was put in, as one comparable text."""
        files = "\n".join(f"{name}\x00{data.hex()}" for name, data in sorted(self.files.items()))
        return files + "\x01" + "\x00".join(self.commands)

    @staticmethod
    def _absolute(path: str) -> str:
        return path if path.startswith("/") else f"{WORKDIR}/{path}"
