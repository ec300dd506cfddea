"""Pixels in and out: TIFF, OME-TIFF, OME-Zarr, voxel sizes and resampling; knows nothing of mitochondria."""
