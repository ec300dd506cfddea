"""Check ``data/`` before anything is computed from it: errors end the pipeline, warnings do not."""

from __future__ import annotations

from mitoflow.config import params
from mitoflow.core import files
from mitoflow.data import validation
from mitoflow.data.conventions import mask_rules, write_conventions
from mitoflow.errors import InputError, printable
from mitoflow.evaluation import report
from mitoflow.stages.paths import CONVENTIONS, DATA, FINDINGS, VALIDATE_REPORTS
from mitoflow.tracking import runs
from mitoflow.tracking.naming import run_name


def main() -> None:
    settings = params.load()
    with runs.start("validate", run_name("validate", settings.data.name)) as run:
        findings = validation.check_dataset(
            DATA,
            settings.validate_.near_duplicate,
            orthoplanes=settings.train.orthoplanes,
            normalization=settings.patch.normalization,
        )
        if findings.facts and "test" not in findings.facts:
            remedy = "add one: `mitoflow data add` with --test-images or --test-fraction"
            findings.errors.append(validation.Finding(str(DATA / "test"), "no set", "a set that tests", remedy))
        page = VALIDATE_REPORTS / "report.html"
        rules = mask_rules(findings.conventions)
        samples = {part: report.sample_slices(DATA / part, rules) for part in findings.facts}
        report.write_validation_report(page, findings, samples)
        files.write_json(FINDINGS, findings.as_dict())
        run.params({"validate": settings.validate_.model_dump()})
        run.metrics({"errors": len(findings.errors), "warnings": len(findings.warnings)})
        run.describe(f"{len(findings.errors)} errors and {len(findings.warnings)} warnings about the stacks in {DATA}")
        for file in (page, FINDINGS):
            run.artifact(file)
        for warning in findings.warnings:
            print(printable(f"warning: {warning}"))
        if findings.errors:
            first, more = findings.errors[0], len(findings.errors) - 1
            remedy = first.remedy + (f" ({more} more errors in {page})" if more else "")
            raise InputError(first.where, first.found, first.expected, remedy)
    write_conventions(CONVENTIONS, findings.conventions)
    print(f"{DATA}: no errors, {len(findings.warnings)} warnings; see {page}")
