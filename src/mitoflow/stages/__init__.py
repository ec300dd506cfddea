"""The stages of ``dvc.yaml``, one file each; `python -m mitoflow.stages NAME` runs one as a process."""
