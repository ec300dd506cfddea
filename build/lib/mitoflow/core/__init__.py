"""Files of a project, locks, provenance, and Dask clusters; knows nothing of images or models."""
