"""The benchmarks, each group a file or a folder. Run ``python -m benchmarks``."""
