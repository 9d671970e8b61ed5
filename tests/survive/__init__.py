"""Kills, strangers' folders and wrong files: `python -m tests.survive.score` counts what goes wrong."""
