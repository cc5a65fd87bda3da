"""`python -m tests.update_golden`: play the golden episodes of every shipped environment again and store them."""

from __future__ import annotations

from envfarm.registry import default_registry
from tests.golden import FOLDER, file_of, played, text_of


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in default_registry().ids():
        text = text_of(played(name))
        file = file_of(name)
        before = file.read_text() if file.exists() else ""
        file.write_text(text)
        print(f"{'same   ' if text == before else 'changed'} {file.name}")


if __name__ == "__main__":
    main()
