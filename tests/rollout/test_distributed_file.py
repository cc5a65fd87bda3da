"""`ray:` in a run file, and what is said where Ray is not installed. Needs no Ray."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from envfarm.cli import main
from envfarm.errors import MissingDependencyError, RunFileError
from rollout.places import make_place
from rollout.run import RayEntry, RolloutFile, read_run
from trainer.checkpoint import meaning

RUN = """\
envfarm: 1
run: there
environments: [{id: games/maze-v0}]
policies: {oracle: {scripted: oracle}}
ray: RAY
"""


def read(tmp_path: Path, ray: str) -> RolloutFile:
    file = tmp_path / "run.yaml"
    file.write_text(RUN.replace("RAY", ray))
    return read_run(file, RolloutFile)[0]


@pytest.mark.parametrize(
    "ray, message",
    [
        ("{address: auto}", r"run.yaml:5:6: .*workers"),
        ("{workers: 0}", r"run.yaml:5:16: .*greater than or equal to 1"),
        ("{workers: 2, adress: auto}", r"run.yaml:5:19: .*'adress'.*did you mean 'address'"),
        ("{workers: 2, address: 'http://head'}", r"run.yaml:5:28: .*http://head"),
        ("{workers: 2, object_store: 1MiB}", r"run.yaml:5:33: .*83886080"),
        ("{workers: 2, resources: [tpu]}", r"run.yaml:5:30: .*mapping"),
        ("4", r"run.yaml:5:6: "),
    ],
)
def test_mistakes_are_told_at_their_place(tmp_path: Path, ray: str, message: str) -> None:
    with pytest.raises(RunFileError, match=message):
        read(tmp_path, ray)


@pytest.mark.parametrize("address", ["auto", "10.0.0.7:6379", "ray://head.cluster:10001"])
def test_what_may_be_said(tmp_path: Path, address: str) -> None:
    more = "cpus: 0.5, gpus: 1, resources: {big: 2}, env: {OMP_NUM_THREADS: '2'}, object_store: 2GiB, start_timeout_s: 60"
    entry = read(tmp_path, f"{{workers: 4, address: '{address}', {more}}}").ray
    assert entry is not None and (entry.workers, entry.address, entry.object_store) == (4, address, 2 << 30)
    assert entry.asks() == "CPU 0.5, GPU 1, big 2"


def test_where_a_run_is_played_is_no_part_of_its_meaning(tmp_path: Path) -> None:
    """So that it may go on with more workers, or without any."""
    two, four = (read(tmp_path, f"{{workers: {n}}}") for n in (2, 4))
    here = two.model_copy(update={"ray": None})
    assert meaning(two.model_dump(mode="json")) == meaning(four.model_dump(mode="json")) == meaning(here.model_dump(mode="json"))


def test_without_ray_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [n for n in sys.modules if n == "ray" or n.startswith("rollout.distributed")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)  # what the import system makes of a package that is not there
    run = read(tmp_path, "{workers: 2}")
    with pytest.raises(MissingDependencyError, match=r"pip install 'envfarm\[ray\]'"):
        make_place(run, {})
    monkeypatch.delitem(sys.modules, "rollout.distributed", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["rollout", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and "pip install 'envfarm[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_entry_pickles_and_survives_json() -> None:
    import pickle

    entry = RayEntry(workers=2, env={"A": "b"})
    assert pickle.loads(pickle.dumps(entry)) == entry == RayEntry.model_validate_json(entry.model_dump_json())
