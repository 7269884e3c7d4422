"""One part of each kind, a file each, so that a run loads only those that it names."""
