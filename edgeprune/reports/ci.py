"""A check's report for CI: JUnit, GitHub's annotations and its job summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from edgeprune.records import Check, Outcome, Report
from edgeprune.reports.console import NO_BASELINE, line, mark


def junit(reports: Sequence[Report]) -> str:
    """The reports as JUnit XML: one test case for each check. A fail is a failure, an inconclusive check an error."""
    suites = list(map(_suite, reports))
    root = suites[0]
    if len(suites) > 1:
        root = ElementTree.Element("testsuites")
        root.extend(suites)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(report: Report) -> ElementTree.Element:
    counts = {outcome: sum(check.outcome is outcome for check in report.checks) for outcome in Outcome}
    suite = ElementTree.Element(
        "testsuite",
        name=f"edgeprune {report.target}",
        tests=str(len(report.checks)),
        failures=str(counts[Outcome.FAIL]),
        errors=str(counts[Outcome.INCONCLUSIVE]),
    )
    for check in report.checks:
        case = ElementTree.SubElement(suite, "testcase", classname=f"{report.project}.{report.target}", name=check.name)
        if check.outcome is not Outcome.PASS:
            kind = "failure" if check.outcome is Outcome.FAIL else "error"
            detail = ElementTree.SubElement(case, kind, type=str(check.outcome), message=_plain(line(check)))
            detail.text = "\n".join(map(_plain, _more(report, check)))
    return suite


def _more(report: Report, check: Check) -> list[str]:
    """Details of a check that did not pass: slower operators, stale facts, or the baseline."""
    if check.name == "slowdown":
        return [f"{one.operator}: {one.before_ns / 1e3:.1f} -> {one.after_ns / 1e3:.1f} us" for one in report.slower]
    return list(report.stale) if check.name == "baseline" else [report.baseline or NO_BASELINE]


def _plain(text: str) -> str:
    """The text without control characters, which XML and Markdown do not allow."""
    return "".join(c if c.isprintable() else " " for c in text)


def workflow_commands(report: Report) -> list[str]:
    """GitHub's workflow commands: an error for each failed check, a warning for each inconclusive one.

    A missing baseline is a warning, too.
    """
    kinds = {Outcome.FAIL: "error", Outcome.INCONCLUSIVE: "warning"}
    title = _escaped(f"{report.project} on {report.target}").replace(":", "%3A").replace(",", "%2C")
    missing = [] if report.baseline else [f"::warning title={title}::baseline: {NO_BASELINE}"]
    return missing + [
        f"::{kinds[check.outcome]} title={title}::{_escaped(line(check))}"
        for check in report.checks
        if check.outcome in kinds
    ]


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def markdown(report: Report) -> str:
    """The report as Markdown, for a job summary."""
    rows = [
        f"| {check.outcome} | {check.name} | {check.value:,.4g} | {check.limit:,.4g} | {_cell(check.note)} |"
        for check in report.checks
    ]
    lines = [
        f"### {_cell(report.project)} on {_cell(report.target)}: {report.outcome}{mark(report)}",
        "",
        "| | check | value | limit | |",
        "|---|---|---:|---:|---|",
        *rows,
        "",
        f"Artifact {report.artifact[:12]}. Baseline: {_cell(report.baseline or NO_BASELINE)}",
        *(f"- stale: {_cell(fact)}" for fact in report.stale),
        *(
            f"- slower: {_cell(one.operator)}, {one.before_ns / 1e3:,.1f} → {one.after_ns / 1e3:,.1f} µs"
            for one in report.slower
        ),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text of a device or a file, escaped so that it is never markup."""
    return _plain(text).translate({ord(character): f"&#{ord(character)};" for character in "\\`*_[]|<>&"})


def announce(reports: Sequence[Report], environment: Mapping[str, str]) -> list[str]:
    """Report to GitHub Actions, if it runs this process: append to the job summary, and return the lines to print.

    Args:
        reports: of each target.
        environment: the process's variables; `GITHUB_ACTIONS` and `GITHUB_STEP_SUMMARY` decide.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    if environment.get("GITHUB_STEP_SUMMARY"):
        with Path(environment["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as summary:
            summary.write("\n".join(map(markdown, reports)))
    return [line for report in reports for line in workflow_commands(report)]
