"""What is measured, each group a file or a folder: ``python -m benchmarks``."""
