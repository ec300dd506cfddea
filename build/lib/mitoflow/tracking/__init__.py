"""Runs and their journal, delivery to MLflow, and the registry: versions, champion, gate and pretrained models."""
