"""Says on every page which version of eenet it describes, and lets the search from the disk fetch nothing."""

from typing import Any

from eenet import __version__

FETCHED = "https://unpkg.com/iframe-worker/shim"
"""What the theme's pages would fetch, to start the search."""


def on_config(config: Any) -> Any:
    """Put the version into the foot of the pages."""
    config["copyright"] = f"eenet {__version__}, Apache-2.0"
    return config


def on_post_page(output: str, page: Any, **kwargs: Any) -> str:
    """Start it by a script of the site's own."""
    return output.replace(FETCHED, "../" * page.url.count("/") + "js/worker.js")
