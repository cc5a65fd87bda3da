"""What may differ between two runs of one command in two boxes, and is therefore not compared.

`mask(command, text)` replaces, in what a command printed:

    process ids         job notes (`[1] 4711`), killed jobs' notes, `ps` and `top` columns, and every whole number of a
                        command that mentions `$$`, `$!`, `$PPID` or `$BASHPID`; the names of boxes' control groups
    times and dates     ISO times; ISO dates alone where the command names `date`, `ls`, `stat` or the like; the styles of
                        `ls -l`, `date`, `stat` and HTTP; clock times `12:34:56`; epochs of ten digits with this
                        century's look, whole or with a fraction; what `time` measured
    inodes, devices     lines of `stat`, first column of `ls -i`
    directory sizes     the size in `ls -l` lines that begin with `d`, and `total N`
    kernel name         what `uname` or `/proc/version` print
    unsorted listings   lines of commands with `find`, `ls -U`, `ls -f`, `du` or a recursive `grep` are sorted

Everything else is compared byte for byte, with one exception: processes that run side by side (`side_by_side`: a pipeline, a
job in the background) and write to one stream are ordered by the kernel, piece by piece. Where their output differs, it is
compared a second time without its order (`mask(..., unordered=True)`), and then counts as masked to its last character.

The count that comes back is of original characters that were replaced or moved;
its share of all output is printed wherever two runs are compared, because a mask that grows hides differences.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?"

_ALWAYS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("<size>", re.compile(r"(?m)^d[rwxsStT-]{9}[.+]?\s+\d+\s+\S+\s+\S+\s+(?P<it>\d+)(?=\s)")),
    ("<size>", re.compile(r"(?m)^total (?P<it>\d+(?:\.\d+)?[KMG]?)$")),
    (
        "<time>",
        re.compile(
            rf"{_DAY},? (?:{_MONTH} +\d{{1,2}}|\d{{1,2}} {_MONTH})(?: \d{{4}})? {_CLOCK}(?: [AP]M)? [A-Z]{{3}}(?: \d{{4}})?"
        ),
    ),
    ("<time>", re.compile(rf"\b{_MONTH} +\d{{1,2}} +(?:{_CLOCK}|\d{{4}})(?=\s)")),
    ("<time>", re.compile(r"\b\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?: ?[+-]\d{2}:?\d{2}|Z)?(?![\w-])")),
    ("<time>", re.compile(r"(?<![\w:.])\d{1,2}:\d{2}:\d{2}(?:\.\d+)?(?![\w:])")),
    ("<time>", re.compile(r"(?<![\w.])1[5-9]\d{8}(?:\.\d+)?(?![\w.])|(?<![\w.])2[01]\d{8}(?:\.\d+)?(?![\w.])")),
    ("<time>", re.compile(r"(?m)^(?:real|user|sys)\s+(?P<it>\d+m?[\d.]+s?)$")),
    ("<pid>", re.compile(r"(?m)^\[\d+\][+-]? +(?P<it>\d+)\b")),
    ("<pid>", re.compile(r"(?m): line \d+: +(?P<it>\d+) (?=Killed|Terminated|Segmentation|Aborted|Hangup|Interrupt)")),
    ("<pid>", re.compile(r"(?m)/box-(?P<it>\d+-\d+-\d+)$")),
    ("<inode>", re.compile(r"(?m)\bInode: (?P<it>\d+)")),
    ("<device>", re.compile(r"(?m)\bDevice: (?P<it>\S+)")),
)

_PROCESS_ID = re.compile(r"\$\$|\$!|\$\{?(?:PPID|BASHPID)\b|getpid")
_PROCESS_LIST = re.compile(r"(?:^|[\s;|&(])(?:ps|top|pgrep|pidof|pstree|jobs)\b")
_INODES = re.compile(r"\bls\s+(?:\S+\s+)*-\w*i|\b-inum\b|%i\b")
_KERNEL = re.compile(r"\buname\b|/proc/version\b|platform\.|os\.uname")
_KERNEL_NAME = re.compile(r"Linux(?: version)? .*|\b\d+\.\d+\.\d+\S*-\S+|#\d+ SMP .*")
_UNSORTED = re.compile(
    r"\bfind\b|\bls\s+(?:\S+\s+)*-\w*[Uf]|\bdu\b|\bgrep\s+(?:\S+\s+)*(?:-\w*[rR]|--recursive)|\bos\.(?:listdir|scandir|walk)\b"
)
_CLOCK_COMMAND = re.compile(r"\b(?:date|stat|touch|ls|find|tar|printf|python3?)\b")
_DATE_ALONE = re.compile(r"(?<![\w-])\d{4}-\d{2}-\d{2}(?![\w-])")
_NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")
_CLOCK_COLUMN = re.compile(r"(?<![\w:.])\d{1,3}:\d{2}(?![\w:])")


_SIDE_BY_SIDE = re.compile(r"(?<![|>])\|(?!\|)|(?<![&><|])&(?![&>])|\|&|[<>]\(|\bxargs\b.*-P|\bcoproc\b")


def side_by_side(command: str) -> bool:
    """Whether a command may run processes at the same time: a pipe, `&`, a process substitution. Quotes are not looked at,
    since a call's text quotes the whole command: rather too often than not at all."""
    return _SIDE_BY_SIDE.search(command) is not None


def mask(command: str, text: str, *, unordered: bool = False) -> tuple[str, int]:
    """The text as it is compared, and how many of its characters were replaced or moved. `unordered` keeps only which
    characters there are, and how often."""
    masked = 0

    def replace(name: str) -> Callable[[re.Match[str]], str]:
        def put(match: re.Match[str]) -> str:
            nonlocal masked
            group = "it" if "it" in match.re.groupindex else 0
            start, end = match.span(group)
            masked += end - start
            return text_of(match, start, end, name)

        return put

    rules = list(_ALWAYS)
    if _PROCESS_LIST.search(command):
        rules += [("<time>", _CLOCK_COLUMN), ("<n>", re.compile(r"(?<![\w-])\d+(?:\.\d+)?(?![\w])"))]
    elif _PROCESS_ID.search(command):
        rules.append(("<pid>", _NUMBER))
    if _CLOCK_COMMAND.search(command):
        rules.append(("<time>", _DATE_ALONE))
    if _INODES.search(command):
        rules.append(("<inode>", re.compile(r"(?m)^(?P<it> *\d+)(?= )")))
    if _KERNEL.search(command):
        rules.append(("<kernel>", _KERNEL_NAME))
    for name, pattern in rules:
        text = pattern.sub(replace(name), text)
    if _UNSORTED.search(command):
        text, moved = _sorted_lines(text)
        masked += moved
    if unordered:
        return "".join(sorted(text)), len(text)
    return text, masked


def text_of(match: re.Match[str], start: int, end: int, name: str) -> str:
    """The whole match with `[start, end)` of its string replaced."""
    return match.string[match.start() : start] + name + match.string[end : match.end()]


def _sorted_lines(text: str) -> tuple[str, int]:
    lines = text.splitlines(keepends=True)
    ordered = sorted(lines)
    return "".join(ordered), sum(len(a) for a, b in zip(lines, ordered, strict=True) if a != b)
