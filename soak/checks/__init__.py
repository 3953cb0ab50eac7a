"""The promises, each read from journals and tables by code that knows nothing of the package."""
