"""Formats: nothing is lost, and command output can be found again in the text."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envfarm.blocks import Block, Code, Fields, Image, Output, Table, Text
from envfarm.formats import FORMATS, writer

text = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=20)
word = st.text("abcXYZ ", min_size=1, max_size=8)
block = st.one_of(
    st.builds(Text, text),
    st.builds(Output, text),
    st.builds(Code, text, st.sampled_from(["", "python"])),
    st.builds(Fields, st.lists(st.tuples(word, text), max_size=3).map(tuple), word),
    st.lists(st.tuples(text, text), max_size=3).map(lambda rows: Table(("a", "b"), tuple(rows))),
    st.builds(Image, st.just(b""), word),
)


@pytest.mark.parametrize("name", FORMATS)
@given(blocks=st.lists(block, max_size=5).map(tuple))
def test_spans_hold_what_commands_printed(name: str, blocks: tuple[Block, ...]) -> None:
    written, spans = writer(name)(blocks)
    outputs = [b.text for b in blocks if isinstance(b, Output)]
    found = [written[start:end] for start, end in spans]
    if name == "plain":  # an empty output leaves nothing
        assert found == [o.rstrip("\n") for o in outputs if o.rstrip("\n")]
    elif name == "markdown":
        assert found == [o.rstrip("\n") for o in outputs]
    elif name == "json":
        assert [json.loads(f'"{f}"') for f in found] == outputs
    else:
        assert [ElementTree.fromstring(f"<o>{f}</o>").text or "" for f in found] == [o.rstrip("\n") for o in outputs]


@given(blocks=st.lists(block, max_size=5).map(tuple))
def test_json_and_xml_are_well_formed(blocks: tuple[Block, ...]) -> None:
    assert len(json.loads(writer("json")(blocks)[0])) == len(blocks)
    assert len(ElementTree.fromstring(writer("xml")(blocks)[0])) == len(blocks)


def test_each_format_shows_every_cell() -> None:
    table = Table(("item", "price"), (("lamp", "3"), ("desk", "40")), title="Stock")
    for name in FORMATS:
        written, _ = writer(name)((table,))
        assert all(cell in written for cell in ("item", "price", "lamp", "3", "desk", "40", "Stock"))


def test_a_fence_is_longer_than_what_it_holds() -> None:
    written, _ = writer("markdown")((Code("```\nx\n```"),))
    assert written.startswith("````") and written.endswith("````")
