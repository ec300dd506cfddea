"""What BiaPy, nnU-Net and mitoflow make of the same slices in the same time: `python -m benchmarks peers`.

Each trains on the same slices for the same wall-clock time on two cores of a processor, with its own defaults for such
data, and predicts the same others; one function scores all of them:

- vnc: slices 0 to 11 train, 14 to 19 test;
- epfl: every eighth slice of the training volume trains, the whole test volume tests.

The budget is the time of the command that trains, from its start to its end, imports included. How each tool is held to
it is in the docstring of its module, `biapy`, `nnunet` and `own`. Not part of it, and for no tool: installation, the
preparation of the data, the run that measures the length of an epoch, and prediction. Peak memory is that of all
processes of a tool together, over all its commands.

BiaPy and nnU-Net are installed from the package index into virtual environments in the folder `--environments`, in the
versions of `biapy.txt` and `nnunet.txt`; PyTorch for the processor alone is enough, where pip is set up to find it. No
GPU is used. Measure on a machine of two cores that does nothing else; where there are more, all processes are bound to
two, but some libraries count all cores for their threads.

Results are lines of JSON. What is there is not done again. What was interrupted starts again, since the time of a
training cannot be divided. A tool that cannot be run has a line with the reason; remove it to try again.
"""

from __future__ import annotations

from benchmarks.peers.protocol import main

__all__ = ["main"]
