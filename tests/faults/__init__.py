"""Kills, damage and full disks: what docs/guarantees.md promises, tried out on the commands."""
