"""What `check-adapter` prints of a verdict: a line a check, its worst difference, and what to do."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vlm_distill.conformance.checks import CHECKS
from vlm_distill.conformance.findings import Finding
from vlm_distill.conformance.verdict import Verdict


def table(verdict: Verdict, weights: Mapping[str, Finding]) -> str:
    """Return the table of a verdict; `weights` are the findings on the model's own weights."""
    versions = ", ".join(f"{name} {version}" for name, version in verdict.packages.items() if version)
    way = "the generic path" if verdict.is_generic else f"adapter {verdict.adapter}"
    lines = [
        f"{verdict.model}: {verdict.model_type} through {way}; {versions}",
        f"structure: on a random copy in float32, {verdict.copied}; weights: one response",
        f"judge: {verdict.judge}",
        *(f"{name}: {line}" for name, line in {**verdict.facts.lines, **verdict.notes}.items()),
        "",
    ]
    found = all_findings(verdict, weights)
    width = max(map(len, found))
    lines += [_line(name, finding, width) for name, finding in found.items()]
    counts = dict.fromkeys(("passed", "does not apply", "failed"), 0)
    for finding in found.values():
        counts[finding.outcome] += 1
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return "\n".join([*lines, "", f"{len(found)} checks: {said}; verdict {verdict.hash[:12]}"])


def values(verdict: Verdict, weights: Mapping[str, Finding]) -> dict[str, Any]:
    """Return the same for programs."""
    known = asdict(verdict) | {"hash": verdict.hash}
    known["findings"] = {
        name: asdict(finding) | ({"remedy": _remedy(name)} if finding.outcome == "failed" else {})
        for name, finding in all_findings(verdict, weights).items()
    }
    return known


def all_findings(verdict: Verdict, weights: Mapping[str, Finding]) -> dict[str, Finding]:
    structure = {name: verdict.findings[name] for name in CHECKS if name in verdict.findings}
    return {**structure, **{f"weights: {name}": finding for name, finding in weights.items()}}


def _line(name: str, finding: Finding, width: int) -> str:
    error = "" if finding.error is None else f"{finding.error:.1e}"
    rest = f"{finding.line}; {_remedy(name)}" if finding.outcome == "failed" else finding.line
    return f"{name:<{width}}  {finding.outcome:<14}  {error:>7}  {rest}".rstrip()


def _remedy(name: str) -> str:
    return CHECKS[name.removeprefix("weights: ")].remedy
