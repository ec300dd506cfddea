import re
from pathlib import Path

import pytest

from mitoflow.config import params
from mitoflow.errors import InputError

COMMITTED = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")


def edited(folder: Path, old: str, new: str) -> Path:
    assert COMMITTED.count(old) >= 1, f"{old!r} is not in params.yaml"
    path = folder / "params.yaml"
    path.write_text(COMMITTED.replace(old, new, 1), encoding="utf-8")
    return path


def test_committed_file_is_valid(tmp_path: Path) -> None:
    assert params.load(edited(tmp_path, "gap: 4", "gap: 5")).patch.gap == 5


def test_committed_file_states_the_defaults(tmp_path: Path) -> None:
    assert params.load(edited(tmp_path, "", "")) == params.Params()
    assert params.Params.model_validate(params.Params().model_dump(by_alias=True)) == params.Params()


@pytest.mark.parametrize(
    ("old", "new", "where", "said"),
    [
        ("  patience:", "  patiense:", "train.patiense", "did you mean patience?"),
        ("patch:", "patches:", "patches", "did you mean patch?"),
        ("start: 4, high: 4}", "start: 4, hihg: 4}", "tune.depth.hihg", "did you mean high?"),
        ("  patience: 12", "  # patience: 6", "train.patience", "no such key"),
        ("  step: 256", "  # step: 256", "patch.step", "no such key"),
        ("{low: 2, start: 4, high: 4}", "{start: 4, high: 4}", "tune.depth.low", "no such key"),
        ("init_from: none", "init_from: pretrained", "params.yaml", "train.depth tuned: give the depth of that model"),
        ("gap: 4", "gap: -1", "patch.gap", "greater than or equal to 0"),
        ("gap: 4", "gap: four", "patch.gap", "integer"),
        ("gap: 4", "gap: 4.5", "patch.gap", "integer"),
        ("loss: bce ", "loss: 3 ", "train.loss", "string"),
        ("learning_rate: tuned", "learning_rate: tuning", "train.learning_rate", "'tuned'"),
        ("  bootstrap_block: 6", "  bootstrap_block: 0", "evaluate.bootstrap_block", "greater than or equal to 1"),
        ("seed: 1", "seed: -1", "tune.seed", "greater than or equal to 0"),
        ("learning_rate: tuned", "learning_rate: .nan", "train.learning_rate", "nan"),
        ("validation_fraction: 0.2", "validation_fraction: 1", "patch.validation_fraction", "less than 1"),
        ("low: 2,", "low: 5,", "tune.depth", "low 5, start 4 and high 4 are not in ascending order"),
        ("start: 4,", "start: 5,", "tune.depth", "low 2, start 5 and high 4 are not in ascending order"),
        ("budget_unit: crops", "budget_unit: hours", "tune.budget_unit", "'crops' or 'minutes'"),
        ("step: 256", "step: 300", "patch", "step 300 is larger than size 256"),
        ("size: 256", "size: 264", "patch.size 264 is not divisible by 2^depth = 16", "change one"),
        ("overlap: 64", "overlap: 256", "evaluate", "overlap 256 is not below tile 256"),
        ("overlap: 64", "overlap: 62", "evaluate.tile - evaluate.overlap", "not divisible"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, old: str, new: str, where: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        params.load(edited(tmp_path, old, new))
    line = str(error.value)
    assert where in line
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("new", "old", "line"),
    [
        ("affine_fraction: 0.33", "resampled: 0.33", "train.resampled: found {}, expected affine_fraction; rename it"),
        ("foreground_fraction", "foreground", "train.foreground: found {}, expected foreground_fraction; rename it"),
        (
            "orthoplanes: false",
            "planes: 1",
            "train.planes: found {}, expected orthoplanes: true for 3, false for 1; rename",
        ),
        ("  tta: 1", "  views: 1", "evaluate.views: found {}, expected tta; rename it, and double evaluate.overlap, "),
        ("bootstrap_block", "block", "evaluate.block: found {}, expected bootstrap_block; rename it"),
        ("bootstrap_resamples", "resamples", "evaluate.resamples: found {}, expected bootstrap_resamples; rename it"),
        ("  budget: 3000", "  epochs: 2", "tune.epochs: found {}, expected tune.budget, the crops of all trials"),
        ("  trials: 6", "  trials: 6\n  workers: 1", "tune.workers: found {}, expected machine.workers; move it"),
        (
            "  init_from",
            "  strategy: none\n  init_from",
            "train.strategy: found {}, expected machine.strategy; move it",
        ),
    ],
)
def test_a_key_of_mitoflow_0_1_names_the_new_one(tmp_path: Path, new: str, old: str, line: str) -> None:
    path = edited(tmp_path, new, old)
    with pytest.raises(InputError, match=re.escape(f"{path}: {line.format('a key of mitoflow 0.1')}")):
        params.load(path)


def test_orthogonal_planes_take_a_network_that_was_trained_on_them_or_has_no_neighbours(tmp_path: Path) -> None:
    path = edited(tmp_path, "orthoplanes: false     # true: mean", "orthoplanes: true     # true: mean")
    with pytest.raises(InputError, match=r"train.orthoplanes true, or train.context 0"):
        params.load(path)
    path.write_text(path.read_text().replace("  context: 1 ", "  context: 0 "), encoding="utf-8")
    assert params.load(path).evaluate.orthoplanes


def test_a_depth_that_is_given_is_that_of_the_trials_too(tmp_path: Path) -> None:
    path = edited(tmp_path, "size: 256", "size: 264")
    path.write_text(path.read_text().replace("  depth: tuned", "  depth: 3"), encoding="utf-8")
    assert params.load(path).patch.size == 264


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    assert params.load(edited(tmp_path, "learning_rate: tuned", "learning_rate: 1e-4")).train.learning_rate == 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "- a list", "a: [b", "\x00", "gap: +_", "gap: 0x_", "gap: ._", "[" * 2000])
def test_other_files_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="params.yaml"):
        params.load(path)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        params.load(tmp_path / "params.yaml")


def test_values_that_are_tuned_come_from_the_study(tmp_path: Path) -> None:
    best = tmp_path / "best_params.yaml"
    best.write_text("learning_rate: 0.002\ndepth: 3\naugment_strength: 0.7\n")
    recipe = params.Train(depth=2, seed=5).recipe(best)
    assert (recipe.learning_rate, recipe.depth, recipe.augment_strength, recipe.seed) == (0.002, 2, 0.7, 5)
    given = params.Train(learning_rate=0.1, depth=1, augment_strength=0.0).recipe(tmp_path / "none.yaml")
    assert given == recipe.replace(learning_rate=0.1, depth=1, augment_strength=0.0, seed=1)


def test_the_first_trial_stands_for_the_study_where_there_is_none() -> None:
    settings = params.Params(train=params.Train(depth=2, seed=5))
    recipe = settings.starting_recipe()
    assert (recipe.learning_rate, recipe.depth, recipe.augment_strength, recipe.seed) == (0.002, 2, 0.7, 5)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{}", "learning_rate: found no such key"),
        ("{learning_rate: fast, depth: 3, augment_strength: 0.7}", "learning_rate: found 'fast', expected "),
        ("{learning_rate: 0.1, depth: 9, augment_strength: 0.7}", "depth: found 9, expected less than or equal to 6"),
    ],
)
def test_what_is_wrong_with_the_values_of_a_study_is_one_line(tmp_path: Path, content: str, line: str) -> None:
    best = tmp_path / "best_params.yaml"
    best.write_text(content)
    with pytest.raises(InputError, match=re.escape(f"{best}: {line}")):
        params.Train().recipe(best)


def test_what_counts_as_a_mitochondrion_is_found_in_any_folder(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    assert params.load_instances(path=path) == params.Instances()
    path.write_text("prepare: {seed: 3}\n")  # of another project
    assert params.load_instances(path=path) == params.Instances()
    path.write_text("instances: {smallest_um3: 0.002, smallest_voxels: 9, neck: 0}\n")
    expected = params.Instances(smallest_um3=0.002, smallest_voxels=20, neck=0)
    assert params.load_instances({"smallest_voxels": 20, "neck": None}, path) == expected
    path.write_text("instances: {neck: 1}\n")
    with pytest.raises(InputError, match=re.escape(f"{path}: instances.neck: found 1, expected less than 1")):
        params.load_instances(path=path)
