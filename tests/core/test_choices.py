import pytest

from mitoflow.core.choices import Choices
from mitoflow.errors import InputError


def test_what_is_registered_is_found_by_name_and_stays_as_it_is() -> None:
    choices: Choices[type] = Choices("params.yaml: train.loss")

    @choices.register("one")
    class One:
        pass

    choices.register("two")(int)
    assert choices["one"] is One
    assert list(choices) == ["one", "two"]
    choices.require("two")


def test_an_unknown_name_is_one_line_with_the_known_ones() -> None:
    choices: Choices[type] = Choices("params.yaml: train.loss")
    choices.register("bce")(int)
    choices.register("dice")(float)
    for find in (choices.__getitem__, choices.require):
        with pytest.raises(InputError) as error:
            find("bec")
        assert str(error.value).startswith("params.yaml: train.loss: found 'bec', expected one of bce, dice; ")
    assert "bec" not in choices


def test_a_name_is_given_once() -> None:
    choices: Choices[type] = Choices("params.yaml: train.loss")
    choices.register("bce")(int)
    with pytest.raises(ValueError, match="train.loss: bce is registered already"):
        choices.register("bce")
    assert choices["bce"] is int
