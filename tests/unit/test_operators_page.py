"""The page of operators says what happens to channels at each operator. It is made from the rules."""

from __future__ import annotations

import inspect
from pathlib import Path

from edgeprune.graph.rules import RULES
from edgeprune.graph.rules.base import Rule

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
MARK = "<!-- below: written by tests/unit/test_operators_page.py -->\n"


def test_the_page_of_operators_is_up_to_date() -> None:
    head, _, before = PAGE.read_text().partition(MARK)
    after = "\n".join(["", "| operators | what happens to channels |", "|---|---|", *sorted(map(row, rules())), ""])
    PAGE.write_text(head + MARK + after)
    assert before == after, f"{PAGE.name} was out of date and has been rewritten; check the difference"


def test_every_rule_says_what_happens_to_channels() -> None:
    assert all(first_paragraph(rule) for rule in rules())


def rules() -> list[Rule]:
    return list(dict.fromkeys(RULES.values()))


def row(rule: Rule) -> str:
    names = sorted((name for name, own in RULES.items() if own is rule), key=lambda name: name.lstrip("_"))
    return f"| {', '.join(f'`{name}`' for name in names)} | {first_paragraph(rule)} |"


def first_paragraph(rule: Rule) -> str:
    return " ".join(inspect.cleandoc(rule.__doc__ or "").partition("\n\n")[0].split())
