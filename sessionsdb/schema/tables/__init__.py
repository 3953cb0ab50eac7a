"""The tables, one file for each subject. ``sessionsdb.schema`` has their names."""
