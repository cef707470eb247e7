"""One file per on-disk layout."""
