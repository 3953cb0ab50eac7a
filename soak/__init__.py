"""The soak: many processes work on one database while a nemesis injects faults.

Run as ``python -m soak``. ``README.md`` shows the parts.
"""
