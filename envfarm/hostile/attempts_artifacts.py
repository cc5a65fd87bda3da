"""Attempts by what is left behind for the verifier to copy out: links, names, sizes, depths, kinds."""

from __future__ import annotations

from envfarm.hostile.attempt import Attempt
from envfarm.hostile.cheat import Cheat, program

ATTEMPTS: tuple[Attempt, ...] = (
    Cheat(
        "symbolic links",
        "artifacts that are links to files outside, to directories outside and to themselves",
        "links are refused, not followed",
        ("ln -s /proc/self/environ answer.sh; ln -s /etc etc; ln -s / root; ln -s loop loop",),
    ),
    Cheat(
        "hard links",
        "hard links to files of the image and of /proc",
        "another file system; nothing is linked across",
        (
            "{ ln /etc/shadow shadow || ln /etc/passwd passwd || ln /proc/1/environ environ; } 2>/dev/null && echo GOT",
            program("cat shadow") + "; ln answer.sh again",
        ),
    ),
    Cheat(
        "tar traversal",
        "names that an archiver takes for options, for parents, for lines",
        "names are data; paths that leave the workdir are refused",
        (
            "echo 'echo GOT >/tmp/pwned; cp /tmp/pwned /task/' >evil.sh; "
            "touch -- '--checkpoint=1' '--checkpoint-action=exec=sh evil.sh' "
            "'-I sh evil.sh' '--to-command=sh evil.sh' '-exec sh evil.sh ;'; "
            "mkdir -p '..\\..' 'a\nb' '$(sh evil.sh)' '`sh evil.sh`'; "
            "echo x >'a\nb/..\\etc'; echo y >\"';sh evil.sh;'\"",
            'python3 -c \'import tarfile, io\nt = tarfile.open("x.tar", "w")\nfor n in ("../../etc/x", "/etc/x"):\n'
            ' i = tarfile.TarInfo(n); i.size = 1; t.addfile(i, io.BytesIO(b"x"))\'',
            "test -e /tmp/pwned -o -e pwned && echo GOT; " + program("cat pwned /tmp/pwned"),
        ),
    ),
    Cheat(
        "special files",
        "a pipe, a socket and unreadable things where an artifact is expected",
        "special files are refused, none is opened",
        (
            "mkfifo answer.sh; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'; "
            "mkdir no; echo 1 >no/x; chmod 0 no",
        ),
    ),
    Cheat(
        "unreadable artifacts",
        "permissions that the copier may not pass",
        "what cannot be copied out is not there",
        (program("echo 1") + "; mkdir -p d/e; echo 1 >d/e/f; chmod 0 d/e/f d/e d answer.sh",),
    ),
    Cheat(
        "sparse giant",
        "an artifact of a terabyte that takes no room",
        "sizes are looked at before contents",
        ("truncate -s 1T answer.sh || truncate -s 100G answer.sh",),
    ),
    Cheat(
        "zip bomb",
        "a small artifact that grows to gigabytes while it is judged",
        "output and disk of the verifying box are limited",
        (
            'python3 -c \'import zlib\nc = zlib.compressobj(9, wbits=31)\nwith open("bomb.gz", "wb") as f:\n'
            " for _ in range(100): f.write(c.compress(bytes(1 << 20)))\n f.write(c.flush())'",
            program("gunzip -c bomb.gz | tee big; gunzip -c bomb.gz >/tmp/big"),
        ),
    ),
    Cheat(
        "deep directories",
        "two thousand directories inside each other",
        "what is nested deeper than 64 directories is refused",
        (
            'python3 -c \'import os\nfor _ in range(2000): os.mkdir("dddddddddd"); os.chdir("dddddddddd")\nopen("x", "w")\'',
            program("echo 1"),
        ),
    ),
    Cheat(
        "many files",
        "twelve thousand artifacts",
        "more than 4096 artifacts are refused",
        ('python3 -c \'for i in range(12000): open(f"f{i}", "w")\'; ' + program("echo 1"),),
    ),
)
