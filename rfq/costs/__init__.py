"""What a run costs: measured times, planned memory and bytes between devices."""
