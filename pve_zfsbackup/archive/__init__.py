"""The offsite format (docs/archive-format.md): manifests, their chain, segments. No transport, no processes."""
