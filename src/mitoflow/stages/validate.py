"""Check ``data/`` before anything is computed from it: errors end the pipeline, warnings do not."""

from __future__ import annotations

from mitoflow.config import params
from mitoflow.core import files
from mitoflow.data import validation
from mitoflow.data.conventions import Conventions
from mitoflow.errors import InputError
from mitoflow.evaluation import report
from mitoflow.stages.paths import CONVENTIONS, DATA, FINDINGS, VALIDATE_REPORTS
from mitoflow.tracking import runs


def main() -> None:
    settings = params.load()
    with runs.start("validate", "validate") as run:
        rule, near_duplicate = settings.data.mask_rule, settings.validate_.near_duplicate
        findings = validation.check_dataset(DATA, rule, near_duplicate, orthoplanes=settings.train.orthoplanes)
        page = VALIDATE_REPORTS / "report.html"
        agreed = findings.mask_rule
        samples = {part: report.sample_slices(DATA / part, agreed) for part in validation.PARTS} if agreed else {}
        report.write_validation_report(page, findings, samples)
        files.write_json(FINDINGS, findings.as_dict())
        run.params({"data.mask_rule": settings.data.mask_rule})
        run.metrics({"errors": len(findings.errors), "warnings": len(findings.warnings)})
        for file in (page, FINDINGS):
            run.artifact(file)
        for warning in findings.warnings:
            print(f"warning: {warning}")
        if findings.errors:
            first, more = findings.errors[0], len(findings.errors) - 1
            remedy = first.remedy + (f" ({more} more errors in {page})" if more else "")
            raise InputError(first.where, first.found, first.expected, remedy)
    assert findings.bit_depth is not None
    assert findings.mask_rule is not None
    Conventions(findings.bit_depth, findings.mask_rule).write(CONVENTIONS)
    print(f"{DATA}: no errors, {len(findings.warnings)} warnings; see {page}")
