"""Datasets: import, masks and their pairing, checks, the patch store, the phantom, and what images look like."""
