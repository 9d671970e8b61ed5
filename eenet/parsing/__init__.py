"""Configurations and arguments: where they are shipped, where a key was given, and how a mistake in one is refused."""
