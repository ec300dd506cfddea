"""What is measured, against what, in one run: one file a question; `make bench` runs them all."""
