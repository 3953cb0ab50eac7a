"""Whether a commit to a SQLite file concerns idle workers."""

WORK_MARK = """
SELECT EXISTS (SELECT 1 FROM mailboxes WHERE ready_at IS NOT NULL),
       (SELECT min(wake_at) FROM mailboxes WHERE wake_at IS NOT NULL),
       (SELECT count(*) FROM mailboxes WHERE owner IS NOT NULL),
       (SELECT min(try_at) FROM schedules)
"""
"""Whether a session is ready, the end of the first backoff, the number of leases, and the moment
at which the first scheduled message is due.

A worker that runs until all is done waits for the leases of others. Each column is read from an
index that has entries for such mailboxes only.
"""
