"""A check's report for machines that gate on it: JUnit, GitHub's annotations and its job summary."""

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from edgeprune.records import Check, Outcome, Report
from edgeprune.reports.console import NO_BASELINE, line, mark


def junit(report: Report) -> str:
    """The report as JUnit's XML: a test a check, "failure" for a fail and "error" for what is inconclusive."""
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
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _more(report: Report, check: Check) -> list[str]:
    """What a reader of a failed check asks next."""
    if check.name == "slowdown":
        return [f"{one.operator}: {one.before_ns / 1e3:.1f} -> {one.after_ns / 1e3:.1f} us" for one in report.slower]
    return list(report.stale) if check.name == "baseline" else [report.baseline or NO_BASELINE]


def _plain(text: str) -> str:
    """Without the control characters that XML and Markdown have no place for."""
    return "".join(c if c.isprintable() else " " for c in text)


def workflow_commands(report: Report) -> list[str]:
    """GitHub's workflow commands: an error a failed check, a warning an inconclusive one, and one where no baseline is."""
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
    """The report as Markdown, for a job's summary."""
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
    """Text of a device or a file, so that it cannot be markup."""
    return _plain(text).translate({ord(character): f"&#{ord(character)};" for character in "\\`*_[]|<>&"})


def announce(report: Report, environment: Mapping[str, str]) -> list[str]:
    """Inside GitHub's Actions: add to the job's summary, and the lines to print."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    if environment.get("GITHUB_STEP_SUMMARY"):
        with Path(environment["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as summary:
            summary.write(markdown(report))
    return workflow_commands(report)
