"""How many records of a source were met, and when too many of them are bad."""

from __future__ import annotations

from dataclasses import dataclass

from lwm_core.errors import FormatError

MOST_BAD = 0.01
"""Share of the records of a source that may be bad, unless something else is said."""
LEAST_RECORDS = 1000
"""Of fewer records as many may be bad as of so many; from so many on something must be of use."""


@dataclass
class Tally:
    """The records of one source that were met in the present epoch.

    Those that are `malformed` could not be read or encoded; `worst` is how many they were in the
    worst epoch so far. Every epoch meets the same records: so none is counted twice.
    """

    records: int = 0
    malformed: int = 0
    worst: int = 0

    def refuse(self, name: str, reason: str, most_bad: float) -> None:
        """Count a bad record of those met.

        Raises FormatError, which names the source, when they exceed the share `most_bad`.
        """
        self.malformed += 1
        self.worst = max(self.worst, self.malformed)
        if self.malformed > most_bad * max(self.records, LEAST_RECORDS):
            raise FormatError(
                f"{name}: {self.malformed} of {self.records} records are bad, more than "
                f"{most_bad:.2%}; the last: {reason}"
            )

    def begin_epoch(self) -> None:
        """Count from the beginning: the same records come again."""
        self.records = self.malformed = 0
