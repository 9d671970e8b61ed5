"""Networks as folders and repositories of the Hugging Face hub."""

from pathlib import Path
from typing import Any

from typing_extensions import Self


class Pretrained:
    """What lets a network be saved, loaded and shared; see `eenet.hub` for what is written.

    Attributes:
        points: Operating points or policies by name, which are saved as they are when the network is.
    """

    points: dict[str, Any]

    def save_pretrained(self, folder: str | Path, **options: Any) -> str | None:
        """Write weights, configuration, points and a model card.

        Args:
            folder: Where to; files that are there are replaced.
            options: Of `huggingface_hub.ModelHubMixin.save_pretrained`, such as `push_to_hub`.

        Raises:
            UserError: The network has no form in a file, or another one than it has now.
        """
        from eenet.hub import Saved

        return Saved(self).save_pretrained(folder, **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """The network of a folder or of a repository of the hub, in evaluation mode.

        Args:
            name: Folder, or `owner/name`.
            options: Of `huggingface_hub.ModelHubMixin.from_pretrained`, such as `revision` and `token`.

        Raises:
            UserError: There is none, it cannot be reached, or it names classes that are not trusted.
        """
        from eenet.hub import fetch

        return fetch(str(name), cls, options)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes; returns the address.

        Args:
            name: Repository, `owner/name`.
            options: Of `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private` and `token`.
        """
        from eenet.hub import Saved

        return str(Saved(self).push_to_hub(name, **options))
