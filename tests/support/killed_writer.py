"""Write sets of three files over two folders without end, killed at random moments: ``killed_writer.py KILLS``.

After each kill every file is whole; after the next runs there (to another name in the one folder, then in the other)
the set is of one generation and nothing is left over. Prints after how many kills something was left over, and how
often the next run completed a set.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from caffe2torch.outputs import write_files

SET = ("a", "b", "sub/c")
LINES = 2000


def write_without_end(generation: int) -> None:
    while True:
        generation += 1
        write_files(dict.fromkeys(SET, f"{generation}\n" * LINES), force=True)


def texts() -> list[str]:
    return [Path(name).read_text() for name in SET if Path(name).exists()]


def leftovers() -> list[Path]:
    return list(Path().rglob(".caffe2torch-*"))


def main(kills: int) -> None:
    chance, interrupted, completed = random.Random(60), 0, 0
    Path("sub").mkdir()
    for kill in range(kills):
        child = os.fork()
        if not child:
            write_without_end(1000 * kill)
        time.sleep(chance.uniform(0.01, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before = texts()
        assert all(text == text.split("\n")[0].join(["", "\n"]) * LINES for text in before), "a file is not whole"
        interrupted += bool(leftovers())
        next_runs = ("other", "sub/other") if kill % 2 else ("sub/other", "other")
        write_files({next_runs[0]: ""}, force=True)
        after = texts()
        assert len(after) in (0, 3), "half a set"
        assert len(set(after)) <= 1, "half a set"
        completed += after != before
        write_files({next_runs[1]: ""}, force=True)
        assert not leftovers()
    print(interrupted, completed)


if __name__ == "__main__":
    main(int(sys.argv[1]))
