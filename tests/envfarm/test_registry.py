"""Environments by id, their code, and Gymnasium's view of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envfarm.errors import MissingDependencyError, SpecError, UnknownIdError, UserError
from envfarm.registry import Registry, default_registry, make, make_scene, shipped_folder
from envfarm.session import LocalSession
from envfarm.spec import load_spec
from tests.envfarm.specs import REPAIR, write

BOXLESS = REPAIR.replace("box: true", "box: false")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for version in ("v0", "v2", "v10"):
        write(tmp_path / "coding" / version, BOXLESS.replace("-v0", f"-{version}"))
    write(tmp_path / "other", BOXLESS.replace("coding/repair-v0", '"games/ball-v0"  # quoted'))
    (tmp_path / "other" / "data.yaml").write_text("rows: 1\n")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden", BOXLESS)
    return tmp_path


def test_ids_and_versions(tree: Path) -> None:
    registry = Registry([tree])
    assert registry.ids() == ["coding/repair-v0", "coding/repair-v2", "coding/repair-v10", "games/ball-v0"]
    assert registry.get("coding/repair").id == "coding/repair-v10"
    assert registry.get("coding/repair-v0").id == "coding/repair-v0"
    assert registry.match("games/*") == ["games/ball-v0"] and registry.match("coding/repair") == ["coding/repair-v10"]
    assert len(registry.match("*")) == 4


def test_files_and_folders(tree: Path) -> None:
    registry = Registry()
    assert registry.get(tree / "other" / "repair.yaml").id == "games/ball-v0" == registry.get(str(tree / "other")).id
    with pytest.raises(UnknownIdError, match="expected exactly one environment in the folder, found no"):
        registry.get(tree / "coding")
    with pytest.raises(SpecError, match="no such file"):
        registry.get("nowhere.yaml")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("coding/repiar-v0", "did you mean 'coding/repair-v0'"),
        ("repiar", "did you mean 'coding/repair-v10'"),
        ("coding/repair-v3", "it has coding/repair-v0, coding/repair-v2, coding/repair-v10"),
        ("maths/*", "no environment matches 'maths/*'; known: coding/repair-v0"),
    ],
)
def test_unknown_ids_name_what_is_near(tree: Path, name: str, says: str) -> None:
    with pytest.raises(UnknownIdError) as caught:
        Registry([tree]).match(name)
    assert says in str(caught.value)


def test_two_files_with_one_id(tree: Path) -> None:
    write(tree / "twice", BOXLESS)
    with pytest.raises(
        SpecError, match=r"twice/repair.yaml:2:5: duplicate id 'coding/repair-v0': .*v0/repair.yaml declares it too"
    ):
        Registry([tree]).ids()
    assert len(Registry([tree / "other", tree / "other"]).ids()) == 1, "the same file on two ways is one file"


def test_where_environments_are_looked_for(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVFARM_PATH", str(tree / "other"))
    shipped = set(Registry([shipped_folder()]).ids())
    assert set(default_registry([tree / "coding" / "v2"]).ids()) == {*shipped, "games/ball-v0", "coding/repair-v2"}
    with pytest.raises(UserError, match="no such folder or file of environments"):
        default_registry([tree / "nowhere"])


def test_an_installed_package_brings_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its entry point, and without running its code."""
    write(tmp_path / "their_worlds" / "repair", BOXLESS.replace("coding/repair-v0", "theirs/repair-v0"))
    (tmp_path / "their_worlds" / "__init__.py").write_text("raise AssertionError('imported')\n")
    info = tmp_path / "their_worlds-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-worlds\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[envfarm.environments]\ntheirs = their_worlds\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = default_registry().get("theirs/repair")
    session = LocalSession(spec, make_scene(spec))
    assert session.reset(spec.instance("train", 0)).text.startswith("modules: ")
    (info / "entry_points.txt").write_text("[envfarm.environments]\ntheirs = not_there_at_all\n")
    with pytest.raises(UserError, match="names not_there_at_all, which is not installed"):
        default_registry()


def test_a_broken_neighbour_does_not_hide_the_others(tree: Path) -> None:
    path = write(tree / "broken", BOXLESS.replace("coding/repair-v0", "coding/broken-v0") + "oops: 1\n")
    registry = Registry([tree])
    assert "coding/broken-v0" in registry.ids() and registry.get("games/ball").id == "games/ball-v0"
    with pytest.raises(SpecError, match="unknown key 'oops'") as caught:
        registry.get("coding/broken")
    assert caught.value.location is not None and caught.value.location.file == str(path)


def test_a_scene_from_a_folder_with_relative_imports(tree: Path) -> None:
    spec = load_spec(tree / "other" / "repair.yaml")
    session = LocalSession(spec, make_scene(spec))
    turn = session.reset(spec.instance("train", 1, {"rung": 0}))
    assert turn.text.startswith("modules: 1") and session.step("guess 1").rewards == {"agent": 1.0}
    assert type(make_scene(spec)) is type(make_scene(spec)), "imported once"


def test_changed_code_is_imported_anew(tmp_path: Path) -> None:
    def first_word() -> str:
        spec = load_spec(write_changed())
        return LocalSession(spec, make_scene(spec)).reset(spec.instance("train", 1)).text.split()[0]

    def write_changed() -> Path:
        path = write(tmp_path, BOXLESS)
        (tmp_path / "words.py").write_text(f"WORD = '{word}'\n")
        return path

    word = "one"
    assert first_word() == "one"
    word = "two"
    assert first_word() == "two"


@pytest.mark.parametrize(
    ("change", "says", "place"),
    [
        ((":Repair", ":Repiar"), "has no class 'Repiar' (did you mean 'Repair'?)", "5:8"),
        (("./repair.py:Repair", "no.such.module:Repair"), "there is no module 'no'", "5:8"),
        (("./repair.py:Repair", "envfarm.spec:EnvSpec"), "is no envfarm.env.Env", "5:8"),
    ],
)
def test_a_missing_entry(tmp_path: Path, change: tuple[str, str], says: str, place: str) -> None:
    path = write(tmp_path, BOXLESS.replace(*change))
    with pytest.raises(SpecError) as caught:
        make_scene(load_spec(path))
    assert says in str(caught.value) and str(caught.value).startswith(f"{path}:{place}: ")


@pytest.mark.parametrize(
    ("requirement", "says"),
    [
        ("no-such-package-here>=25", "which is not installed. Install it: pip install 'no-such-package-here>=25'"),
        ("numpy>=999", "is installed. Install it: pip install 'numpy>=999'"),
    ],
)
def test_a_missing_package(tmp_path: Path, requirement: str, says: str) -> None:
    path = write(tmp_path, BOXLESS.replace("numpy>=2", requirement))
    with pytest.raises(MissingDependencyError) as caught:
        make_scene(load_spec(path))
    assert says in str(caught.value) and str(caught.value).startswith(f"{path}:6:12: coding/repair-v0 requires")


def test_code_that_imports_what_is_not_there_or_is_no_python(tmp_path: Path) -> None:
    path = write(tmp_path, BOXLESS)
    (tmp_path / "words.py").write_text("import no_such_package_here.part\n")
    with pytest.raises(MissingDependencyError, match="imports 'no_such_package_here', which is not installed"):
        make_scene(load_spec(path))
    (tmp_path / "words.py").write_text("WORD = (\n")
    with pytest.raises(SpecError, match=r"words.py:1:\d+: not valid Python"):
        make_scene(load_spec(path))


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ('        """Guess how many modules there are."""\n', "", "repair.yaml:5:8", "tool Repair.guess has no docstring"),
        ("number: int", "number", "repair.yaml:5:8", "parameter 'number' has no type"),
        (
            "class Repair(Env):",
            "class Repair(Env):\n    def __init__(self, spec):\n        {}[1]",
            "repair.py:8:9",
            "cannot be made: KeyError",
        ),
        ("class Repair(Env):", "forgotten()\nclass Repair(Env):", "repair.py:6:1", "cannot be imported: NameError"),
    ],
)
def test_a_class_that_cannot_be_made(tmp_path: Path, old: str, new: str, place: str, says: str) -> None:
    path = write(tmp_path, BOXLESS)
    code = (tmp_path / "repair.py").read_text()
    assert old in code
    (tmp_path / "repair.py").write_text(code.replace(old, new))
    with pytest.raises(SpecError) as caught:
        make_scene(load_spec(path))
    assert str(caught.value).startswith(f"{tmp_path}/{place}: ") and says in str(caught.value)


def test_make_takes_files_and_settings(tree: Path) -> None:
    env = make(tree / "other" / "repair.yaml", setting={"rung": 0, "perturb": "off"})
    observation, info = env.reset(seed=5)
    assert observation.startswith("modules: 1") and env.reset(seed=5)[1]["instance"] == info["instance"]
    assert env.step("guess 1")[1:4] == (1.0, True, False)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


GYMNASIUM = """
env = gymnasium.make("games/maze-v0", render_mode="ansi")
text, info = env.reset(seed=1)
again = gymnasium.make("games/maze-v0").reset(seed=1)[0]
print(type(env.unwrapped).__name__, text == again == env.render(), isinstance(env.step(env.action_space.sample())[0], str))
env.close()
"""


@pytest.mark.parametrize("order", ["envfarm, gymnasium", "gymnasium, envfarm", "envfarm.registry, gymnasium"])
def test_gymnasium_knows_the_shipped_ids(order: str) -> None:
    """In a fresh process, whichever is imported first; making one gives text through Gymnasium's own wrappers."""
    assert run(f"import {order}\n{GYMNASIUM}") == "Maze True True"


def test_importing_envfarm_is_cheap() -> None:
    heavy = "('gymnasium', 'torch', 'numpy', 'pydantic', 'pettingzoo', 'pyarrow')"
    assert run(f"import envfarm, sys; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_listing_runs_no_environment_code(tree: Path) -> None:
    (tree / "other" / "repair.py").write_text("raise RuntimeError('imported')\n")
    code = f"from envfarm.registry import default_registry; print(len(default_registry([{str(tree / 'other')!r}]).ids()) > 1)"
    assert run(code) == "True"


def test_several_roles_are_no_gymnasium_environment() -> None:
    with pytest.raises(UserError, match="AEC"):
        make("games/kuhn-v0")
