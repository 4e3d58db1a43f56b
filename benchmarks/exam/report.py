"""Records of what was asked and what was found: table, confusions, JSON, contact sheets."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw

THUMBNAIL = 128
Item = TypeVar("Item")
Attributes = dict[str, str | None]


@dataclass(frozen=True)
class Record:
    """One task given to the model: truth and finding by attribute, and what it said or drew."""

    task: str
    item: str
    asked: dict[str, str]
    found: Attributes
    answer: str = ""

    @property
    def mistakes(self) -> list[str]:
        return [name for name, truth in self.asked.items() if self.found.get(name) != truth]


def counted(items: Sequence[Item], task: str) -> Iterator[Item]:
    """The items, with a running count on stderr: every item on a terminal, else every tenth."""
    live = sys.stderr.isatty()
    for done, item in enumerate(items, 1):
        yield item
        if live or done % 10 == 0 or done == len(items):
            end = "\r" if live and done < len(items) else "\n"
            print(f"{task} {done}/{len(items)}", end=end, file=sys.stderr, flush=True)


def totals(records: Iterable[Record]) -> dict[str, dict[str, tuple[int, int]]]:
    """For each attribute and each of its classes, and `total`: (right, asked)."""
    right: Counter[tuple[str, str]] = Counter()
    asked: Counter[tuple[str, str]] = Counter()
    for record in records:
        for attribute, truth in record.asked.items():
            for row in ((attribute, "total"), (attribute, truth)):
                asked[row] += 1
                right[row] += attribute not in record.mistakes
    table: dict[str, dict[str, tuple[int, int]]] = {}
    for (attribute, truth), count in asked.items():
        table.setdefault(attribute, {})[truth] = (right[attribute, truth], count)
    return table


def show(task: str, records: Sequence[Record], most_confusions: int = 12) -> None:
    """Print accuracy by attribute and class, then the commonest confusions."""
    print(f"\n{task}: {len(records)}")
    for attribute, rows in totals(records).items():
        right, count = rows.pop("total")
        classes = "  ".join(f"{name} {r}/{c}" for name, (r, c) in sorted(rows.items()))
        print(f"  {attribute:<10}{100 * right / count:6.1f} %  {right}/{count}   {classes}")
    confusions = Counter(
        f"{name} {record.asked[name]} → {record.found.get(name) or 'none'}"
        for record in records
        for name in record.mistakes
    )
    for confusion, count in confusions.most_common(most_confusions):
        print(f"  {count:4} x {confusion}")


def write_json(path: Path, options: Mapping[str, object], records: Sequence[Record]) -> None:
    """How it was asked, totals and all records."""
    tasks = sorted({record.task for record in records})
    content = {
        "options": options,
        "totals": {t: totals(record for record in records if record.task == t) for t in tasks},
        "records": [asdict(record) for record in records],
    }
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")


def write_sheet(path: Path, cells: Sequence[tuple[Sequence[Image.Image], str]]) -> None:
    """A contact sheet: a cell is a strip of pictures (all cells alike) above its caption."""
    if not cells:
        return
    strip = max(len(pictures) for pictures, _ in cells)
    columns = max(1, 10 // strip)
    width, height = strip * THUMBNAIL + 4, THUMBNAIL + 28
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), (30, 30, 30))
    pen = ImageDraw.Draw(sheet)
    for index, (pictures, caption) in enumerate(cells):
        x, y = index % columns * width, index // columns * height
        for step, picture in enumerate(pictures):
            sheet.paste(picture.resize((THUMBNAIL, THUMBNAIL)), (x + step * THUMBNAIL, y))
        pen.text((x + 2, y + THUMBNAIL), caption, fill=(230, 230, 230))
    sheet.save(path)
