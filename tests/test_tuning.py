import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import optuna
import pytest

from mitoflow import tuning
from mitoflow.params import Depths, LearningRates, Strengths, Tune

SETTINGS = Tune(
    trials=6,
    epochs=3,
    patches_per_epoch=1,
    seed=1,
    learning_rate=LearningRates(low=1e-4, high=1e-2),
    depth=Depths(low=2, high=4),
    augment_strength=Strengths(low=0.0, high=1.0),
)


def score(number: int, values: dict, report: tuning.Report) -> float:
    """Best near the middle of the ranges; reported over three epochs."""
    missed = abs(values["augment_strength"] - 0.5) + abs(values["depth"] - 3) / 4 + abs(values["learning_rate"] - 0.001)
    dice = 1 - missed
    for epoch in range(3):
        report(epoch, dice * (epoch + 1) / 3)
    return dice


def outcome(study: optuna.Study) -> list:
    return [(trial.state.name, trial.params, trial.value) for trial in tuning.finished_trials(study)]


def test_the_same_seed_gives_the_same_study(tmp_path: Path) -> None:
    studies = [tuning.open_study(tmp_path / f"{i}.db", "s") for i in range(2)]
    for study in studies:
        tuning.run_study(study, SETTINGS, score)
    assert outcome(studies[0]) == outcome(studies[1])
    assert len(outcome(studies[0])) == 6
    assert "PRUNED" in {state for state, *_ in outcome(studies[0])}


def test_a_study_killed_at_any_moment_goes_on(tmp_path: Path) -> None:
    undisturbed = tuning.open_study(tmp_path / "undisturbed.db", "s")
    tuning.run_study(undisturbed, SETTINGS, score)
    script = textwrap.dedent(f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from tests.test_tuning import SETTINGS, score, tuning
        from pathlib import Path
        study = tuning.open_study(Path({str(tmp_path / "killed.db")!r}), "s")
        calls = 0
        def killed(number, values, report):
            global calls
            calls += 1
            if calls == 3:
                report(0, 0.9)
                os.kill(os.getpid(), signal.SIGKILL)
            return score(number, values, report)
        tuning.recover(study)
        tuning.run_study(study, SETTINGS, killed)
    """)
    died = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    study = tuning.open_study(tmp_path / "killed.db", "s")
    assert len(tuning.finished_trials(study)) == 2
    assert tuning.recover(study) == [2]
    tuning.run_study(study, SETTINGS, score)
    assert outcome(study) == outcome(undisturbed)


def test_more_trials_keep_the_finished_ones_until_the_results_are_delivered(tmp_path: Path) -> None:
    study = tuning.open_study(tmp_path / "s.db", "s")
    tuning.run_study(study, SETTINGS.model_copy(update={"trials": 3}), score)
    first = outcome(study)
    study = tuning.open_study(tmp_path / "s.db", "s")
    tuning.run_study(study, SETTINGS.model_copy(update={"trials": 4}), score)
    assert outcome(study)[:3] == first
    tuning.mark_delivered(study, "abc")
    assert outcome(tuning.open_study(tmp_path / "s.db", "s", recorded="of another study")) == outcome(study)
    assert tuning.finished_trials(tuning.open_study(tmp_path / "s.db", "s", recorded="abc")) == []


def test_plots_are_the_same_files_again_and_need_no_network(tmp_path: Path) -> None:
    study = tuning.open_study(tmp_path / "s.db", "s")
    tuning.run_study(study, SETTINGS, score)
    for folder in ("one", "two"):
        tuning.write_plots(study, tmp_path / folder, seed=1)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["history.html", "importance.html", "parallel.html"]
    for name in names:
        page = (tmp_path / "one" / name).read_text(encoding="utf-8")
        assert page == (tmp_path / "two" / name).read_text(encoding="utf-8")
        assert not re.search(r"<(script|link)[^>]*(src|href)=", page)


def test_a_failing_trial_ends_the_study_loudly(tmp_path: Path) -> None:
    study = tuning.open_study(tmp_path / "s.db", "s")

    def broken(number: int, values: dict, report: tuning.Report) -> float:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        tuning.run_study(study, SETTINGS, broken)
