"""The costs of a run: measured times, planned memory and bytes between devices."""
