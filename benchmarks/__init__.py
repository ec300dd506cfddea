"""Benchmarks against baselines, one file for each question; `make bench` runs them all."""
