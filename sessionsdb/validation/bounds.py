"""The bounds of arguments, as numbers."""

from __future__ import annotations

MAX_SESSION_ID_CHARACTERS = 512
MAX_NAMESPACE_CHARACTERS = 64
MAX_NAME_CHARACTERS = 4_096
MAX_KEY_CHARACTERS = 512
MAX_KIND_CHARACTERS = 64
MAX_MESSAGE_KEY_BYTES = 256
"""A key of a message is in one index entry with a namespace, at most 256 bytes, and a session id of
at most 2,048. PostgreSQL limits an entry to 2,704 bytes."""
MAX_SCHEDULE_NAME_CHARACTERS = 64
"""The name of a schedule is in one index entry with a namespace and a session id, like the key of a
message."""
MAX_ZONE_CHARACTERS = 64
MAX_CRON_CHARACTERS = 256
MAX_TAIL = 1_000
MAX_STATE_KEY_CHARACTERS = 256
MAX_SCHEMA_BYTES = 63
"""PostgreSQL cuts a longer name."""
MAX_SYSTEM_CHARACTERS = 1_048_576
MAX_REASON_CHARACTERS = 10_000
MAX_METADATA_BYTES = 262_144
"""The maximum of metadata as JSON in UTF-8."""
MAX_TOOLS = 10_000
MAX_TOOLS_CHARACTERS = 262_144
"""The maximum of all names of a list of tools together."""
MAX_NAMESPACES = 10_000
MAX_METADATA_DEPTH = 64
MAX_INTEGER = 2**63 - 1
MAX_TOKENS = 10**12
"""The maximum of tokens in one reply. A larger number is a mistake, and the reports could not
store sums of such numbers."""
MAX_SECONDS = 1e10
"""About 300 years. Both databases can store the time that is this far from now."""
