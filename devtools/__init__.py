"""Tools that the tests, the benchmarks and the soak share. Not part of the installed package."""
