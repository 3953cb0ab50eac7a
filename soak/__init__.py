"""Many processes work on one database while a nemesis does to them what production does.

Clients and workers write what they asked and what they were told to journals. When the faults have
stopped and everything has drained, a checker that shares no code with the package reads journals
and tables, and says what was promised and not kept. Run as ``python -m soak``.
"""
