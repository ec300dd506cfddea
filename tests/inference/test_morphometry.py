"""Bodies whose measures are known, in one piece and in blocks."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mitoflow.inference.morphometry import COLUMNS, STEPS, Measurements, crofton_weights, measure

volumes = hnp.arrays(
    np.uint16,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
    elements=st.sampled_from([0, 0, 1, 2, 7]),
)
NM = (5.0, 5.0, 5.0)


def measured(labels: NDArray, **settings) -> Measurements:
    return measure(lambda region: labels[region], labels.shape, **settings)


def ellipsoid(radii, voxel_size=NM) -> NDArray[np.uint8]:
    """One of these radii in nm, in the middle of a volume."""
    shape = [2 * int(radius / size) + 5 for radius, size in zip(radii, voxel_size, strict=True)]
    grid = np.ogrid[tuple(map(slice, shape))]
    places = [(axis - (n - 1) / 2 + 0.1) * size for axis, n, size in zip(grid, shape, voxel_size, strict=True)]
    return (sum((at / radius) ** 2 for at, radius in zip(places, radii, strict=True)) <= 1).astype(np.uint8)


@given(volumes, st.tuples(*[st.integers(1, 6)] * 3))
def test_nothing_depends_on_the_blocks(labels, block):
    whole, parts = measured(labels, voxel_size=NM, block=labels.shape), measured(labels, voxel_size=NM, block=block)
    for name in ("labels", "voxels", "first", "last", "crossings"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert parts.centroid == pytest.approx(whole.centroid)
    assert parts.covariance == pytest.approx(whole.covariance, abs=1e-9)
    assert parts.totals == pytest.approx(whole.totals)


@given(volumes)
def test_sums_are_those_of_the_voxels_one_by_one(labels):
    found = measured(labels, block=(2, 2, 2))
    assert found.labels.tolist() == sorted(set(labels[labels > 0].tolist()))
    for row, name in enumerate(found.labels):
        places = np.argwhere(labels == name)
        assert found.voxels[row] == len(places)
        assert np.array_equal(found.first[row], places.min(0))
        assert np.array_equal(found.last[row], places.max(0))
        assert found.centroid[row] == pytest.approx(places.mean(0))
        assert found.covariance[row] == pytest.approx(np.cov(places.T, ddof=0), abs=1e-9)
        inside = {tuple(place) for place in places.tolist()}
        for step, crossings in zip(STEPS, found.crossings[row], strict=True):
            ends = [(p, tuple(np.add(p, step).tolist())) for p in np.ndindex(labels.shape)]
            ends = [(p, q) for p, q in ends if all(0 <= at < n for at, n in zip(q, labels.shape, strict=True))]
            assert crossings == sum((p in inside) != (q in inside) for p, q in ends)


def test_directions_have_the_weights_of_the_literature():
    # Legland et al. 2007, table 2: shares of the sphere of the 26 directions of cubic voxels.
    shares = {1: 0.04577789120476, 2: 0.03698062787608, 3: 0.03519563978232}
    expected = [4 * shares[sum(map(abs, step))] / np.linalg.norm(step) for step in STEPS]
    assert crofton_weights((1, 1, 1)) == pytest.approx(expected)
    assert crofton_weights((2, 2, 2)) == pytest.approx(np.multiply(expected, 4))


@pytest.mark.parametrize("voxel_size", [NM, (10.0, 4.0, 5.0)])
@pytest.mark.parametrize("radius", [50, 90])
def test_a_ball(radius, voxel_size):
    found = measured(ellipsoid((radius,) * 3, voxel_size), voxel_size=voxel_size, block=(7, 8, 9))
    assert found.volume == pytest.approx(4 / 3 * np.pi * radius**3 / 1e9, rel=0.02)
    assert found.surface == pytest.approx(4 * np.pi * radius**2 / 1e6, rel=0.02)
    assert found.sphericity == pytest.approx(1, abs=0.02)
    assert found.elongation == pytest.approx(1, abs=0.02)


def test_rods_are_elongated_and_discs_are_not():
    rod, disc = (measured(ellipsoid(radii), voxel_size=NM) for radii in ((40, 120, 40), (40, 120, 120)))
    assert rod.elongation == pytest.approx(3, rel=0.02)
    assert disc.elongation == pytest.approx(1, abs=0.01)
    # Of a prolate ellipsoid of axes 3 : 1 : 1 and an oblate one of 3 : 3 : 1, from their closed surfaces.
    eccentricity = np.sqrt(8) / 3
    prolate = 2 * np.pi * 40**2 * (1 + 3 / eccentricity * np.arcsin(eccentricity)) / 1e6
    oblate = 2 * np.pi * 120**2 * (1 + (1 - eccentricity**2) / eccentricity * np.arctanh(eccentricity)) / 1e6
    assert rod.surface == pytest.approx(prolate, rel=0.02)
    assert disc.surface == pytest.approx(oblate, rel=0.03)
    assert rod.sphericity < 0.9


def test_a_box_along_the_axes_is_the_worst_case():
    cube = np.pad(np.ones((30, 30, 30), np.uint8), 2)
    assert measured(cube, voxel_size=NM).surface == pytest.approx(6 * 150**2 / 1e6, rel=0.1)


def test_a_row_of_voxels_has_a_width():
    row = np.zeros((3, 3, 12), np.uint8)
    row[1, 1, 1:11] = 1
    assert measured(row, voxel_size=NM).elongation == pytest.approx(10)
    assert measured(row, voxel_size=(5.0, 5.0, 2.0)).elongation == pytest.approx(4)


def three() -> NDArray[np.uint8]:
    """One mitochondrion at the first corner, one in the middle, one at the last slice; labels with a gap."""
    labels = np.zeros((10, 20, 50), np.uint8)
    labels[:3, :4, :5] = 1
    labels[4:6, 8:10, 20:24] = 2
    labels[8:, 5:9, 30:33] = 4
    return labels


def test_the_border_and_the_cut_are_reported():
    found = measured(three(), voxel_size=NM)
    assert found.touches_border.tolist() == [True, False, True]
    whole = measured(np.pad(three(), 1), voxel_size=NM)
    assert not whole.touches_border.any()
    assert (found.surface < whole.surface).tolist() == [True, False, True]


def test_totals_count_each_mitochondrion_of_adjoining_volumes_once():
    totals = measured(three(), voxel_size=(100.0, 100.0, 100.0), unsplit=[2]).totals
    assert totals == {
        "mitochondria": 3,
        "touching_border": 2,
        "unsplit": 1,
        "volume_fraction": pytest.approx((60 + 16 + 24) / 10_000),
        "density_per_um3": pytest.approx(2 / 10),
        "stack_um3": pytest.approx(10),
    }
    # A bar of mitochondria that all end within it, cut in two: both halves count what there is.
    bar = np.zeros((4, 10, 60), np.uint8)
    for label, x in enumerate(range(2, 54, 5), 1):
        bar[1:3, 2:8, x : x + 4] = label
    halves = [
        measured(half, voxel_size=(1000.0,) * 3).totals["density_per_um3"] for half in (bar[..., :29], bar[..., 29:])
    ]
    assert np.dot(halves, [4 * 10 * 29, 4 * 10 * 31]) == pytest.approx(bar.max())


def test_a_table_is_written_with_units(tmp_path):
    path = tmp_path / "table.csv"
    measured(three(), voxel_size=(10.0, 5.0, 4.0), unsplit=[4]).write(path)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [row["label"] for row in rows] == ["1", "2", "4"]
    assert [row["unsplit"] for row in rows] == ["0", "0", "1"]
    assert {key: rows[1][key] for key in COLUMNS if not key.startswith(("s", "e"))} == {
        "label": "2",
        "volume_voxels": "16",
        "volume_um3": "3.2e-06",
        "centroid_z_voxel": "4.5",
        "centroid_y_voxel": "8.5",
        "centroid_x_voxel": "21.5",
        "first_z_voxel": "4",
        "first_y_voxel": "8",
        "first_x_voxel": "20",
        "last_z_voxel": "5",
        "last_y_voxel": "9",
        "last_x_voxel": "23",
        "touches_border": "0",
        "unsplit": "0",
    }
    assert rows[1]["slices"] == "2"
    assert all(float(rows[1][key]) > 0 for key in ("surface_um2", "sphericity", "elongation"))


def test_what_is_unknown_is_empty(tmp_path):
    found = measured(three())
    found.write(tmp_path / "table.csv")
    found.write_totals(tmp_path / "totals.csv", "usable: expected Dice about 0.90")
    with (tmp_path / "table.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    assert {key for key in COLUMNS if not row[key]} == {"volume_um3", "surface_um2", "sphericity", "elongation"}
    with (tmp_path / "totals.csv").open(newline="") as stream:
        totals = next(csv.DictReader(stream))
    assert {key for key in totals if not totals[key]} == {"density_per_um3", "stack_um3"}
    assert totals["mitochondria"] == "3"
    assert totals["judgement"] == "usable: expected Dice about 0.90"


def test_a_single_slice_has_no_surface_and_no_border_along_z():
    labels = np.zeros((1, 20, 20), np.uint8)
    labels[0, 5:10, 5:10] = 1
    found = measured(labels, voxel_size=NM)
    assert np.isnan(found.surface).all()
    assert not found.touches_border.any()
    assert found.totals["density_per_um3"] == pytest.approx(1 / (400 * 125e-9))


def test_no_mitochondria(tmp_path):
    found = measured(np.zeros((2, 3, 4), np.uint16), voxel_size=NM)
    found.write(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines() == [",".join(COLUMNS)]
    assert (found.totals["mitochondria"], found.totals["volume_fraction"]) == (0, 0)
