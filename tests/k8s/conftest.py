"""One farm in the live cluster for all tests that only use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.k8s.live import LiveFarm, envfarm, require_image, write

SHELL, MAZE = "coding/shell-v0", "games/maze-v0"
WARM = 1


@pytest.fixture(scope="session")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFarm]:
    """Of one worker; its second pool has none."""
    require_image()
    pools = [
        {"environments": [SHELL, MAZE], "workers": 1, "boxes": {"max": 8, "warm": WARM}},
        {"environments": ["web/*"], "workers": 0},
    ]
    file = write(tmp_path_factory.mktemp("farm"), pools)
    try:
        assert f"farm {file.stem} is applied" in envfarm("farm", "up", str(file), "--on", "kubernetes")
        made = LiveFarm.of(file)
        made.until(lambda pool: [worker.up for worker in pool.workers] == [True])
        yield made
    finally:
        envfarm("farm", "down", str(file))
