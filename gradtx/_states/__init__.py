"""States on disk, in other versions, and from other libraries."""
