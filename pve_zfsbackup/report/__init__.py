"""From what was found or done to tables for people and JSON for machines. Pure; the JSON is a contract."""
