"""Revisions of a model on the Hugging Face hub: "hf://EleutherAI/pythia-14m@step1000", fetched when they are read."""

from __future__ import annotations

import fnmatch
import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory.checkpoints.reading import MODEL_FILES, model_file

SCHEME = "hf://"


@dataclass(frozen=True)
class Revision:
    """One revision of a repository.

    Attributes:
        repository: "owner/name".
        name: Branch, tag or commit.
    """

    repository: str
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}@{self.name}"

    @property
    def parent(self) -> Revision:
        """The repository, as far as a name is asked for: numbers in it are no steps."""
        return Revision("", "")

    def fetched(self) -> Path:
        """The folder with the model's files, from the hub's cache on this machine or from the hub.

        Raises:
            TrajectoryError: They cannot be fetched.
        """
        hub = _hub()
        for kind in (".safetensors", ".bin"):  # a repository may hold both
            wanted = [*(name for name in MODEL_FILES if kind in name), f"*-of-*{kind}"]
            try:
                folder = Path(hub.snapshot_download(self.repository, revision=self.name, allow_patterns=wanted))
            except Exception as error:  # whatever network, cache or hub give
                reason = " ".join(str(error).split())[:200]
                raise TrajectoryError(
                    f"cannot fetch {self} ({type(error).__name__}: {reason}): see to the name and the network."
                ) from error
            if model_file(folder) is not None:
                return folder
        raise TrajectoryError(f"{self} has no model file such as model.safetensors: give another revision, or load=.")


def revisions(text: str) -> list[Revision]:
    """The revisions that "hf://owner/name@revision" means; a revision with * or ? is looked up on the hub.

    Raises:
        InputError: It is written otherwise, or huggingface_hub is not installed.
        TrajectoryError: The hub does not answer, or none matches.
    """
    repository, at, name = text.removeprefix(SCHEME).partition("@")
    if not (at and name and repository.count("/") == 1 and all(repository.split("/"))):
        raise InputError(f"{text!r} names no revision: write {SCHEME}owner/name@revision, or @step* for several.")
    hub = _hub()
    if not glob.has_magic(name):
        return [Revision(repository, name)]
    try:
        refs: Any = hub.HfApi().list_repo_refs(repository)
    except Exception as error:
        raise TrajectoryError(
            f"cannot list the revisions of {repository} ({type(error).__name__}: {error}): name them one by one."
        ) from error
    names = dict.fromkeys(ref.name for ref in (*refs.branches, *refs.tags))
    found = [Revision(repository, ref) for ref in names if fnmatch.fnmatchcase(ref, name)]
    if not found:
        raise TrajectoryError(f"no revision of {repository} matches {name}: there are {', '.join(list(names)[:8])}.")
    return found


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError("revisions on the hub need huggingface_hub: pip install transformers.") from None
    return huggingface_hub
