from pathlib import Path

import pytest

from benchmarks import ablation, train_step
from mitoflow.config.params import Patch
from mitoflow.data.conventions import Conventions
from mitoflow.data.cutting import write_store
from mitoflow.data.pairs import read_pairs


@pytest.mark.slow
def test_what_the_ablation_changes_in_the_training_makes_another_model(small_dataset: Path, tmp_path: Path) -> None:
    pairs, cut = read_pairs(small_dataset / "train"), Patch(size=64, step=64, validation_fraction=0.25, gap=2)
    store = write_store(tmp_path / "patches", pairs, cut, {"phantom": Conventions(8, "nonzero")})
    lengths = {"epochs": 2, "patience": 2, "patches_per_epoch": 16, "batch_size": 4}
    recipe = train_step.recipe(**lengths, orthoplanes=False, depth=3, base_width=4, context=1, precision="float32")
    changed = ["orthogonal planes, measured on slices"]
    changed += [name for name, row in ablation.ROWS.items() if row.fit is not ablation.fit or "network" in row.changes]
    scores = {}
    for name in ["the recipe", *changed]:
        row = ablation.ROWS[name]
        found = ablation.measure(store, recipe.replace(**row.changes), row, name)
        scores[name] = found["validation_dice"], found["altered_dice"]
        assert min(scores[name]) > 0
    assert len(changed) == 6
    assert not [name for name in changed if scores[name] == scores["the recipe"]]


def test_only_seeds_of_one_recipe_and_number_of_patches_are_one_line() -> None:
    scores = {"altered_dice": 0.8, "cpu_seconds": 10, "parameters": 10**6}
    rows = [
        {"row": "the recipe", "patches": patches, "seed": seed, **recipe, "validation_dice": dice, **scores}
        for patches, seed, recipe, dice in [
            (3200, 1, {}, 0.9),  # of before the recipe was known
            (3200, 1, {"recipe": "abc"}, 0.91),
            (3200, 2, {"recipe": "abc"}, 0.92),
            (6400, 1, {"recipe": "abc"}, 0.93),
        ]
    ]
    lines = [line.split(" | ")[1:4] for line in ablation.table(rows).splitlines()[2:]]
    assert lines == [
        ["3,200", "", "0.9000"],
        ["3,200", "abc", "0.9100 / 0.9200"],
        ["6,400", "abc", "0.9300"],
    ]
