"""Places in data, as JSON: those of all shards are joined as one, from which each finds its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lwm_core.errors import UsageError

State = Mapping[str, Any]
"""Where one shard is: its number is `shard`, there are `of`, and more that its reader knows."""


def join_cursors(cursors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cursors of all shards as one, from which any shard of any number can go on."""
    return {"shards": [state for cursor in cursors for state in cursor["shards"]]}


def own_state(cursor: Mapping[str, Any], shard: tuple[int, int]) -> State | None:
    """The state of a shard in a cursor; None where that is of all shards of another number.

    Raises UsageError when it is of another number of shards and not of all of them, or of as many
    but not of this.
    """
    states, before = cursor["shards"], cursor["shards"][0]["of"]
    for state in states:
        if (state["shard"], state["of"]) == shard:
            return state
    if before == shard[1] or {state["shard"] for state in states} != set(range(before)):
        held = ", ".join(str(state["shard"]) for state in states)
        raise UsageError(
            f"the position of shard {shard[0]} of {shard[1]} in the data is not known: the cursor "
            f"holds shards {held} of {before}; join those of all"
        )
    return None
