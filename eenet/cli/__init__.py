"""The `eenet` command."""
