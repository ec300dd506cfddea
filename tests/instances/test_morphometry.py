"""Bodies whose measures are known, in one piece and in blocks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from skimage.measure import perimeter_crofton

from mitoflow.instances.boundaries import crofton_weights, feret_diameters
from mitoflow.instances.label_sums import STEPS
from mitoflow.instances.morphometry import (
    VOLUME_MEASURES,
    Measurements,
    measure,
)

volumes = hnp.arrays(
    np.uint16,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
    elements=st.sampled_from([0, 0, 1, 2, 7]),
)
ROOT = Path(__file__).parents[2]
NM = (5.0, 5.0, 5.0)


def measured(labels: NDArray, **settings) -> Measurements:
    return measure(lambda region: labels[region], labels.shape, **settings)


def ellipsoid(radii, voxel_size=NM) -> NDArray[np.uint8]:
    """One of these radii in nm, in the middle of a volume."""
    shape = [2 * int(radius / size) + 5 for radius, size in zip(radii, voxel_size, strict=True)]
    grid = np.ogrid[tuple(map(slice, shape))]
    places = [(axis - (n - 1) / 2 + 0.1) * size for axis, n, size in zip(grid, shape, voxel_size, strict=True)]
    return (sum((at / radius) ** 2 for at, radius in zip(places, radii, strict=True)) <= 1).astype(np.uint8)


@pytest.mark.slow
@given(volumes, st.tuples(*[st.integers(1, 6)] * 3))
def test_nothing_depends_on_the_blocks(labels, block):
    whole, parts = measured(labels, voxel_size=NM, block=labels.shape), measured(labels, voxel_size=NM, block=block)
    for name in ("labels", "voxels", "first", "last", "crossings"):
        assert np.array_equal(getattr(whole.sums, name), getattr(parts.sums, name)), name
    assert parts.sums.centroid == pytest.approx(whole.sums.centroid)
    assert parts.sums.covariance == pytest.approx(whole.sums.covariance, abs=1e-9)
    assert parts.skeletons == whole.skeletons
    assert [*map(str, parts.totals.values())] == [*map(str, whole.totals.values())]


@pytest.mark.slow
@given(volumes)
def test_sums_are_those_of_the_voxels_one_by_one(labels):
    found = measured(labels, block=(2, 2, 2)).sums
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
    assert found.volume_um3 == pytest.approx(4 / 3 * np.pi * radius**3 / 1e9, rel=0.02)
    assert found.surface_um2 == pytest.approx(4 * np.pi * radius**2 / 1e6, rel=0.02)
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
    assert rod.surface_um2 == pytest.approx(prolate, rel=0.02)
    assert disc.surface_um2 == pytest.approx(oblate, rel=0.03)
    assert rod.sphericity < 0.9


def test_a_box_along_the_axes_is_the_worst_case():
    cube = np.pad(np.ones((30, 30, 30), np.uint8), 2)
    assert measured(cube, voxel_size=NM).surface_um2 == pytest.approx(6 * 150**2 / 1e6, rel=0.1)


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
    assert (found.surface_um2 < whole.surface_um2).tolist() == [True, False, True]


def test_totals_count_each_mitochondrion_of_adjoining_volumes_once():
    totals = measured(three(), voxel_size=(100.0, 100.0, 100.0), coarse=[2]).totals
    assert totals.pop("why_blank") == ""
    assert totals == {
        "mitochondria": 3,
        "touching_border": 2,
        "coarse": 1,
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
    measured(three(), voxel_size=(10.0, 5.0, 4.0), coarse=[4]).write(path)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == tuple(measured(three()).columns)
    assert [row["label"] for row in rows] == ["1", "2", "4"]
    assert [row["coarse"] for row in rows] == ["0", "0", "1"]
    assert {key: rows[1][key] for key in rows[1] if key not in VOLUME_MEASURES[1:]} == {
        "label": "2",
        "volume_voxels": "16",
        "volume_um3": "3.2e-06",
        "slices": "2",
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
        "coarse": "0",
        "why_blank": "",
    }
    assert all(float(rows[1][key]) > 0 for key in VOLUME_MEASURES if key not in ("skeleton_length_um", "end_points"))
    assert {key for key in VOLUME_MEASURES if not rows[0][key]} == {"sphericity", "elongation", "complexity_index"}
    assert rows[0]["why_blank"] == "cut by the border"


def test_what_is_unknown_is_empty(tmp_path):
    found = measured(three())
    found.write(tmp_path / "table.csv")
    found.write_totals(tmp_path / "totals.csv", "usable: expected Dice about 0.90")
    with (tmp_path / "table.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    assert {key for key in row if not row[key]} == {*VOLUME_MEASURES} - {"branches", "end_points"}
    assert row["why_blank"] == "voxel size unknown; cut by the border"
    with (tmp_path / "totals.csv").open(newline="") as stream:
        totals = next(csv.DictReader(stream))
    assert {key for key in totals if not totals[key]} == {"density_per_um3", "stack_um3"}
    assert (totals["mitochondria"], totals["why_blank"]) == ("3", "voxel size unknown")
    assert totals["judgement"] == "usable: expected Dice about 0.90"


def test_a_density_that_cannot_be_estimated_is_blank():
    labels = np.zeros((3, 9, 9), np.uint8)
    labels[2, 2:4, 2:4] = 1
    totals = measured(labels, voxel_size=NM).totals
    assert np.isnan(totals["density_per_um3"])
    assert totals["why_blank"] == "no density: all reach the last slice, row or column"
    assert measured(np.zeros_like(labels), voxel_size=NM).totals["density_per_um3"] == 0


def ellipse(radii: tuple[float, float], pixel_size: tuple[float, float]) -> NDArray[np.uint8]:
    """One of these radii in nm, (1, Y, X)."""
    return ellipsoid((1000.0, *radii), (50.0, *pixel_size))[22:23]


@pytest.mark.parametrize("pixel_size", [(5.0, 5.0), (4.0, 6.0)])
def test_a_single_slice_is_measured_in_two_dimensions(pixel_size):
    found = measured(ellipse((100, 300), pixel_size), voxel_size=(50.0, *pixel_size), block=(1, 30, 30))
    assert set(found.columns).isdisjoint({"volume_um3", "surface_um2", "sphericity", "slices", "centroid_z_voxel"})
    # Ramanujan 1914, for the perimeter of an ellipse.
    around = np.pi * (3 * 400 - np.sqrt((3 * 100 + 300) * (100 + 3 * 300)))
    area = np.pi * 100 * 300
    expected = {
        "area_um2": area / 1e6,
        "perimeter_um": around / 1e3,
        "circularity": 4 * np.pi * area / around**2,
        "aspect_ratio": 3,
        "feret_max_um": 0.6,
        "feret_min_um": 0.2,
    }
    # Few directions of lines see a perimeter less well than pixels see a length.
    limits = dict.fromkeys(expected, 0.02) | {"perimeter_um": 0.04, "circularity": 0.08}
    for name, limit in limits.items():
        assert getattr(found, name)[0] == pytest.approx(expected[name], rel=limit), name
    assert not found.touches_border.any()
    totals = found.totals
    assert totals["profiles_per_um2"] == pytest.approx(1 / totals["stack_um2"])
    assert "density_per_um3" not in totals


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_perimeter_is_that_of_scikit_image(plane):
    found = measured(np.pad(plane, 1)[None].astype(np.uint8), voxel_size=(1.0, 2.0, 2.0))
    expected = [2 * perimeter_crofton(np.pad(plane, 1), 4) / 1e3] if plane.any() else []
    assert found.perimeter_um == pytest.approx(expected)


def test_feret_diameters_are_those_between_the_corners_of_pixels():
    bar = np.zeros((9, 9), bool)
    bar[2:4, 1:8] = True
    assert feret_diameters(bar, (1.0, 1.0)) == pytest.approx((np.hypot(7, 2), 2))
    assert feret_diameters(bar, (5.0, 1.0)) == pytest.approx((np.hypot(7, 10), 7))
    diamond = np.abs(np.arange(-8, 9))[:, None] + np.abs(np.arange(-8, 9)) <= 8
    assert feret_diameters(diamond, (1.0, 1.0)) == pytest.approx((np.hypot(17, 1), 18 / np.sqrt(2)))


def test_shapes_of_what_the_border_cuts_are_blank_and_sizes_are_not():
    labels = np.zeros((1, 60, 60), np.uint8)
    labels[0, :20, 20:40] = 1
    labels[0, 30:50, 20:40] = 2
    found = measured(labels, voxel_size=NM)
    for name in ("circularity", "aspect_ratio", "feret_max_um", "feret_min_um"):
        assert np.isnan(getattr(found, name)).tolist() == [True, False], name
    assert found.area_um2 == pytest.approx([0.01, 0.01])
    assert found.why_blank == ["cut by the border", ""]


def test_a_ball_is_as_complex_as_a_ball():
    assert measured(ellipsoid((90,) * 3), voxel_size=NM).complexity_index == pytest.approx(9 / (4 * np.pi), rel=0.05)


def test_the_nearest_one_is_found_across_voxels_of_any_size():
    labels = np.zeros((9, 20, 50), np.uint8)
    labels[1, 5, 5], labels[7, 5, 5], labels[1, 5, 25] = 1, 2, 5
    assert measured(labels, voxel_size=(50.0, 5.0, 5.0)).nearest_um == pytest.approx([0.1, 0.3, 0.1])
    assert measured(labels, voxel_size=(10.0, 5.0, 5.0)).nearest_um == pytest.approx([0.06, 0.06, 0.1])
    alone = measured(np.minimum(labels, 1) * (labels == 1), voxel_size=NM)
    assert np.isnan(alone.nearest_um).all()
    assert alone.why_blank == ["no other mitochondrion"]


def test_labels_below_the_smallest_size_are_left_out():
    assert measured(three(), fewest=17).sums.labels.tolist() == [1, 4]


@pytest.mark.slow
@given(volumes, st.tuples(*[st.integers(1, 6)] * 3), st.data())
def test_regions_and_grey_values_are_those_of_the_voxels_one_by_one(labels, block, data):
    regions = data.draw(hnp.arrays(np.uint8, labels.shape, elements=st.sampled_from([0, 3, 4])))
    image = data.draw(hnp.arrays(np.uint8, labels.shape))
    found = measured(labels, voxel_size=NM, block=block, read_image=image.__getitem__, read_regions=regions.__getitem__)
    inside = {name: [np.bincount(regions[labels == name], minlength=5)] for name in found.sums.labels}
    assert found.regions.of.tolist() == [int(np.argmax(counts)) for counts in inside.values()]
    rows = found.region_rows
    assert [row["region"] for row in rows] == sorted({*regions.ravel().tolist()} - {0})
    for row in rows:
        held = regions == row["region"]
        assert row["volume_fraction" if len(labels) > 1 else "area_fraction"] == (labels[held] > 0).mean()
    assert found.grey[0] == pytest.approx([image[labels == name].mean() for name in found.sums.labels])
    assert found.grey[1] == pytest.approx([image[labels == name].std() for name in found.sums.labels], abs=1e-4)


def test_regions_have_the_median_of_their_mitochondria(tmp_path):
    labels, regions = np.zeros((10, 30, 40), np.uint16), np.zeros((10, 30, 40), np.uint8)
    regions[:, :, :20], regions[:, :, 20:38] = 1, 7
    for label, (size, x) in enumerate([(2, 3), (4, 8), (6, 13), (3, 30)], 1):
        labels[2 : 2 + size, 5:9, x : x + 4] = label
    found = measured(labels, voxel_size=(100.0,) * 3, read_regions=regions.__getitem__)
    found.write_regions(tmp_path / "regions.csv")
    with (tmp_path / "regions.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["region"], first["mitochondria"], first["median_volume_um3"]) == ("1", "3", "0.064")
    assert (second["region"], second["mitochondria"], second["median_volume_um3"]) == ("7", "1", "0.048")
    assert float(second["density_per_um3"]) == pytest.approx(1 / (10 * 30 * 18 * 1e-3), rel=1e-5)
    assert float(first["volume_fraction"]) == pytest.approx(16 * 12 / 6000)


def test_every_column_is_documented_and_no_other():
    text = (ROOT / "docs/table.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    stated = {kind: {row[0].strip("`") for row in rows if kind in row[1]} for kind in ("2-D", "3-D")}
    image = np.ones((2, 5, 5), np.uint8)
    for kind, depth in (("2-D", 1), ("3-D", 2)):
        part = image[:depth]
        found = measured(part, read_image=part.__getitem__, read_regions=part.__getitem__)
        medians = {f"median_{name}" for name in found.measures}
        assert {*found.columns, *found.totals, *found.region_rows[0], "judgement"} - medians == stated[kind]


def test_no_mitochondria(tmp_path):
    found = measured(np.zeros((2, 3, 4), np.uint16), voxel_size=NM)
    found.write(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines() == [",".join(found.columns)]
    assert (found.totals["mitochondria"], found.totals["volume_fraction"]) == (0, 0)
