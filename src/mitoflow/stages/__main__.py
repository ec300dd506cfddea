"""Run a stage of ``dvc.yaml`` as a process: ``python -m mitoflow.stages NAME``."""

import sys
from importlib import import_module

from mitoflow.core import process
from mitoflow.errors import InputError

LIBRARIES = 1 << 30  # bytes of address space for numpy, MLflow and their buffers
KERAS = 4 << 30  # the same with TensorFlow, which aborts without a word where it gets less
STAGES = {"validate": LIBRARIES, "patch": LIBRARIES, "tune": KERAS, "train": KERAS, "evaluate": KERAS}


def main() -> None:
    name = " ".join(sys.argv[1:])
    if name not in STAGES:
        raise InputError("python -m mitoflow.stages", name or "no stage", f"one of {', '.join(STAGES)}", "name it")
    process.require_memory(STAGES[name])
    process.reserve_blas()
    # Only now: a stage loads its libraries when it is imported; what is wrong in params.yaml is said before.
    import_module("mitoflow.config.params").load()
    import_module(f"mitoflow.stages.{name}").main()


if __name__ == "__main__":
    process.run_stage(main)
