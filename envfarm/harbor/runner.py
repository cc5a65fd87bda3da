"""A task's own tests, run in a box: staged there when nobody acts any more, and what they wrote as the reward, read out.

The runner writes its verdict in the box where the agent's files are, and tests may load these files as code. So an agent could
influence it, whatever box it is formed in, and every reward says which one that was (`verify: runner_fresh`, `runner_shared`).
What a fresh box keeps out is what the agent left elsewhere than in the directories of the task: in `/tests`, in its shell, in
HOME and in `/tmp`.
"""

from __future__ import annotations

import io
import json
import math
import shlex
import tarfile
from collections.abc import Mapping

from envfarm.box import WORKDIR, Snapshot, SyncBox
from envfarm.errors import VerifierFault
from envfarm.harbor.dockerfile import top_of
from envfarm.harbor.files import mode_of
from envfarm.harbor.folder import LOGS, SOLUTION, TESTS, HarborTask

VERDICTS = f"{LOGS}/verifier"
LOG_FOLDERS = f"{LOGS}/agent {LOGS}/artifacts {VERDICTS}"
OF_THE_RUNNER = (TESTS, SOLUTION, VERDICTS)
"""Where nobody but the runner puts anything."""
MAX_REWARD_BYTES = 64 << 10
MAX_REWARDS = 32
_MAX_SAID_CHARS = 500
_PAGE_BYTES = 4096


def tampered(box: SyncBox) -> bool:
    """Whether something lies where only the runner puts anything, or nobody can tell."""
    for place in OF_THE_RUNNER:
        try:
            if box.list(place):
                return True
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return True
    return False


def carried(task: HarborTask, snapshot: Snapshot, room: Mapping[str, int]) -> Snapshot:
    """Of what the agent left, what the task is about: its directories and the logs; HOME only where that is the workdir.

    Raises: ValueError where a directory holds more than its `room` in bytes: holes of files and hard links are not kept.
    """
    home = snapshot.files if top_of(task.workdir) == WORKDIR else b""
    kept = Snapshot(files=home, shell=b"", more={k: v for k, v in snapshot.more.items() if k not in (TESTS, SOLUTION)})
    for place, data in kept.trees().items():
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            pages = sum(-(-entry.size // _PAGE_BYTES) for entry in tar)
        if pages * _PAGE_BYTES > room[place]:
            raise ValueError(f"{place} holds {pages * _PAGE_BYTES} bytes; there is room for {room[place]}")
    return kept


def stage(task: HarborTask, box: SyncBox) -> None:
    """Bring the tests in, to where nothing else lies. Raises: OSError where they cannot be written there."""
    tests = {path: (file.read_bytes(), mode_of(file)) for path, file in task.tests.items()}
    clear = f"chmod -R u+rwx {LOGS} {TESTS} {SOLUTION}; rm -rf {VERDICTS}; find {TESTS} {SOLUTION} -mindepth 1 -delete"
    box.exec(f"{{ {clear}; mkdir -p {LOG_FOLDERS}; }} >/dev/null 2>&1")
    for path, (data, mode) in tests.items():
        box.write(f"{TESTS}/{path}", data, mode=mode)


def run(task: HarborTask, box: SyncBox) -> dict[str, float]:
    """Rewards by name, as the tests that lie in the box wrote them.

    Raises: VerifierFault where they write none, or were ended by a limit of time.
    """
    told = f"{VERDICTS}/test-stdout.txt"
    script = f"{TESTS}/test.sh"
    settings = task.settings.verifier
    command = f"chmod +x {script}; {entering(task.workdir, task.env | settings.env)}; ({script}) >{told} 2>&1"
    result = box.exec(command, timeout_s=settings.timeout_sec)
    said = f"test.sh ended with exit code {result.exit_code}: {_end_of(box, told) or result.text.strip()[-_MAX_SAID_CHARS:]}"
    if result.limit in ("idle", "cpu"):
        raise VerifierFault(f"{task.folder.name}: the tests ran into a limit of time ({result.limit}); {said}")
    return _rewards(task, box, said)


def entering(workdir: str, variables: Mapping[str, str]) -> str:
    """Shell text that goes there, with these variables."""
    where = shlex.quote(workdir)
    return " && ".join([f"mkdir -p {where}", f"cd {where}", *(_export(name, value) for name, value in variables.items())])


def _export(name: str, value: str) -> str:
    """As a Dockerfile means it: `$NAME` is a variable, nothing else is special."""
    escaped = "".join(f"\\{c}" if c in '\\"`' else c for c in value).replace("$(", "\\$(")
    return f'export {name}="{escaped}"'


def _end_of(box: SyncBox, path: str) -> str:
    try:
        return box.read(path).decode("utf-8", "replace").strip()[-_MAX_SAID_CHARS:]
    except (OSError, ValueError):
        return ""


def _rewards(task: HarborTask, box: SyncBox, said: str) -> dict[str, float]:
    """`reward.json`, else `reward.txt`."""
    for name, read in (("reward.json", _from_json), ("reward.txt", _from_text)):
        try:
            data = box.read(f"{VERDICTS}/{name}", max_bytes=MAX_REWARD_BYTES)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise VerifierFault(f"{task.folder.name}: {name} cannot be read: {error}; {said}") from None
        try:
            return _checked(read(data.decode()))
        except (ValueError, TypeError) as error:
            raise VerifierFault(f"{task.folder.name}: {name} is no reward: {error}; {said}") from None
    raise VerifierFault(f"{task.folder.name}: the tests wrote neither reward.json nor reward.txt into {VERDICTS}; {said}")


def _from_text(text: str) -> dict[str, float]:
    return {"reward": float(text)}


def _from_json(text: str) -> dict[str, float]:
    found = json.loads(text)
    return found if isinstance(found, dict) else {"reward": found}


def _checked(found: dict[str, float]) -> dict[str, float]:
    """Raises: ValueError where there is no one reward among them, or one is no finite number."""
    if not 0 < len(found) <= MAX_REWARDS:
        raise ValueError(f"expected 1 to {MAX_REWARDS} rewards, found {len(found)}")
    for name, value in found.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"expected a finite number as {name!r}, found {value!r:.80}")
    if "reward" not in found and len(found) > 1:
        raise ValueError(f"none of {', '.join(found)} is called 'reward'")
    return {name: float(value) for name, value in found.items()}


def total(rewards: Mapping[str, float]) -> float:
    """The one that counts: `reward`, else the only one."""
    return rewards["reward"] if "reward" in rewards else next(iter(rewards.values()))
