"""Fuzzing by seed: a reader meets damaged inputs, and may only read them or refuse them with one of our errors.

Input number ``n`` depends on the seed and ``n`` alone, so that a failure is repeated by its number. ``make test`` gives
each fuzz test half a second, ``make fuzz`` shares 60 seconds among them (``FUZZ_SECONDS``). ``FUZZ_INPUTS`` says how
many inputs there are at least in all, ``FUZZ_SEED`` gives others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from memory import peak_bytes

from caffe2torch.errors import Caffe2TorchError

Feed = Callable[[Callable[[Random], bytes], Callable[[bytes], object]], None]
"""What the fixture ``feed`` gives: what makes an input, and what reads it."""

LONGEST = 5.0  # seconds that one input may take
LARGEST = 1 << 30  # bytes that one input may add to the peak of the process


def fuzz(
    make: Callable[[Random], bytes],
    read: Callable[[bytes], object],
    *,
    seed: int,
    seconds: float,
    inputs: int,
    kept: Path,
) -> Counter[str]:
    """Feed what ``make`` gives to ``read`` until the time is up and so many inputs were read.

    Args:
        make: Draws one input.
        read: Reads one input, or raises ``Caffe2TorchError``.
        seed: With the number of an input, all that decides what ``make`` draws.
        seconds: How long at least.
        inputs: How many at least.
        kept: Where the input of a failure is written, to become a fixture.

    Returns:
        How many inputs were ``read`` and how many ``refused``.

    Raises:
        AssertionError: An input raised anything else, or took too long or too much memory.
    """
    tally: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end or tally.total() < inputs:
        number = tally.total()
        data = make(Random(f"{seed}/{number}"))
        peak, start = peak_bytes(), time.monotonic()
        failure = None
        try:
            read(data)
            tally["read"] += 1
        except Caffe2TorchError as error:
            if not str(error).strip():
                failure = "an error without a message"
            tally["refused"] += 1
        except Exception as error:
            failure = repr(error)
        if (took := time.monotonic() - start) > LONGEST:
            failure = f"it took {took:.1f} s"
        if (grown := peak_bytes() - peak) > LARGEST:
            failure = f"it took {grown >> 20} MB"
        if failure is not None:
            kept.write_bytes(data)
            raise AssertionError(f"input {number} of seed {seed}, kept as {kept}: {failure}")
    return tally


def damaged(data: bytes, chance: Random, *, tokens: tuple[bytes, ...] = ()) -> bytes:
    """``data`` with a few bytes changed, a block cut out, doubled or moved, a token put in, or its end cut off."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if not out:
            break
        at = chance.randrange(len(out))
        block = bytes(out[at : at + chance.choice((1, 4, 16, 200))])
        match chance.randrange(7 if tokens else 6):
            case 0:
                out[at] = chance.randrange(256)
            case 1:
                out[at] ^= 1 << chance.randrange(8)
            case 2:
                del out[at : at + len(block)]
            case 3:
                out[at:at] = block * chance.choice((1, 2, 50))
            case 4:
                del out[at : at + len(block)]
                place = chance.randrange(len(out) + 1)
                out[place:place] = block
            case 5:
                if chance.random() < 0.2:
                    del out[at:]
            case 6:
                out[at:at] = chance.choice(tokens)
    return bytes(out)
