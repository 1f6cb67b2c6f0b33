"""Search over many photos: an index on disk, exact comparison, re-ranking, and groups of duplicates."""

from openblip.search.found import Changes, Found, Status
from openblip.search.index import Index

__all__ = ["Changes", "Found", "Index", "Status"]
