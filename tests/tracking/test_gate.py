"""The criteria of promotion.yaml."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mitoflow.config.params import Bootstrap
from mitoflow.core import provenance
from mitoflow.errors import InputError
from mitoflow.evaluation import metrics
from mitoflow.evaluation.evaluation_record import Evaluation
from mitoflow.evaluation.verdict import Check, Verdict
from mitoflow.tracking.gate import Candidate, Gate, NonInferiorityDataset

COMMITTED = (Path(__file__).parents[2] / "promotion.yaml").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a file in the place of a model, and the folder of a dataset."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liver/masks").mkdir(parents=True)
    (tmp_path / "unet.keras").write_bytes(bytes(1000))
    return tmp_path


def contender(version: int, weights: Path, right: int = 800, boundaries: bool = True) -> Candidate:
    """Twenty slices of 1000 foreground pixels of which `right` are found, and half of the boundary."""
    counts = [[right + z, 50, 1000 - right - z, 9000] for z in range(20)]
    outlines = [[10, 5, 10, 5, 9, 3]] * 20 if boundaries else []
    evaluated = Evaluation(provenance.file_sha256(weights), "a" * 64, ["s"] * 20, counts, 5, 200, 1, outlines)
    return Candidate(version, lambda: evaluated, lambda: weights)


def asked(folder: Path, old: str, new: str) -> Path:
    assert old in COMMITTED
    path = folder / "promotion.yaml"
    path.write_text(COMMITTED.replace(old, new, 1), encoding="utf-8")
    return path


def test_the_committed_file_is_valid_and_without_one_only_a_gain_is_asked_for(folder: Path) -> None:
    assert Gate.load(asked(folder, "minimum_gain: 0.0", "minimum_gain: 0.01")).minimum_gain == 0.01
    assert Gate.load(folder / "absent.yaml") == Gate() == Gate(required={}, minimum_gain=0.0)
    text = COMMITTED.replace("non_inferiority: []", "non_inferiority:").replace("\n#  ", "\n  ")
    path = folder / "all.yaml"
    path.write_text(text.replace("../liver/test", "liver"), encoding="utf-8")
    assert [dataset.name for dataset in Gate.load(path).non_inferiority] == ["liver"]
    assert Gate.load(path).bootstrap == Gate().bootstrap


def test_another_dataset_is_found_from_the_copy_of_a_queued_experiment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = asked(folder, "non_inferiority: []", "non_inferiority: [{name: liver, folder: liver}]")
    copied = folder / ".dvc/tmp/exps/standalone/copy"
    copied.mkdir(parents=True)
    monkeypatch.chdir(copied)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    assert Gate.load(path).non_inferiority[0].part == folder / "liver"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  dice:", "  dise:", "required.dise: found an unknown key.*did you mean dice?"),
        ("  dice:", "  panoptic_quality:", "required.panoptic_quality: found an unknown key, expected one of dice,"),
        ("dice: 0.3", "dice: 3", "required.dice: found 3"),
        ("max_model_mb", "largest", "largest: found a key of mitoflow 0.1, expected max_model_mb; rename it"),
        ("max_seconds_per_mpx", "slowest", "slowest: found a key of mitoflow 0.1, expected max_seconds_per_mpx"),
        ("non_inferiority", "not_worse_on", "not_worse_on: found a key of mitoflow 0.1, expected non_inferiority"),
        ("max_model_mb: 100", "max_model_mb: 0", "max_model_mb: found 0"),
        ("minimum_gain: 0.0", "minimum_gain: much", "minimum_gain: found 'much'"),
        (
            "non_inferiority: []",
            "non_inferiority: [{name: a, folder: nowhere}]",
            "0.folder: found nowhere, expected a folder with images/ and masks/; change the value$",
        ),
        (
            "non_inferiority: []",
            "non_inferiority: [{name: a, foldr: b}]",
            "0.foldr: found an unknown key.*did you mean fold",
        ),
        ("non_inferiority: []", "non_inferiority: [{name: a b, folder: liver}]", "0.name: found 'a b'"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        Gate.load(asked(folder, old, new))
    assert "promotion.yaml" in str(refused.value)


def test_required_scores_hold_for_the_first_version_too(folder: Path) -> None:
    weights = folder / "unet.keras"
    wanted = Gate(required={"dice": 0.8, "boundary_f1": 0.6})
    verdict = wanted.decide(contender(1, weights), None)
    assert not verdict.promoted
    dice, outlines = verdict.checks
    assert (dice.what, dice.passed, outlines.what, outlines.passed) == ("dice", True, "boundary_f1", False)
    assert verdict.reason == ("there was no champion; but boundary_f1 is 0.5000 [0.5000, 0.5000] and not at least 0.6")
    unknown = wanted.decide(contender(1, weights, boundaries=False), None)
    assert "boundary_f1 is unknown and not at least 0.6" in unknown.reason
    assert unknown.checks[1] == Check("boundary_f1", "unknown", "at least 0.6", False)
    assert Gate(required={"dice": 0.8, "boundary_f1": 0.5}).decide(contender(1, weights), None).promoted
    assert Verdict.from_tags(1, verdict.tags()) == verdict


def test_a_score_that_is_better_when_lower_has_an_upper_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = metrics.Score(lambda counts: 1 - metrics.accuracy(counts), "Wrong pixels", higher_is_better=False)
    monkeypatch.setitem(metrics.SCORES, "wrong", wrong)
    challenger = contender(1, folder / "unet.keras")
    assert challenger.evaluation is not None
    found = challenger.evaluation.interval("wrong").value
    path = folder / "promotion.yaml"
    for bound, passed in ((found + 0.01, True), (found, True), (found - 0.01, False)):
        path.write_text(f"required: {{wrong: {bound}}}\n", encoding="utf-8")
        (check,) = Gate.load(path).decide(challenger, None).checks
        assert (check.what, check.wanted, check.passed) == ("wrong", f"at most {bound:g}", passed)


def test_required_scores_are_compared_and_not_the_ends_of_their_intervals(folder: Path) -> None:
    """900 of 1000 pixels in ten slices and 500 in ten others: Dice is 28,000 / 34,000 = 0.8235."""
    counts = [[900, 0, 100, 9000]] * 10 + [[500, 0, 500, 9000]] * 10
    evaluated = Evaluation("m" * 64, "a" * 64, ["s"] * 20, counts, 5, 200, 1)
    challenger = Candidate(1, lambda: evaluated, lambda: folder / "unet.keras")
    interval = evaluated.interval("dice")
    assert interval.low < 0.82 < interval.value < 0.83 < interval.high
    for bound, passed in ((0.82, True), (28 / 34, True), (0.83, False)):
        assert Gate(required={"dice": bound}).decide(challenger, None).promoted is passed


#: Of a champion and a challenger that finds less: in ten slices the 200 wrong pixels are gone, and in the ten others
#: 200 right ones. Dice is 20,000 / 22,000 and 16,000 / 18,000, a loss of 0.0202, of which the interval reaches from a
#: large loss to a gain.
BEFORE = [[400, 200, 0, 3496]] * 10 + [[600, 0, 0, 3496]] * 10
AFTER = [[400, 0, 0, 3696]] * 10 + [[400, 0, 200, 3496]] * 10


def test_no_set_may_get_worse_than_its_margin_at_the_lower_end_of_the_interval(folder: Path) -> None:
    def candidate(version: int, counts: list[list[int]]) -> Candidate:
        sets = {
            name: Evaluation("m" * 64, name * 64, ["s"] * 20, of_set, 5, 200, 1)
            for name, of_set in {"a": counts, "b": [[500 + version, 0, 0, 9000]] * 20}.items()
        }
        return Candidate(version, lambda: Evaluation.of_sets(sets), lambda: folder / "unet.keras")

    checks = Gate(set_margin=0.03).decide(candidate(2, AFTER), candidate(1, BEFORE)).checks
    value, low, high = (float(part.strip("[],")) for part in checks[0].found.split())
    assert value == pytest.approx(16 / 18 - 20 / 22, abs=1e-4)
    assert low < -0.03 < value < 0 < high
    assert [check.passed for check in checks] == [False, True]
    assert all(check.passed for check in Gate(set_margin=0.2).decide(candidate(2, AFTER), candidate(1, BEFORE)).checks)


def test_a_gain_must_be_as_large_as_asked_for(folder: Path) -> None:
    weights = folder / "unet.keras"
    better, champion = contender(2, weights, 850), contender(1, weights)
    gain = Gate().decide(better, champion).difference
    assert gain is not None
    assert Gate(minimum_gain=round(gain.low - 0.001, 4)).decide(better, champion).promoted
    more = round(gain.low + 0.001, 4)
    refused = Gate(minimum_gain=more).decide(better, champion)
    assert not refused.promoted
    assert refused.reason.endswith(f"the 95 % interval is not above {more:g}")


def of_sets(version: int, weights: Path, **right: int) -> Candidate:
    """One set for each keyword: twenty slices of 1000 foreground pixels, of which so many are found."""
    sets = {}
    for name, found in right.items():
        counts = [[found + z, 50, 1000 - found - z, 9000] for z in range(20)]
        sets[name] = Evaluation("m" * 64, name[0] * 64, ["s"] * 20, counts, 5, 200, 1)
    return Candidate(version, lambda: Evaluation.of_sets(sets), lambda: weights)


def test_a_set_on_which_it_gets_worse_is_named(folder: Path) -> None:
    weights = folder / "unet.keras"
    champion = of_sets(1, weights, epfl=800, vnc=600)
    worse = of_sets(2, weights, epfl=950, vnc=560)
    verdict = Gate(set_margin=0.01).decide(worse, champion)
    assert not verdict.promoted
    assert verdict.reason.startswith("the mean Dice over epfl, vnc differs by +0.0")
    assert "on the same slices: the 95 % interval is above zero; but gain" in verdict.reason
    assert "but gain in Dice on test set vnc is -0.0" in verdict.reason
    assert "test set epfl" not in verdict.reason
    assert [check.passed for check in verdict.checks] == [True, False]
    assert Gate().decide(worse, champion).promoted  # the mean is better
    assert Gate(set_margin=0.1).decide(worse, champion).promoted
    assert verdict.difference is not None
    gains = [float(check.found.split()[0]) for check in verdict.checks]
    assert verdict.difference.value == pytest.approx(np.mean(gains), abs=1e-4)
    assert Verdict.from_tags(2, verdict.tags()) == verdict


def test_a_set_that_was_added_is_no_gain_and_no_obstacle(folder: Path) -> None:
    weights = folder / "unet.keras"
    champion = of_sets(1, weights, epfl=800)  # recorded as a set without a name
    gate = Gate(set_margin=0.01)
    better = gate.decide(of_sets(2, weights, epfl=850, vnc=300), champion)
    assert better.promoted
    assert better.reason.endswith("above zero; without vnc, on which the champion has no score")
    assert better.difference == gate.decide(of_sets(2, weights, epfl=850), champion).difference
    assert not better.checks
    assert not gate.decide(of_sets(2, weights, epfl=800, vnc=999), champion).promoted


def test_a_set_of_the_champion_that_it_was_not_evaluated_on_leaves_it_a_challenger(folder: Path) -> None:
    weights = folder / "unet.keras"
    champion = of_sets(1, weights, epfl=800, vnc=600)
    for gate in (Gate(), Gate(set_margin=0.01)):
        verdict = gate.decide(of_sets(2, weights, epfl=950), champion)
        assert (verdict.promoted, verdict.difference) == (False, None)
        assert "it was evaluated on other test data (eeeeeeeeeeee) than champion 1 (" in verdict.reason
        assert ", vnc), so they cannot be compared" in verdict.reason


def test_required_scores_are_of_the_mean_over_sets(folder: Path) -> None:
    challenger = of_sets(1, folder / "unet.keras", epfl=950, vnc=500)
    mean = np.mean([each.interval("dice").value for each in challenger.evaluation.sets.values()])
    for bound, passed in ((mean - 0.01, True), (mean + 0.01, False)):
        assert Gate(required={"dice": bound}).decide(challenger, None).promoted is passed


def test_the_bootstrap_of_the_gate_does_not_depend_on_the_challenger(folder: Path) -> None:
    drift = np.repeat([300, -100, -100, 100], 10)  # a gain of 50 in ten slices that are near copies of each other
    luck = [[800 + int(d), 50, 200 - int(d), 9000] for d in drift]
    even = [[800, 50, 200, 9000]] * 40
    weights = folder / "unet.keras"

    def verdict_of(block: int, resamples: int) -> Verdict:
        ours, theirs = (Evaluation("m", "t", ["s"] * 40, counts, block, resamples, 1) for counts in (luck, even))
        champion = Candidate(1, lambda: theirs, lambda: weights)
        return Gate().decide(Candidate(2, lambda: ours, lambda: weights), champion)

    assert verdict_of(1, 1) == verdict_of(10, 2000)
    assert not verdict_of(1, 1).promoted
    sure = verdict_of(1, 1).difference
    assert sure is not None
    assert sure.low < 0 < sure.value


def test_what_cannot_be_measured_does_not_pass_and_raises_nothing(folder: Path) -> None:
    lost = replace(
        contender(1, folder / "unet.keras"), weights=lambda: raises(InputError("m", "gone", "it", "mend it"))
    )
    verdict = Gate(max_model_mb=1.0, max_seconds_per_mpx=1.0).decide(lost, None)
    assert not verdict.promoted
    found = "unknown (m: found gone, expected it; mend it)"
    assert verdict.checks == (
        Check("megabytes", found, "at most 1", False),
        Check("seconds a megapixel", found, "at most 1", False),
    )


def raises(error: Exception) -> Path:
    raise error


@pytest.mark.parametrize(
    ("lineage", "found", "passed"),
    [({"git_dirty": "false"}, "as committed", True), ({"git_dirty": "true"}, "changed", False), ({}, "unknown", False)],
)
def test_a_clean_working_tree_may_be_asked_for(folder: Path, lineage: dict[str, str], found: str, passed: bool) -> None:
    challenger = replace(contender(1, folder / "unet.keras"), lineage=lineage)
    verdict = Gate(require_clean=True).decide(challenger, None)
    assert verdict.checks == (Check("working tree", found, "as committed", passed),)
    assert verdict.promoted is passed
    assert Gate().decide(challenger, None).checks == ()


@pytest.mark.parametrize(
    ("auto_promote", "lineage", "why"),
    [
        ("always", {"git_branch": "other", "dvc_experiment": "e1"}, ""),
        ("never", {"git_branch": "main"}, "no version becomes champion by itself"),
        ("main", {"git_branch": "main"}, ""),
        ("main", {}, ""),
        ("main", {"git_branch": "main", "dvc_experiment": "e1"}, "it comes from the DVC experiment e1"),
        ("main", {"git_branch": "other"}, "it comes from the branch other and not from main"),
        ("main", {"git_branch": "HEAD"}, "it comes from a checkout without a branch and not from main"),
    ],
)
def test_who_becomes_champion_by_itself(auto_promote: str, lineage: dict[str, str], why: str) -> None:
    assert Gate(auto_promote=auto_promote).why_by_hand(lineage) == why


def test_the_size_of_a_model_is_in_millions_of_bytes(folder: Path) -> None:
    (folder / "unet.keras").write_bytes(bytes(1_500_000))
    for limit, passed in ((1.499999, False), (1.5, True)):
        verdict = Gate(max_model_mb=limit).decide(contender(1, folder / "unet.keras"), None)
        assert verdict.checks == (Check("megabytes", "1.5", "at most 1.5", passed),)


def test_two_seconds_a_megapixel_are_at_most_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timing itself, which needs a network, has its own test."""
    timed = "mitoflow.tracking.gate._seconds_per_megapixel"
    monkeypatch.setattr(timed, lambda weights: float(len(weights.read_bytes())) / 500)
    for limit, passed in ((1.9, False), (2.0, True)):
        (check,) = Gate(max_seconds_per_mpx=limit).decide(contender(1, folder / "unet.keras"), None).checks
        assert (check.what, check.wanted, check.passed) == ("seconds a megapixel", f"at most {limit:g}", passed)
        assert check.found.startswith("2.00 (")


def test_what_was_never_evaluated_is_not_promoted(folder: Path) -> None:
    nothing = Candidate(7, lambda: None, lambda: folder / "unet.keras")
    verdict = Gate().decide(nothing, contender(1, folder / "unet.keras"))
    assert verdict == Verdict(7, False, "it was never evaluated by mitoflow, or its evaluation is lost")


def test_other_test_data_are_named(folder: Path) -> None:
    weights = folder / "unet.keras"
    other = Evaluation("m" * 64, "b" * 64, ["s"] * 20, [[800, 50, 200, 9000]] * 20, 5, 200, 1)
    for champion, tested_on in ((other, "bbbbbbbbbbbb"), (None, "unknown")):
        verdict = Gate().decide(contender(2, weights), Candidate(1, partial(_given, champion), lambda: weights))
        reason = (
            f"it was evaluated on other test data (aaaaaaaaaaaa) than champion 1 ({tested_on}), so they cannot be "
            "compared; evaluate both on the same data, or `mitoflow promote 2 --force --reason TEXT`"
        )
        assert verdict == Verdict(2, False, reason, champion=1)


def _given(evaluation: Evaluation | None) -> Evaluation | None:
    return evaluation


def test_the_interval_allows_for_what_was_compared_before(folder: Path) -> None:
    better, champion = contender(2, folder / "unet.keras", 850), contender(1, folder / "unet.keras")
    assert better.evaluation and champion.evaluation
    for before, level, note in ((0, "95 %", ""), (1, "97.5 %", "; it allows for earlier comparisons: 1")):
        verdict = Gate().decide(better, champion, before)
        gain = better.evaluation.better_by(champion.evaluation, Gate().bootstrap, comparisons=before + 1)
        assert (verdict.difference, verdict.compared_before, verdict.champion) == (gain, before, 1)
        expected = f"Dice differs by {gain:+.4f} from champion 1 on the same slices: the {level} interval is above zero"
        assert verdict.reason == expected + note


def test_sets_without_a_score_of_the_champion_and_all_that_fails_are_listed(folder: Path) -> None:
    weights = folder / "unet.keras"
    verdict = Gate(required={"dice": 0.99, "iou": 0.98}).decide(
        of_sets(2, weights, epfl=850, vnc=300, worm=500), of_sets(1, weights, epfl=800)
    )
    assert "above zero; without vnc, worm, on which the champion has no score; but dice is " in verdict.reason
    assert " and not at least 0.99, iou is " in verdict.reason


def test_what_is_as_good_as_its_margin_passes(folder: Path) -> None:
    weights = folder / "unet.keras"
    champion = of_sets(1, weights, epfl=800, vnc=600)
    checks = Gate(set_margin=0.0).decide(of_sets(2, weights, epfl=800, vnc=600), champion).checks
    nothing = "+0.0000 [+0.0000, +0.0000]"
    assert checks == tuple(
        Check(f"gain in Dice on test set {name}", nothing, "at least 0", True) for name in ("epfl", "vnc")
    )
    checks = Gate(set_margin=0.03).decide(of_sets(2, weights, epfl=800, vnc=600), champion).checks
    assert {check.wanted for check in checks} == {"at least -0.03"}


def test_other_datasets_are_compared_version_by_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With figures in the place of predictions, which have their own test."""
    found = {
        version: Evaluation("m" * 64, "w" * 64, ["s"] * 20, counts, 5, 200, 1)
        for version, counts in (("champion", BEFORE), ("challenger", AFTER))
    }
    asked_for: list[str] = []

    def evaluate(dataset: NonInferiorityDataset, weights: Path, bootstrap: Bootstrap) -> Evaluation:
        assert bootstrap == Gate().bootstrap
        asked_for.append(f"{dataset.name} {weights}")
        return found[str(weights)]

    monkeypatch.setattr(NonInferiorityDataset, "evaluate", evaluate)
    champion = replace(contender(1, folder / "unet.keras"), weights=lambda: Path("champion"))
    challenger = replace(contender(2, folder / "unet.keras", 900), weights=lambda: Path("challenger"))

    def check(margin: float, ours: Candidate = challenger) -> Check:
        worm = NonInferiorityDataset(name="worm", folder="worm", margin=margin)
        (check,) = Gate(non_inferiority=[worm]).decide(ours, champion).checks
        return check

    gain = found["challenger"].better_by(found["champion"], Gate().bootstrap)
    assert gain.low < -0.03 < gain.value < 0
    assert check(0.03) == Check("gain in Dice on worm", f"{gain:+.4f}", "at least -0.03", False)
    assert check(0.3).passed
    assert check(0.0, replace(challenger, weights=lambda: Path("champion"))).passed

    gate_of_two = Gate(non_inferiority=[NonInferiorityDataset(name=name, folder=name) for name in ("worm", "liver")])
    asked_for.clear()
    gate_of_two.prepare(challenger, champion)
    assert asked_for == ["worm challenger", "worm champion", "liver challenger", "liver champion"]
    gate_of_two.prepare(challenger, None)
    gate_of_two.prepare(Candidate(3, lambda: None, lambda: Path("challenger")), champion)
    assert len(asked_for) == 4
