"""How operations reach a database: engines, runners, batching, wake-ups and migrations."""
