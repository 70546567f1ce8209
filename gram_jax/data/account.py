"""The account that every reader gives with its data: how much it read, and what it left out and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gram_jax.errors import examples

SHOWN = 3  # examples that an account keeps of each reason


@dataclasses.dataclass
class LeftOut:
    """The number of things that were left out for one reason, and the first few of them."""

    count: int
    examples: list[str]


@dataclasses.dataclass
class Account:
    """Counts what a reader read, by unit, and what it left out, by reason.

    Every reader returns one, every program prints it with `lines` and stores it with `to_json`.

    Example:
      >>> account = Account({"images": 5})
      >>> account.leave_out("files that are no images", ["notes.txt", "Thumbs.db"])
      >>> account.lines()
      ["left out: 2 files that are no images ('notes.txt', 'Thumbs.db')"]
      >>> Account.from_json(account.to_json()) == account
      True
    """

    read: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: dict[str, LeftOut] = dataclasses.field(default_factory=dict)

    def leave_out(self, reason: str, names: Iterable[str]) -> None:
        """Counts things that are not used, for a reason that reads well after their number."""
        for name in names:
            entry = self.left_out.setdefault(reason, LeftOut(0, []))
            entry.count += 1
            if len(entry.examples) < SHOWN:
                entry.examples.append(name.encode("utf-8", "backslashreplace").decode())

    def add(self, other: Account) -> None:
        """Adds the counts of another account; the first examples remain."""
        for unit, count in other.read.items():
            self.read[unit] = self.read.get(unit, 0) + count
        for reason, more in other.left_out.items():
            entry = self.left_out.setdefault(reason, LeftOut(0, []))
            entry.count += more.count
            entry.examples = (entry.examples + more.examples)[:SHOWN]

    def lines(self) -> list[str]:
        """Returns one line for each reason."""
        return [f"left out: {each.count:,} {reason}{_shown(each)}" for reason, each in self.left_out.items()]

    def to_json(self) -> dict[str, Any]:
        """Returns the account as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Account:
        """Returns the account that `to_json` wrote."""
        left_out = {
            reason: LeftOut(each["count"], list(each["examples"])) for reason, each in value["left_out"].items()
        }
        return cls(dict(value["read"]), left_out)


def _shown(entry: LeftOut) -> str:
    more = entry.count - len(entry.examples)
    return f" ({examples(entry.examples, SHOWN)}{f' and {more:,} more' if more else ''})" if entry.examples else ""


def told(about: Mapping[str, Any]) -> list[str]:
    """Returns the lines that a program prints about a dataset: what was left out, and its notes.

    Args:
      about: `Dataset.about`.
    """
    account = about.get("account")
    return [*(Account.from_json(account).lines() if account else ()), *(f"note: {n}" for n in about.get("notes", ()))]
