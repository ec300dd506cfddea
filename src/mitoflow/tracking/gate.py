"""The gate: what a version must show to become the champion, by ``promotion.yaml``, and the verdict about it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from mitoflow.config import sections
from mitoflow.config.params import Bootstrap, Fraction
from mitoflow.config.sections import Section
from mitoflow.core import files, provenance, workspace
from mitoflow.data.masks import Rule
from mitoflow.data.pairs import read_set
from mitoflow.errors import InputError
from mitoflow.evaluation import metrics
from mitoflow.evaluation.bootstrap import Interval, simultaneous_level
from mitoflow.evaluation.evaluation_record import RECORDED, Evaluation
from mitoflow.evaluation.verdict import Check, Verdict
from mitoflow.inference import model_files

PATH = Path("promotion.yaml")

TIMED_SIDE, TIMES = 1024, 3  # pixels along y and x of the slice that is timed, and how often

Above = Annotated[float, Field(gt=0)]


class NonInferiorityDataset(Section):
    """Another dataset with truth, on which a challenger must not be worse than the champion by `margin` in Dice."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    folder: str
    mask_rule: Rule = "nonzero"
    margin: Fraction = 0.01

    @property
    def part(self) -> Path:
        """Its folder, which counts from the main checkout: a queued experiment works in a copy."""
        return workspace.main_checkout() / self.folder

    def evaluate(self, weights: Path, bootstrap: Bootstrap) -> Evaluation:
        """Return what a model does on it; each model is predicted with once only.

        Parameters
        ----------
        weights
            A ``.keras`` file, with ``inference.yaml`` beside it.
        bootstrap
            Of the intervals of its scores.

        Raises
        ------
        InputError
            The dataset cannot be read, or not by this model.
        """
        part, settings = self.part, weights.with_name(model_files.SETTINGS)
        pairs = read_set(part, self.name)
        data = files.short_digest(self.mask_rule, part / "images", part / "masks")
        digest = provenance.file_sha256(weights)
        drawn = bootstrap.model_dump()
        cached = workspace.state_dir() / "gate" / f"{files.short_digest([digest, data, drawn], settings)}.json"
        if not cached.is_file():
            from mitoflow.evaluation import protocols
            from mitoflow.inference.jobs import Prediction
            from mitoflow.inference.predictor import Predictor  # import Keras

            predict = partial(Prediction.of, Predictor.load(weights, settings))
            stacks, counts = protocols.count(predict, pairs, {self.name: self.mask_rule})
            with files.replacing(cached) as beside:
                Evaluation(digest, data, stacks, counts.tolist(), **drawn).write(beside)
        return Evaluation.read(cached)


class Gate(Section):
    """All of ``promotion.yaml``; what is None, False or empty is not asked for."""

    renamed: ClassVar[Mapping[str, tuple[str, str]]] = {
        "largest": ("max_model_mb", "rename it"),
        "slowest": ("max_seconds_per_mpx", "rename it"),
        "not_worse_on": ("non_inferiority", "rename it"),
    }

    #: Which versions become champion without `mitoflow promote`: ``never`` any, ``always`` each that passes, or those
    #: that were evaluated on this branch and not in a DVC experiment.
    auto_promote: str = "main"
    #: Whether the working tree must be as it was committed.
    require_clean: bool = False
    #: By the names of `metrics.SCORES`, the least or the most that a score on the test part may be.
    required: dict[str, Fraction] = Field(default_factory=dict)
    minimum_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    #: In Dice below the champion, on each of several test sets by itself; the gain is that of their mean.
    set_margin: Fraction | None = None
    bootstrap: Bootstrap = Bootstrap()
    max_model_mb: Above | None = None
    max_seconds_per_mpx: Above | None = None
    non_inferiority: list[NonInferiorityDataset] = Field(default_factory=list)

    @classmethod
    def load(cls, path: Path = PATH) -> Gate:
        """Read and validate ``promotion.yaml``; where there is none, only a gain is asked for.

        Raises
        ------
        InputError
            As `mitoflow.config.sections.read` does, or a dataset is not there.
        """
        if not path.is_file():
            return cls()
        gate = sections.read(cls, path)
        scores = [*metrics.scores_of(*RECORDED)]
        for name in gate.required:
            if name not in scores:
                raise sections.unknown_key(f"{path}: required.{name}", name, scores)
        for place, dataset in enumerate(gate.non_inferiority):
            if not (dataset.part / "masks").is_dir():
                where, expected = f"{path}: non_inferiority.{place}.folder", "a folder with images/ and masks/"
                raise InputError(where, dataset.folder, expected, "change the value")
        return gate

    def why_by_hand(self, lineage: Mapping[str, str]) -> str:
        """Return why a version of this lineage becomes champion by `mitoflow promote` alone; empty where it need not.

        A version that was made outside of git has no branch, and there is no other line of work beside it.
        """
        branch, experiment = lineage.get("git_branch", self.auto_promote), lineage.get("dvc_experiment")
        if self.auto_promote == "always":
            return ""
        if self.auto_promote == "never":
            return "no version becomes champion by itself"
        if experiment:
            return f"it comes from the DVC experiment {experiment}"
        if branch != self.auto_promote:
            found = "a checkout without a branch" if branch == "HEAD" else f"the branch {branch}"
            return f"it comes from {found} and not from {self.auto_promote}"
        return ""

    def decide(self, challenger: Candidate, champion: Candidate | None, compared_before: int = 0) -> Verdict:
        """Decide whether a challenger becomes the champion; nothing is changed.

        Both are compared on the test sets of the champion, and the challenger must have been evaluated on all of them.
        Sets that it has beyond these are neither a gain nor an obstacle: the champion has no score there.

        Parameters
        ----------
        challenger, champion
            The champion is None where there is none.
        compared_before
            How many other versions were compared with a champion on this test data: the interval of the gain allows
            for them, as `mitoflow.evaluation.bootstrap.paired_difference` says.
        """
        if challenger.evaluation is None:
            return Verdict(challenger.version, False, "it was never evaluated by mitoflow, or its evaluation is lost")
        gains, reason, gain = self._gain(challenger, champion, challenger.evaluation, compared_before)
        checks = tuple(self._checks(challenger, champion, challenger.evaluation))
        failed = [f"{check.what} is {check.found} and not {check.wanted}" for check in checks if not check.passed]
        reason = "; but ".join([reason, ", ".join(failed)] if failed else [reason])
        against = champion.version if champion else None
        return Verdict(challenger.version, gains and not failed, reason, against, gain, compared_before, checks)

    def prepare(self, challenger: Candidate, champion: Candidate | None) -> None:
        """Predict on the other datasets, which may take minutes, so that `decide` need not.

        Raises
        ------
        InputError
            A dataset cannot be read, or not by one of the models; the verdict of `decide` names it.
        """
        if champion is None or challenger.evaluation is None:
            return
        for dataset in self.non_inferiority:
            for each in (challenger, champion):
                dataset.evaluate(each.weights(), self.bootstrap)

    def _gain(
        self, challenger: Candidate, champion: Candidate | None, ours: Evaluation, compared_before: int
    ) -> tuple[bool, str, Interval | None]:
        if champion is None:
            return True, "there was no champion", None
        theirs, number = champion.evaluation, champion.version
        shared = ours.shared_sets(theirs) if theirs else {}
        if theirs is None or (missing := _beyond(theirs, shared)):
            tested_on = ", ".join(filter(None, [theirs.test_hash[:12], *missing])) if theirs else "unknown"
            reason = (
                f"it was evaluated on other test data ({ours.test_hash[:12]}) than champion {number} "
                f"({tested_on}), so they cannot be compared; evaluate both on the same data, or "
                f"`mitoflow promote {challenger.version} --force --reason TEXT`"
            )
            return False, reason, None
        both = [Evaluation.of_sets({name: each[side] for name, each in shared.items()}) for side in (0, 1)]
        gain = both[0].better_by(both[1], self.bootstrap, comparisons=compared_before + 1)
        gains = gain.low > self.minimum_gain
        names, new = ", ".join(filter(None, shared)), ", ".join(_beyond(ours, shared))
        subject = f"the mean Dice over {names}" if len(shared) > 1 else "Dice"
        against = f"{subject} differs by {gain:+.4f} from champion {number} on the same slices"
        least = f"{self.minimum_gain:g}" if self.minimum_gain else "zero"
        added = f"; without {new}, on which the champion has no score" if new else ""
        level = f"{100 * simultaneous_level(compared_before + 1):.4g} %"
        others = f"; it allows for earlier comparisons: {compared_before}" if compared_before else ""
        return gains, f"{against}: the {level} interval is {'' if gains else 'not '}above {least}{others}{added}", gain

    def _checks(self, challenger: Candidate, champion: Candidate | None, measured: Evaluation) -> Iterator[Check]:
        if self.require_clean:
            state = {"true": "changed", "false": "as committed"}.get(challenger.lineage.get("git_dirty", ""), "unknown")
            yield Check("working tree", state, "as committed", state == "as committed")
        for name, bound in self.required.items():
            least = metrics.SCORES[name].higher_is_better
            wanted = f"at {'least' if least else 'most'} {bound:g}"
            if name not in measured.scores:
                yield Check(name, "unknown", wanted, False)
            else:
                found = measured.interval(name)
                yield Check(name, str(found), wanted, found.value >= bound if least else found.value <= bound)
        if (limit := self.max_model_mb) is not None:
            yield _checked("megabytes", f"at most {limit:g}", partial(_size, challenger, limit))
        if (limit := self.max_seconds_per_mpx) is not None:
            yield _checked("seconds a megapixel", f"at most {limit:g}", partial(_speed, challenger, limit))
        if champion is not None:
            yield from self._checks_by_set(measured, champion)
            for dataset in self.non_inferiority:
                what, wanted = f"gain in Dice on {dataset.name}", f"at least {0 - dataset.margin:g}"
                yield _checked(what, wanted, partial(self._gain_on, dataset, challenger, champion))

    def _checks_by_set(self, ours: Evaluation, champion: Candidate) -> Iterator[Check]:
        """Yield whether a challenger is not inferior on any of several test sets that the champion has, too."""
        shared = ours.shared_sets(champion.evaluation) if champion.evaluation else {}
        if self.set_margin is None or len(shared) < 2:
            return
        for name, (mine, theirs) in shared.items():
            gain = mine.better_by(theirs, self.bootstrap)
            what, wanted = f"gain in Dice on test set {name}", f"at least {0 - self.set_margin:g}"
            yield Check(what, f"{gain:+.4f}", wanted, gain.low >= -self.set_margin)

    def _gain_on(self, dataset: NonInferiorityDataset, challenger: Candidate, champion: Candidate) -> tuple[str, bool]:
        ours, theirs = (dataset.evaluate(each.weights(), self.bootstrap) for each in (challenger, champion))
        gain = ours.better_by(theirs, self.bootstrap)
        return f"{gain:+.4f}", gain.low >= -dataset.margin


@dataclass(frozen=True)
class Candidate:
    """A version that the gate looks at.

    Attributes
    ----------
    version
        Its number.
    measured
        Gives what it did on the test part; None where mitoflow never evaluated it, or where that is lost. Asked only
        where it is needed.
    weights
        Gives its ``.keras`` file, with ``inference.yaml`` beside it; raises `InputError` where it has none.
    lineage
        Of its evaluation, as `mitoflow.core.provenance.current` has it.
    """

    version: int
    measured: Callable[[], Evaluation | None]
    weights: Callable[[], Path]
    lineage: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """What it did on the test part."""
        return self.measured()


def _beyond(evaluation: Evaluation, shared: Mapping[str, tuple[Evaluation, Evaluation]]) -> list[str]:
    """Return the sets of an evaluation that are not among those shared; a set that is the only one has no name."""
    known = {of_set.test_hash for both in shared.values() for of_set in both}
    return [name for name, of_set in evaluation.sets.items() if of_set.test_hash not in known]


def _checked(what: str, wanted: str, measure: Callable[[], tuple[str, bool]]) -> Check:
    """Return a check of what is measured, found and whether it is enough; what cannot be measured does not pass."""
    try:
        found, passed = measure()
    except InputError as error:
        found, passed = f"unknown ({error})", False
    return Check(what, found, wanted, passed)


def _seconds_per_megapixel(weights: Path) -> float:
    """Return how long a model takes for a slice here, from grey values to probabilities; of a few times the shortest.

    The first time includes what the framework does once.
    """
    from mitoflow.inference.predictor import Predictor

    predictor = Predictor.load(weights, weights.with_name(model_files.SETTINGS))
    bits = predictor.settings.bit_depth
    noise = np.random.default_rng(0).integers(2**bits, size=(1, TIMED_SIDE, TIMED_SIDE))
    image = noise.astype(np.uint8 if bits == 8 else np.uint16)
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        predictor.probabilities(image)
        taken.append(time.perf_counter() - start)
    planes = 3 if predictor.settings.orthoplanes else 1  # of which a single slice has one
    return planes * min(taken) / (TIMED_SIDE**2 / 1e6)


def _size(challenger: Candidate, limit: float) -> tuple[str, bool]:
    megabytes = challenger.weights().stat().st_size / 1e6
    return f"{megabytes:.1f}", megabytes <= limit


def _speed(challenger: Candidate, limit: float) -> tuple[str, bool]:
    seconds = _seconds_per_megapixel(challenger.weights())
    return f"{seconds:.2f} ({platform.machine()}, {os.cpu_count()} cores)", seconds <= limit
