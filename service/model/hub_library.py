"""Models of the Hugging Face hub, by its own library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from service.errors import ModelDownloadError, ModelNotFoundError

# Not every *.safetensors: some repositories hold the same weights once more in their maker's own layout.
HUB_PATTERNS = ["model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
HUB_IGNORED = "*/*"  # patterns match across folders, but a model lies at the top


def from_hub(repo: str, revision: str | None, file: str | None, cache_dir: Path) -> Path:
    """The snapshot's directory, or the one `file`. Raises ModelNotFoundError or ModelDownloadError."""
    cache = cache_dir / "hub"
    if file is not None:
        with hub_errors(f"{repo}:{file}"):
            return Path(hf_hub_download(repo, file, cache_dir=cache))
    with hub_errors(f"{repo}@{revision}" if revision else repo):
        snapshot = snapshot_download(
            repo, revision=revision, cache_dir=cache, allow_patterns=HUB_PATTERNS, ignore_patterns=HUB_IGNORED
        )
        return Path(snapshot)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn the hub library's exceptions into ours; `what` is the model as the user wrote it."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelDownloadError(f"{what} needs its licence accepted on the hub and a token in HF_TOKEN.") from error
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError too, but it means: not cached and no connection
        raise ModelDownloadError(f"{what} is not in the cache and the hub cannot be reached.") from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(f"The hub has no {what}, or it is private and HF_TOKEN gives no access.") from error
    except Exception as error:  # the HTTP library below the hub's, and so its exceptions, changes between versions
        raise ModelDownloadError(f"Downloading {what} from the hub failed: {error}.") from error
