from __future__ import annotations

import numpy as np

from mitoflow.data.integer_drawing import Draws, ramp, root, smooth_noise


def test_draws_are_pcg64s() -> None:
    draws = Draws(7)
    raw = np.random.PCG64(7).random_raw(3)
    assert draws.below(10, 2).tolist() == [int(r) * 10 // 2**64 for r in raw[:2]]
    assert draws.bytes((1, 7)).tolist() == [list(int(raw[2]).to_bytes(8, "little")[:7])]
    assert {draws.between(3, 5) for _ in range(99)} == {3, 4, 5}


def test_integer_tables() -> None:
    squares = np.array([0, 1, 3, 4, 99, 100, 1 << 30])
    assert root(squares).tolist() == [0, 1, 1, 2, 9, 10, 1023]
    whole = np.arange(1 << 20)
    assert np.array_equal(root(whole), np.repeat(np.arange(1 << 10), 2 * np.arange(1 << 10) + 1))
    assert ramp(np.array([-9, 0, 5, 10, 30, 99]), (0, 100), (10, 0), (30, 40)).tolist() == [100, 100, 50, 0, 40, 40]


def test_noise_is_smooth_and_bounded() -> None:
    noise = smooth_noise(Draws(0), (40, 60), (8, 10), 1000)
    assert abs(noise).max() <= 1000
    assert noise.std() > 100
    assert abs(np.diff(noise, axis=1)).max() < 250
