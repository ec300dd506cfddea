"""Batches, augmentation and the fit of one network; knows the patch store and the models."""
