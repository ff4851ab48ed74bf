"""Caffe's numbers are float32: rounding to them, and writing them as a person would have written them."""

from __future__ import annotations

import math
import struct

__all__ = ["format32", "number", "round32", "shortest"]

_FLOAT = struct.Struct("<f")
_DIGITS = 9  # any two float32 differ within nine significant decimal digits


def round32(x: float) -> float:
    """The float32 nearest to ``x``, as a cast in C++ gives it: infinite past the largest float32, NaN kept.

    >>> round32(0.1)
    0.10000000149011612
    >>> round32(-1e39)
    -inf
    """
    try:
        rounded: float = _FLOAT.unpack(_FLOAT.pack(x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)
    return rounded


def shortest(x: float) -> float:
    """The decimal of fewest digits that reads back to the same float32 as ``x``.

    >>> shortest(0.10000000149011612)
    0.1
    """
    target = round32(x)
    if not math.isfinite(target) or target == 0:
        return target
    for digits in range(1, _DIGITS + 1):
        mantissa, exponent = f"{abs(target):.{digits - 1}e}".split("e")
        nearest, scale = int(mantissa.replace(".", "")), int(exponent) - (digits - 1)
        # Below a power of two float32 lie twice as dense as above it: there the nearest decimal may belong to the
        # neighbour below while the next decimal, farther away but above, still reads back.
        for candidate in (nearest, nearest + 1):
            decimal = math.copysign(float(f"{candidate}e{scale}"), target)
            if round32(decimal) == target:
                return decimal
    raise AssertionError(f"{_DIGITS} digits do not tell {target!r} apart")  # pragma: no cover


def format32(x: float) -> str:
    """``shortest(x)`` as text, without a trailing ``.0``; it reads back in Python and in a prototxt.

    >>> format32(0.10000000149011612), format32(20.0), format32(1e-8)
    ('0.1', '20', '1e-08')
    """
    return repr(shortest(x)).removesuffix(".0")


def number(x: float | None, unknown: str = "unknown") -> str:
    """A number that is read, not computed with: six digits, or fewer where its float32 has fewer.

    >>> number(0.10000000149011612), number(1 / 3), number(1234567), number(None)
    ('0.1', '0.333333', '1234567', 'unknown')
    """
    if x is None:
        return unknown
    short, whole = f"{x + 0.0:.6g}", format32(x)  # never -0
    return whole if len(whole) < len(short) and math.isclose(float(whole), x, rel_tol=1e-5) else short
