"""Contract tests that are inconclusive: skipped, counted, and too many of them fail the run.

Other work on the machine may keep a runtime from being measured. A test then shows nothing about the runtime's contract.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from edgeprune.errors import InconclusiveError

TIER = "contract"
MOST = 0.1  # of the tests that ran; more means that the tier was not tested


class Inconclusive:
    """Counts the tier's tests. With pytest-xdist, the controller counts what the workers report."""

    def __init__(self) -> None:
        self.ran, self.inconclusive = 0, 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Skip a test of the tier that raises `InconclusiveError`, and note it for the count."""
        try:
            return (yield)
        except InconclusiveError as error:
            if item.get_closest_marker(TIER) is None:
                raise
            item.user_properties.append(("inconclusive", str(error)))
            pytest.skip(f"inconclusive: {error}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that ran. One that was skipped for another reason did not run."""
        if report.when != "call" or TIER not in report.keywords:
            return
        inconclusive = any(name == "inconclusive" for name, _ in report.user_properties)
        self.inconclusive += inconclusive
        self.ran += inconclusive or not report.skipped

    @property
    def too_many(self) -> bool:
        """Whether so few tests were conclusive that the run must fail."""
        return self.inconclusive > MOST * self.ran

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run if too many tests are inconclusive."""
        if self.too_many and not hasattr(session.config, "workerinput") and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the count."""
        if self.inconclusive:
            text = f"inconclusive: {self.inconclusive} of {self.ran} {TIER} tests"
            if self.too_many:
                text += f", more than {MOST:.0%}: the run fails; stop other work on this machine, and run again"
            terminalreporter.write_line(text, red=self.too_many, yellow=not self.too_many)
