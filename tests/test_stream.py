"""The stream of training data: nothing lost, nothing seen twice, and the same from any point on."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwm_core.data.cursors import join_cursors
from lwm_core.data.packing import Weighted
from lwm_core.data.pieces import EXAMPLE, Counts, Place, Reader, Source, Terms
from lwm_core.data.stream import PIECES_AHEAD, Stream
from lwm_core.errors import ConfigError, FormatError, RecordError, UsageError
from lwm_core.types import Batch

QUICK = settings(max_examples=15, deadline=None)


@dataclass
class Held:
    """Records in memory; None is a malformed one, and what is `...` a blank line."""

    entries: Sequence[Any]
    name: str = "held"

    def fingerprint(self) -> str:
        return str(len(self.entries))

    def read(self, start: int, step: int = 1) -> Iterator[tuple[int, dict[str, Any] | None]]:
        for index in range(start, len(self.entries), step):
            if self.entries[index] is not ...:
                yield index, self.entries[index]


def encode(index: int, record: Mapping[str, Any]) -> list[Weighted]:
    """Every example of a record by its length; the first of its tokens says which it is."""
    if "lengths" not in record:
        raise RecordError(f"record {index}: lengths is missing")
    examples = []
    for number, length in enumerate(record["lengths"]):
        first = 1000 * (10 * index + number)
        weights = [0.5, 1.5, 2.5] * (length // 3 + 1)
        examples.append(Weighted(list(range(first, first + length)), weights[:length]))
    return examples


def source(lengths: Sequence[Any], name: str = "held", **changes: Any) -> Source:
    """Records of one example of each of the lengths, or of the several in a list of them."""
    entries = [
        {"lengths": entry if isinstance(entry, list) else [entry]}
        if isinstance(entry, int | list)
        else entry
        for entry in lengths
    ]
    return Source(name, Held(entries), encode, **{"shuffle": 7, **changes})


def mixed(count: int, seed: int = 0, longest: int = 60) -> list[int]:
    """Lengths of all kinds, at least two tokens."""
    return np.random.default_rng(seed).integers(2, longest, count).tolist()


def examples_in(batch: Batch) -> list[tuple[list[int], list[float]]]:
    """Tokens and the weights of their targets, by segment; all else must be padding."""
    found = []
    for row in range(len(batch.inputs)):
        assert not any(array[row][batch.segments[row] == 0].any() for array in batch)
        for segment in range(1, batch.segments[row].max() + 1):
            (at,) = np.nonzero(batch.segments[row] == segment)
            assert (np.diff(at) == 1).all()
            assert (batch.positions[row, at] == np.arange(len(at))).all()
            assert (batch.inputs[row, at[1:]] == batch.targets[row, at[:-1]]).all()
            ids = [*batch.inputs[row, at].tolist(), int(batch.targets[row, at[-1]])]
            found.append((ids, batch.weights[row, at].tolist()))
    return found


def firsts(batches: Iterator[Batch] | Sequence[Batch]) -> Counter[int]:
    """How often each record of one example was seen, by its number."""
    return Counter(ids[0] // 10000 for batch in batches for ids, _ in examples_in(batch))


def reader(of: Source, seed: int = 0, shard: tuple[int, int] = (0, 1), length: int = 64) -> Reader:
    return Reader(of, Terms(seed, shard, length, "split", 0.01), Place(), 0.0, Counts())


def assert_same(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name, array in one._asdict().items():
            np.testing.assert_array_equal(array, getattr(other, name), strict=True)


# The order


@QUICK
@given(
    count=st.integers(1, 60),
    blanks=st.sets(st.integers(0, 60)),
    shuffle=st.integers(1, 70),
    shards=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_each_epoch_has_every_example_once_over_all_shards(
    count: int, blanks: set[int], shuffle: int, shards: int, seed: int
) -> None:
    lengths = [... if index in blanks else 5 for index in range(count + 1)]
    whole = Counter(index for index, entry in enumerate(lengths) if entry == 5)
    if not whole:
        return
    epochs = [Counter[int]() for _ in range(3)]
    for shard in range(shards):
        one = reader(source(lengths, shuffle=shuffle), seed, (shard, shards))
        while True:
            piece = one.read()
            if piece.place.epoch >= len(epochs):
                break
            epochs[piece.place.epoch][int(piece.ids[0]) // 10000] += 1
    assert epochs == [whole] * 3


def test_the_order_is_another_in_every_epoch_and_stays_within_its_block() -> None:
    one = reader(source([5] * 40, shuffle=20))
    order = [int(one.read().ids[0]) // 10000 for _ in range(80)]
    assert order != sorted(order)
    assert order[:40] != order[40:]
    for start in range(0, 80, 20):
        first = start % 40
        assert sorted(order[start : start + 20]) == list(range(first, first + 20))
    in_file = reader(source([5] * 40, shuffle=1))
    assert [int(in_file.read().ids[0]) // 10000 for _ in range(40)] == list(range(40))


def test_shards_get_as_many_though_their_number_does_not_divide_a_block() -> None:
    got = []
    for shard in range(3):
        one = reader(source([5] * 700, shuffle=7), shard=(shard, 3))
        pieces = iter(one.read, None)
        got.append(sum(1 for _ in iter(lambda pieces=pieces: next(pieces).place.epoch, 1)))
    assert max(got) - min(got) <= 3


class Tracked(dict[str, Any]):
    """A record that can be counted while it is held."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("shards", [1, 4])
def test_no_more_is_held_than_the_part_of_a_block(shards: int) -> None:
    """Of a block only what is this shard's, and nothing of it when the next is read."""
    held = weakref.WeakSet[Tracked]()
    most = 0

    class Watched(Held):
        def read(self, start: int, step: int = 1) -> Iterator[tuple[int, Any]]:
            nonlocal most
            for index in range(start, len(self.entries), step):
                record = Tracked(lengths=self.entries[index])
                held.add(record)
                most = max(most, len(held))
                yield index, record
                del record

    one = Source("held", Watched([[5]] * 480), encode, shuffle=40)
    pieces = reader(one, shard=(shards - 1, shards))
    for _ in range(480 // shards):
        pieces.read()
    assert 40 / shards <= most <= 40 / shards + 2


@QUICK
@given(seed=st.integers(0, 99), batches=st.integers(1, 12), length=st.integers(70, 300))
def test_what_waits_is_all_that_was_read_and_not_given(
    seed: int, batches: int, length: int
) -> None:
    """Over whole epochs and the part of one, everything is either in a batch or waits."""
    stream = Stream([source(mixed(49, seed))], 2, length, seed)
    seen = firsts(islice(stream, batches))
    state = stream.cursor["shards"][0]
    epoch, block, offset, _, _ = state["sources"]["held"]["place"]
    seen.update(firsts_of_waiting(stream))
    once = {number for number in range(49) if seen[number] == epoch}
    assert {seen[number] for number in range(49)} <= {epoch, epoch + 1}
    assert 49 - len(once) == block * 7 + offset + 1


def firsts_of_waiting(stream: Stream) -> Iterator[int]:
    return (int(piece.ids[0]) // 10000 for piece in stream._waiting)


# Rows


@QUICK
@given(
    seed=st.integers(0, 99),
    length=st.integers(16, 200),
    rows=st.integers(1, 4),
    sizes=st.lists(st.lists(st.integers(2, 40), max_size=3), min_size=1, max_size=30),
)
def test_segments_are_whole_examples_and_nothing_else(
    seed: int, length: int, rows: int, sizes: list[list[int]]
) -> None:
    """Each as it was encoded if it fits a row, with the weights of its targets."""
    if not any(sizes):
        return
    expected = {
        example.ids[0]: example
        for index, lengths in enumerate(sizes)
        for example in encode(index, {"lengths": lengths})
    }
    for batch in islice(Stream([source(sizes)], rows, length, seed), 3):
        assert batch.inputs.shape == (rows, length)
        for ids, weights in examples_in(batch):
            if len(expected[ids[0] - ids[0] % 1000].ids) <= length + 1:
                example = expected[ids[0]]
                assert ids == example.ids
                assert weights == example.weights[1:]


SPREADS: dict[str, Callable[[np.random.Generator, int], int]] = {
    "uniform": lambda rng, longest: int(rng.integers(2, longest)),
    "log-uniform": lambda rng, longest: int(np.exp(rng.uniform(np.log(2), np.log(longest)))),
    "log-normal": lambda rng, longest: 2 + int(longest / 10 * rng.lognormal(0, 1)),
    "short": lambda rng, longest: int(rng.integers(longest // 50, longest // 10)),
    "clips and talk": lambda rng, longest: int(
        rng.integers(20, 90) if rng.random() < 0.7 else 257 * rng.integers(1, 5)
    ),
}


@pytest.mark.parametrize("spread", SPREADS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999), length=st.integers(512, 3000))
def test_rows_of_mixed_lengths_are_full(spread: str, seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [min(SPREADS[spread](rng, length), length + 1) for _ in range(2000)]

    def any_ids(index: int, record: Mapping[str, Any]) -> list[Weighted]:
        return [Weighted([7] * record["length"], [1.0] * record["length"])]

    records = Held([{"length": size} for size in sizes])
    stream = Stream([Source("all", records, any_ids)], 16, length, seed)
    packed = [(batch.segments > 0).mean() for batch in islice(stream, 12)]
    assert np.mean(packed) >= 0.97


def test_what_waits_longest_comes_first_in_every_row() -> None:
    """So that nothing waits for ever, and the position stays small."""
    left = list(range(3000))
    for batch in islice(Stream([source(mixed(3000), shuffle=1)], 3, 100, 0), 40):
        for row in batch.inputs:
            assert row[0] // 10000 == left[0]
            for first in row[(row % 1000 == 0) & (row // 10000 > 0) | (row == 0)] // 10000:
                if first in left:
                    left.remove(first)


# Sources


@QUICK
@given(
    weights=st.lists(st.floats(0.05, 1), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    longest=st.integers(10, 200),
)
def test_shares_of_tokens_become_the_weights(weights: list[float], seed: int, longest: int) -> None:
    """Sources of short and of long examples get the tokens that their weights say."""
    sources = [
        source(mixed(30, seed + at, 5 + longest // (at + 1)), str(at), weight=weight)
        for at, weight in enumerate(weights)
    ]
    stream = Stream(sources, 4, 256, seed)
    for _ in range(20):
        next(stream)
    read = [one.turn * one.source.weight for one in stream._readers]
    total = sum(read)
    for given_tokens, weight in zip(read, weights, strict=True):
        # None is ahead by more than its longest example.
        assert abs(given_tokens - total * weight / sum(weights)) <= 2 * (longest + 5)


def test_batches_hold_the_mixture() -> None:
    """What the sources give is what lies in the rows, counted there."""
    chat, books = source([21] * 50, "chat", weight=3), source([101] * 50, "books", weight=1)
    stream = Stream([chat, books], 4, 500, 0)
    tokens: Counter[int] = Counter()
    for batch in islice(stream, 60):
        for ids, _ in examples_in(batch):
            tokens[len(ids)] += len(ids) - 1
    assert tokens[21] / sum(tokens.values()) == pytest.approx(0.75, abs=0.02)


def test_a_source_that_joins_or_leaves_does_not_disturb_the_others() -> None:
    """It gets its share from then on, and does not catch up with what it has missed."""
    old, new = source([21] * 50, "old"), source([21] * 50, "new")
    stream = Stream([old], 2, 200, 0)
    for _ in range(50):
        next(stream)
    both = Stream([old, new], 2, 200, 0, cursor=stream.cursor)
    before = [one.turn for one in both._readers]
    for _ in range(50):
        next(both)
    gained = [one.turn - start for one, start in zip(both._readers, before, strict=True)]
    assert abs(gained[0] - gained[1]) <= 21 * PIECES_AHEAD
    alone = Stream([new], 2, 200, 0, cursor=both.cursor)
    assert next(alone).inputs.shape == (2, 200)


def test_a_source_that_comes_back_goes_on_where_it_was() -> None:
    """Through stages of other sources, and processes; nothing of it is lost."""
    one, other = source([21] * 300, "one"), source([31] * 300, "other")
    first = Stream([one, other], 2, 200, 0)
    seen = Counter(
        ids[0] // 10000
        for batch in islice(first, 10)
        for ids, _ in examples_in(batch)
        if len(ids) == 21
    )
    cursor = first.cursor
    for _ in range(2):
        between = Stream([other], 2, 200, 0, cursor=cursor)
        next(between)
        cursor = between.cursor
    after = Stream([one], 2, 200, 0, cursor=cursor)
    assert after.counts["epoch/one"] == 0
    while after.counts["epoch/one"] == 0:
        seen += firsts([next(after)])
    seen.update(firsts_of_waiting(after))
    assert set(seen) == set(range(300))
    assert seen.total() < 300 + 2 * PIECES_AHEAD
    both = Stream([one, other], 2, 200, 0, cursor=cursor)
    assert both._readers[0].turn == both._readers[1].turn


def test_every_example_may_count_alike() -> None:
    lengths = [5, 17, 40]
    even = source(lengths, weigh="example")
    for ids, weights in examples_in(next(Stream([even], 1, 400, 0))):
        assert sum(weights) == pytest.approx(EXAMPLE)
        ((_, of),) = [
            (example.ids[0], example.weights)
            for index, length in enumerate(lengths)
            for example in encode(index, {"lengths": [length]})
            if example.ids == ids
        ]
        assert np.ptp(np.divide(weights, of[1:])) < 1e-4


def test_parts_of_an_example_count_as_much_as_one() -> None:
    one = reader(source([100], weigh="example"), length=30)
    assert sum(one.read().weights[1:].sum() for _ in range(4)) == pytest.approx(EXAMPLE)


# Examples that don't fit, and records that are none


def targets(batches: Sequence[Batch]) -> Counter[tuple[int, float]]:
    """Every target and its weight."""
    return Counter(
        (token, weight)
        for batch in batches
        for ids, weights in examples_in(batch)
        for token, weight in zip(ids[1:], weights, strict=True)
    )


@QUICK
@given(size=st.integers(2, 200), length=st.integers(1, 50))
def test_split_examples_lose_no_target(size: int, length: int) -> None:
    one = reader(source([size]), length=length)
    pieces = []
    while not pieces or one.place.epoch == 0:
        pieces.append(one.read())
        if pieces[-1].place.epoch:
            pieces.pop()
            break
    (whole,) = encode(0, {"lengths": [size]})
    assert np.concatenate([piece.ids[1:] for piece in pieces]).tolist() == whole.ids[1:]
    assert np.concatenate([piece.weights[1:] for piece in pieces]).tolist() == whole.weights[1:]
    assert all(piece.steps == length for piece in pieces[:-1])
    assert one.counts.too_long == (1 + one.place.epoch) * (size > length + 1)


def test_long_examples_may_be_cut_or_skipped() -> None:
    cut = Stream([source([100, 5])], 1, 30, 0, too_long="cut")
    found = {ids[0]: len(ids) for batch in islice(cut, 5) for ids, _ in examples_in(batch)}
    assert found == {0: 31, 10000: 5}
    assert cut.counts["left_out"] == 0
    skip = Stream([source([100, 5])], 1, 30, 0, too_long="skip")
    assert set(firsts(islice(skip, 5))) == {1}
    assert 0 < skip.counts["left_out"] == skip.counts["too_long"] < PIECES_AHEAD + 40


def test_what_has_nothing_to_predict_is_skipped() -> None:
    def prompts_only(index: int, record: Mapping[str, Any]) -> list[Weighted]:
        return [Weighted([index, 5, 5], [1.0, 0.0, float(index)]), Weighted([3], [1.0])]

    stream = Stream([Source("held", Held([{}, {}]), prompts_only, shuffle=1)], 1, 20, 0)
    assert {ids[0] for ids, _ in examples_in(next(stream))} == {1}
    state = stream.cursor["shards"][0]["sources"]["held"]
    assert state["counts"]["skipped"] >= 3 * (state["counts"]["pieces"] - 1)


def test_bad_records_are_passed_over_and_counted() -> None:
    lengths: list[Any] = [5] * 1000
    lengths[17], lengths[400] = None, {"text": "no lengths"}
    stream = Stream([source(lengths)], 4, 1010, 0)
    seen: Counter[int] = Counter()
    while stream.counts["epoch/held"] < 2:
        seen += firsts([next(stream)])
    assert set(seen) == set(range(1000)) - {17, 400}
    assert stream.counts["malformed"] == 2


@pytest.mark.parametrize("shards", [1, 3])
def test_a_bad_record_is_one_in_every_epoch(shards: int) -> None:
    """However often it is read; also where a run is stopped and goes on again and again."""
    lengths: list[Any] = [5] * 20
    lengths[3] = None
    worst = []
    for shard in range(shards):
        cursor, epoch = None, 0
        while epoch < 40:
            stream = Stream([source(lengths)], 1, 100, 0, shard=(shard, shards), cursor=cursor)
            next(stream)
            cursor, epoch = json.loads(json.dumps(stream.cursor)), stream.counts["epoch/held"]
        worst.append(stream.counts["malformed"])
        met = cursor["shards"][0]["sources"]["held"]["counts"]
        assert met["malformed"] <= 1
        assert met["records"] <= 20
    assert worst == [1] * shards


def test_a_source_that_comes_back_counts_its_bad_records_once() -> None:
    """Though it goes back to examples that waited, and passes by the bad ones again."""
    one, other = source([5, None] * 8 + [5] * 2000, "one", shuffle=1), source([5], "other")
    cursor = None
    for sources in ([one, other], [other], [one], [other], [one]):
        stream = Stream(sources, 1, 8, 0, cursor=cursor)
        next(stream)
        cursor = stream.cursor
        met = cursor["shards"][0]["sources"]["one"]["counts"]
        assert met["worst"] == 8
        assert (4 < met["malformed"] <= 8) if one in sources else met["malformed"] == 0


def test_too_many_bad_records_stop_the_stream() -> None:
    """A hundredth of a thousand is ten, however early they come."""
    lengths = [*[5] * 100, *[None] * 11, *[5] * 100]
    with pytest.raises(FormatError, match=r"chat: 11 of 111 records are bad.*record 110 can't"):
        next(Stream([source(lengths, "chat", shuffle=1)], 100, 100, 0))
    assert next(Stream([source(lengths, "chat")], 100, 100, 0, most_bad=0.2)) is not None
    with pytest.raises(FormatError, match=r"record 0: lengths is missing"):
        next(Stream([source([{}, 5])], 1, 100, 0, most_bad=0))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([], "holds no records"),
        ([...], "no records"),
        ([50, 60], "of 2 records 0 are bad; .* 2 are too long, 2 skipped"),
        ([None, 50], "of 2 records 1 are bad; .* 1 are too long, 1 skipped"),
    ],
)
def test_a_source_without_anything_to_learn_is_an_error(lengths: list, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        next(Stream([source(lengths, "chat")], 1, 20, 0, too_long="skip", most_bad=1))


def test_the_useless_end_of_an_epoch_is_no_error() -> None:
    """Also when a run goes on just before it."""
    one = reader(source([5, *[None] * 1500], shuffle=1))
    one.terms = replace(one.terms, most_bad=1)
    assert one.read().place.epoch == 0
    rest = replace(one, counts=replace(one.counts))
    assert one.read().place.epoch == rest.read().place.epoch == 1


def test_more_shards_than_records() -> None:
    """Each gets one in its turn."""
    for shard in range(5):
        stream = Stream([source([5, 5])], 1, 40, 0, shard=(shard, 5))
        assert set(firsts(islice(stream, 10))) == {0, 1}


# Going on


def bold(seed: int) -> list[Source]:
    """Sources with everything in them that can make going on difficult."""
    rng = np.random.default_rng(seed)
    books: list[Any] = [rng.integers(2, 150, rng.integers(1, 4)).tolist() for _ in range(40)]
    books[3], books[8], books[20] = None, ..., {"no": "lengths"}
    return [
        source(books, "books", weight=0.3, shuffle=9),
        source(mixed(25, seed), "chat", weight=0.6, weigh="example"),
    ]


@QUICK
@given(
    seed=st.integers(0, 99),
    stop=st.integers(0, 9),
    shard=st.sampled_from([(0, 1), (0, 3), (2, 3)]),
    rows=st.integers(1, 3),
    length=st.integers(20, 200),
    too_long=st.sampled_from(["split", "cut", "skip"]),
)
def test_resumed_equals_uninterrupted(
    seed: int, stop: int, shard: tuple[int, int], rows: int, length: int, too_long: Any
) -> None:
    """Bit for bit, through a JSON file, and in all that is counted."""

    def begin(**cursor: Any) -> Stream:
        return Stream(
            bold(seed), rows, length, seed, shard=shard, too_long=too_long, most_bad=0.5, **cursor
        )

    whole = begin()
    batches = list(islice(whole, 10))
    first = begin()
    before = list(islice(first, stop))
    second = begin(cursor=json.loads(json.dumps(first.cursor)))
    assert second.cursor == first.cursor
    after = list(islice(second, 10 - stop))
    assert_same(batches, before + after)
    assert second.cursor == whole.cursor
    if after:
        assert second.counts == whole.counts


@QUICK
@given(seed=st.integers(0, 99), lengths=st.lists(st.integers(10, 300), min_size=2, max_size=4))
def test_rows_may_get_longer_or_shorter_and_nothing_is_lost(seed: int, lengths: list[int]) -> None:
    """As context grows from stage to stage; every target is met once in an epoch."""
    seen, cursor = Counter[tuple[int, float]](), None
    for rows, length in enumerate(lengths, 1):
        stream = Stream(
            [source(mixed(40, seed, 200), shuffle=9)], rows, length, seed, cursor=cursor
        )
        batches = list(islice(stream, 4))
        assert batches[0].inputs.shape == (rows, length)
        seen, cursor = seen + targets(batches), stream.cursor
    for piece in stream._waiting:
        seen.update(zip(piece.ids[1:].tolist(), piece.weights[1:].tolist(), strict=True))
    epoch = stream.counts["epoch/held"]
    assert set(seen.values()) <= {epoch, epoch + 1}


@QUICK
@given(
    seed=st.integers(0, 99),
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    batches=st.integers(1, 6),
)
def test_another_number_of_shards_loses_nothing(
    seed: int, before: int, after: int, batches: int
) -> None:
    """In the first epoch: what the old shards gave and what the new will give is everything."""
    one = source(mixed(100, seed), shuffle=30)
    old = [Stream([one], 1, 100, seed, shard=(shard, before)) for shard in range(before)]
    seen = Counter[int]()
    for stream in old:
        seen += firsts(islice(stream, batches))
    joined = json.loads(json.dumps(join_cursors([stream.cursor for stream in old])))
    for shard in range(after):
        stream = Stream([one], 1, 100, seed, shard=(shard, after), cursor=joined)
        while stream.counts["epoch/held"] < 2:
            seen += firsts([next(stream)])
        seen.update(firsts_of_waiting(stream))
    assert set(seen) == set(range(100))
    for shard, stream in enumerate(old):  # as many shards go on exactly
        same = Stream([one], 1, 100, seed, shard=(shard, before), cursor=joined)
        assert_same(list(islice(same, 3)), list(islice(stream, 3)))


def test_a_cursor_of_one_shard_is_not_enough_for_others() -> None:
    one = source([5] * 20)
    cursor = Stream([one], 1, 40, 0, shard=(0, 2)).cursor
    for shard in ((1, 2), (0, 1)):
        with pytest.raises(UsageError, match=r"cursor holds shards 0 of 2; join"):
            Stream([one], 1, 40, 0, shard=shard, cursor=cursor)


def test_the_cursor_is_small() -> None:
    """Though thousands of examples lie in a batch, and some in a long record wait."""
    stream = Stream([source([*[3] * 3000, 900], "a", shuffle=1)], 4, 4096, 0)
    next(stream)
    assert len(stream._waiting) == PIECES_AHEAD
    assert len(json.dumps(stream.cursor)) < 10_000


def test_changed_records_are_found_when_going_on() -> None:
    one = source([5] * 50)
    stream = Stream([one], 1, 40, 0)
    next(stream)
    fewer = replace(one, records=Held([{"lengths": [5]}]))
    with pytest.raises(FormatError, match="held: its records have changed"):
        Stream([fewer], 1, 40, 0, cursor=stream.cursor)


# What can't be meant


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": 0.0}, "weight is 0.0"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"shuffle": 0}, "shuffle is 0"),
        ({"shuffle": 10**12}, "shuffle is 1000000000000; it must be from 1 to 16777216"),
        ({"weigh": "answer"}, "weigh is 'answer'"),
    ],
)
def test_sources_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"chat: {message}"):
        source([5], "chat", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "sources"),
        ({"sources": [source([5]), source([5])]}, "sources"),
        ({"rows": 0}, "rows is 0"),
        ({"length": 0}, "length is 0"),
        ({"shard": (2, 2)}, "shard 2 of 2"),
        ({"too_long": "fold"}, "too_long is 'fold'"),
    ],
)
def test_streams_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Stream(**{"sources": [source([5])], "rows": 1, "length": 8, "seed": 0, **changes})
