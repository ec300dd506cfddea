"""Files of a project, archives of models, locks, provenance, and Dask clusters; knows nothing of images or networks."""
