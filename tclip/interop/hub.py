"""Model folders by path or by Hugging Face hub id."""

import os
from pathlib import Path

# What is read of a model: never pickles, never code, nothing of a subfolder.
PATTERNS = ["*.json", "*.safetensors", "*.txt"]
SUBFOLDERS = ["*/*"]

# Of open_clip's names of models.
HUB, LOCAL = "hf-hub:", "local-dir:"


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a model: an existing one, or a hub model in huggingface_hub's cache.

    Args:
      name_or_path: a folder, or "owner/name" or "owner/name@revision" on the hub, also with the
        prefixes of open_clip. A hub model is downloaded unless the cache has it; HF_HOME,
        HF_HUB_OFFLINE and HF_TOKEN count as usual.

    Raises:
      FileNotFoundError: the folder is absent, or the hub model is neither cached nor to be had.
    """
    given = str(name_or_path)
    is_hub, is_local = given.startswith(HUB), given.startswith(LOCAL)
    name = given.removeprefix(HUB if is_hub else LOCAL)
    folder = Path(os.path.expanduser(name))
    if folder.is_dir() and not is_hub:
        return folder
    repo_id, _, revision = name.partition("@")
    if folder.exists() and not is_hub:
        raise FileNotFoundError(f"{folder} is a file; give the folder that holds it")
    if (
        is_local
        or name.startswith((".", "/", "~"))
        or repo_id.count("/") != 1
        or "" in repo_id.split("/")
    ):
        raise FileNotFoundError(
            f"no model folder at {name}: train or export it first, or give owner/name of the hub"
        )
    return _cached(repo_id, revision or None)


def _cached(repo_id: str, revision: str | None) -> Path:
    # Here, as it takes long to import and most models are folders.
    from huggingface_hub import snapshot_download

    command = f"hf download {repo_id}" + (f" --revision {revision}" if revision else "")
    patterns = " ".join(f"--include '{pattern}'" for pattern in PATTERNS)
    remedy = f"where there is a network, run: {command} {patterns}; then copy its cache (HF_HOME)"
    try:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=PATTERNS, ignore_patterns=SUBFOLDERS
        )
    # Beside OSErrors the library raises ValueErrors (a malformed id) and those of its HTTP client.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise FileNotFoundError(
            f"{repo_id} is no folder here, and the hub model could not be had ({reason}); {remedy} "
            "here"
        ) from None
    if not any(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(
            f"the cached copy of {repo_id} has no *.safetensors; {remedy} here. If there are only "
            "pickled weights (.bin), which can run code, convert them on a machine that may: "
            "model.save_pretrained(folder)"
        )
    return Path(folder)
