"""Named datasets: what each is, the terms of its use, and how it gets its files.

Each is a class in `DATASETS`, whose name is a command, ``mitoflow data NAME``. What else depends on the name of a
dataset follows from its class: the preset, model cards, and the voxel size where the files lack it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from mitoflow.core.choices import Choices
from mitoflow.errors import InputError

if TYPE_CHECKING:
    from mitoflow.data.pairs import Pair
    from mitoflow.io.spacing import Spacing

# What reads and writes images is imported where it is needed: the command line asks for the names of the datasets.


class Dataset(Protocol):
    """A named dataset; the docstring of its class is the help of its command.

    Attributes
    ----------
    preset
        The section of ``presets.yaml`` that fits it.
    tissue
        The tissue and how it was imaged, in a few words.
    note, licence
        What the data are, and on which terms they may be used, for the cards of models that learned from them.
    spacing
        The published voxel size, for files that lack it; empty where it is unknown.
    files
        The files that it is made of, which the option ``--from`` takes from a folder; none where it needs no files.
    """

    preset: ClassVar[str]
    tissue: ClassVar[str]
    note: ClassVar[str]
    licence: ClassVar[str]
    spacing: ClassVar[Spacing]
    files: ClassVar[tuple[str, ...]]

    def write(self, train: Path, test: Path, source: Path | None) -> Mapping[Path, str]:
        """Write both parts, each as ``images`` and ``masks`` in a folder of its own.

        Parameters
        ----------
        train, test
            Folders that do not exist yet.
        source
            The folder with `files`; None to download or make them.

        Returns
        -------
        What to call a written file in errors; empty where its path says it.

        Raises
        ------
        InputError
            A file is missing, cannot be downloaded or is not of this dataset.
        """


DATASETS: Choices[type[Dataset]] = Choices("mitoflow data")


@DATASETS.register("phantom")
class Phantom:
    """Make the synthetic EM stack: no real data, for trying things out."""

    preset = "phantom"
    tissue = "synthetic"
    note = "A synthetic EM stack, drawn by mitoflow and not acquired: it says nothing about real tissue."
    licence = "MIT, as mitoflow"
    spacing: ClassVar[Spacing] = {}
    files = ()

    def write(self, train: Path, test: Path, source: Path | None) -> Mapping[Path, str]:
        """Draw both parts; there is no source."""
        from mitoflow.data import phantom

        phantom.write_parts(train, test)
        return {}


@DATASETS.register("phantoms")
class Phantoms:
    """Make 24 small synthetic stacks, each of another look, to be trained on beside real sets: `--add`.

    Sizes, textures, cristae, contrast and noise are drawn at random. There is no test part.
    """

    preset = "general"
    tissue = "synthetic, of randomised looks"
    note = "Synthetic EM stacks of randomised looks, drawn by mitoflow and not acquired."
    licence = "MIT, as mitoflow"
    spacing: ClassVar[Spacing] = {}
    files = ()

    count = 24

    def write(self, train: Path, test: Path, source: Path | None) -> Mapping[Path, str]:
        """Draw the stacks that train; there is no source."""
        from mitoflow.data import phantom

        phantom.write_randomised(train, self.count)
        return {}


@DATASETS.register("epfl")
class Epfl:
    """Take the EPFL hippocampus set: 2 x 165 slices of 1024 x 768.

    The four files are downloaded (about 260 MB) into the user's cache, once.
    """

    # There is no published checksum: the files count as whole when every page can be read, and shape, pixel type and
    # mask values are those of the set.

    preset = "epfl"
    tissue = "hippocampus, CA1; FIB-SEM"
    note = (
        "FIB-SEM of the CA1 hippocampus, EPFL CVLab, for research use. Cite: A. Lucchi, K. Smith, R. Achanta, "
        'G. Knott, P. Fua, "Supervoxel-Based Segmentation of Mitochondria in EM Image Stacks with Learned Shape '
        'Features", IEEE TMI 31(2), 2012. A voxel is about 5 nm wide along each axis.'
    )
    licence = "research use; cite Lucchi et al., IEEE TMI 31(2), 2012"
    spacing: ClassVar[Spacing] = {"z": 5.0, "y": 5.0, "x": 5.0}
    files = ("training.tif", "training_groundtruth.tif", "testing.tif", "testing_groundtruth.tif")

    url = "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/"
    shape = (165, 768, 1024)

    def write(self, train: Path, test: Path, source: Path | None) -> Mapping[Path, str]:
        """Copy the four files, of which the second pair tests."""
        from mitoflow.data.importing import whole, write_excerpts

        paths = [source / name if source else _download(self.url + name) for name in self.files]
        training, testing = self._pair("training", *paths[:2]), self._pair("testing", *paths[2:])
        return write_excerpts({train: whole([training]), test: whole([testing])})

    def _pair(self, name: str, image: Path, mask: Path) -> Pair:
        from mitoflow.data.masks import MaskValues
        from mitoflow.data.pairs import Pair
        from mitoflow.io.tiff import open_mask, open_stack

        pair = Pair(name, open_stack(image), open_mask(mask))
        remedy = "take the file from the EPFL download"
        for stack in (pair.image, pair.mask):
            if stack.shape != self.shape or stack.dtype != "uint8":
                raise InputError(stack.path, f"{stack.dtype} of {stack.shape}", f"uint8 of {self.shape}", remedy)
        values = MaskValues(mask)
        for plane in pair.mask.slices():
            values.add(plane)
        if values.values != {0, 255}:
            raise InputError(mask, f"the values {sorted(values.values)}", "0 and 255", remedy)
        return pair


def _download(url: str) -> Path:
    """Return the path of a TIFF in the user's cache, which is downloaded where it is not there."""
    import pooch

    from mitoflow.data.download import fetch
    from mitoflow.io.tiff import open_mask

    path = fetch(url, Path(pooch.os_cache("mitoflow")))
    try:
        open_mask(path)
    except InputError as error:
        path.unlink()
        remedy = "try later, or give a local copy with --from"
        raise InputError(url, error.found, "a TIFF", remedy) from None
    return path
