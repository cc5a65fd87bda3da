"""Templates: the same draws everywhere, and nothing that a sandbox must not reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.errors import SpecError
from envfarm.seeding import generator
from envfarm.task.templates import SeededRng, Templates, fresh_rng
from tests.envfarm.task_files import task_spec


def rng(seed: int = 0) -> SeededRng:
    return SeededRng(generator("test", seed))


@given(st.integers(0, 2**32), st.lists(st.integers(), min_size=1, max_size=20, unique=True), st.data())
def test_samples_are_different_items_of_the_list(seed, items, data):
    count = data.draw(st.integers(0, len(items)))
    drawn = rng(seed).sample(items, count)
    assert len(set(drawn)) == count and set(drawn) <= set(items)
    assert sorted(rng(seed).shuffle(items)) == sorted(items)
    assert rng(seed).choice(items) in items


@given(st.integers(0, 2**32), st.integers(-9, 9), st.integers(0, 9))
def test_randint_has_both_ends_in(seed, low, width):
    assert low <= rng(seed).randint(low, low + width) <= low + width


def test_randint_reaches_both_ends():
    source = rng()
    assert {source.randint(1, 3) for _ in range(50)} == {1, 2, 3}


def test_templates_of_one_instance_draw_the_same_and_other_seeds_differ(tmp_path):
    spec = task_spec(tmp_path, prompt="p")
    (tmp_path / "plan.j2").write_text("{% set word = rng.randint(0, 10**9) %}")
    source = '{% import "plan.j2" as plan with context %}{{ plan.word }}'
    made = Templates(str(tmp_path))
    words = [
        made.render(source, {"rng": fresh_rng(spec.instance(split, seed))})
        for split, seed in [("train", 0), ("train", 0), ("train", 1)]
    ]
    assert words[0] == words[1] != words[2]


def test_a_narrowed_axis_does_not_draw_anew(tmp_path):
    spec = task_spec(tmp_path, prompt="p")
    one, other = (spec.instance("train", 3, {"set": {"size": [low, 9]}}) for low in (1, 9))
    assert one.hash != other.hash
    assert fresh_rng(one).randint(0, 10**9) == fresh_rng(other).randint(0, 10**9)


@pytest.mark.parametrize(
    ("source", "names_what"),
    [
        ("{{ missing }}", "'missing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ rng.choice([]) }}", "rng.choice of nothing"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("gone.j2", "gone.j2"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(tmp_path, source, names_what):
    with pytest.raises(SpecError, match="template"):
        Templates(str(tmp_path)).render(source, {"rng": rng()})
    with pytest.raises(SpecError) as caught:
        Templates(str(tmp_path)).render(source, {"rng": rng()})
    assert names_what in str(caught.value)


def test_a_syntax_error_is_said_with_file_and_line(tmp_path):
    (tmp_path / "bad.j2").write_text("fine\n{% if %}\n")
    with pytest.raises(SpecError) as caught:
        Templates(str(tmp_path)).render("bad.j2", {})
    assert caught.value.location is not None
    assert (caught.value.location.file, caught.value.location.line) == (str(tmp_path / "bad.j2"), 2)


@pytest.mark.parametrize("text", ["fine\n{{ nobody }}\n", "fine\n{{ 'a'.nothing.more }}\n"])
def test_an_undefined_name_is_said_with_file_and_line(tmp_path, text):
    (tmp_path / "bad.j2").write_text(text)
    Templates(str(tmp_path)).parse("bad.j2")
    with pytest.raises(SpecError) as caught:
        Templates(str(tmp_path)).render("bad.j2", {})
    assert str(caught.value).startswith(f"{tmp_path}/bad.j2:2:")


def test_templates_do_not_leave_their_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.j2").write_text("secret")
    with pytest.raises(SpecError):
        Templates(str(tmp_path / "inside")).render('{% include "../secret.j2" %}', {})
