"""How sure a share is, and whether two shares differ by more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z = 1.959963984540054
"""The normal distribution has 95 % of its mass between -Z and Z."""


@dataclass(frozen=True)
class Rate:
    """So many found of so many asked, at least one."""

    found: int
    asked: int

    @property
    def share(self) -> float:
        """Found of asked, from 0 to 1."""
        return self.found / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

        Unlike the textbook's share ± 1.96 deviations it holds for few questions and for 100 %.
        """
        wide = Z * Z / self.asked
        middle = (self.share + wide / 2) / (1 + wide)
        reach = math.sqrt(wide * self.share * (1 - self.share) + wide * wide / 4) / (1 + wide)
        return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True)
class Pairs:
    """The same questions answered twice: how many numbers were found by whom."""

    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0

    @classmethod
    def of(cls, first: bool, second: bool) -> Pairs:
        """One number that each found or not."""
        return cls(
            first and second, first and not second, second and not first, not (first or second)
        )

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(
            self.both + other.both,
            self.only_first + other.only_first,
            self.only_second + other.only_second,
            self.neither + other.neither,
        )

    @property
    def asked(self) -> int:
        """All numbers."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def first(self) -> Rate:
        """What the first found."""
        return Rate(self.both + self.only_first, self.asked)

    @property
    def second(self) -> Rate:
        """What the second found."""
        return Rate(self.both + self.only_second, self.asked)

    @property
    def difference(self) -> float:
        """By how much the second found more, as a share of all."""
        return self.second.share - self.first.share

    @property
    def p_value(self) -> float:
        """How likely chance alone makes so large a difference, in either direction.

        The exact test of McNemar (1947, Psychometrika 12, 153-157): if both are equally good, a
        number that only one of them found is as likely found by the first as by the second.
        """
        single = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        tail = sum(math.comb(single, count) for count in range(fewer + 1))
        return min(1.0, 2 * tail / 2**single)
