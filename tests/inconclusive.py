"""Tests that are inconclusive: skipped, counted, and too many of them fail the run.

Other work on the machine may keep a runtime from being measured, or a plan from its budget. A test then shows nothing about
what it tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

import pytest

from edgeprune.errors import InconclusiveError

TIERS = ("contract", "e2e")
MOST = 0.1  # of a tier's tests that ran; more means that the tier was not tested


class Inconclusive:
    """Counts the tests of each tier. With pytest-xdist, the controller counts what the workers report."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.inconclusive: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Skip a test of these tiers that raises `InconclusiveError`, and note it for the count."""
        try:
            return (yield)
        except InconclusiveError as error:
            if not any(map(item.get_closest_marker, TIERS)):
                raise
            item.user_properties.append(("inconclusive", str(error)))
            pytest.skip(f"inconclusive: {error}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that ran. One that was skipped for another reason did not run."""
        tier = next((tier for tier in TIERS if tier in report.keywords), None)
        if report.when != "call" or tier is None:
            return
        inconclusive = any(name == "inconclusive" for name, _ in report.user_properties)
        self.inconclusive[tier] += inconclusive
        self.ran[tier] += inconclusive or not report.skipped

    @property
    def too_many(self) -> set[str]:
        """The tiers of which so few tests were conclusive that the run must fail."""
        return {tier for tier, count in self.inconclusive.items() if count > MOST * self.ran[tier]}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run if too many tests are inconclusive."""
        if self.too_many and not hasattr(session.config, "workerinput") and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the counts."""
        for tier, count in self.inconclusive.items():
            bad = tier in self.too_many
            text = f"inconclusive: {count} of {self.ran[tier]} {tier} tests"
            if bad:
                text += f", more than {MOST:.0%}: the run fails; stop other work on this machine, and run again"
            if count:
                terminalreporter.write_line(text, red=bad, yellow=not bad)
