"""The audit, step by step, as plain functions on one shard or one table; nothing here knows Ray."""
