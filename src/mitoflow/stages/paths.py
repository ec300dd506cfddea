"""Where the stages find the outputs of earlier ones and put their own, relative to the project's folder."""

from pathlib import Path

DATA = Path("data")
PATCHES = Path("patches")
MODEL = Path("models/unet.keras")
MODEL_FACTS = Path("models/unet.yaml")
CONVENTIONS = Path("reports/validate/conventions.yaml")
BEST_PARAMS = Path("reports/tune/best_params.yaml")
VALIDATE_REPORTS, TUNE_REPORTS, TRAIN_REPORTS, EVALUATE_REPORTS = (
    Path("reports") / stage for stage in ("validate", "tune", "train", "evaluate")
)
FINDINGS = VALIDATE_REPORTS / "report.json"
CURVES = TRAIN_REPORTS / "curves.csv"
INFERENCE = EVALUATE_REPORTS / "inference.yaml"
DOMAIN = EVALUATE_REPORTS / "domain.yaml"
EVALUATED = EVALUATE_REPORTS / "evaluation.json"
METRICS = EVALUATE_REPORTS / "metrics.json"
HEADLINE = EVALUATE_REPORTS / "headline.json"
