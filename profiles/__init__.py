"""Latency tables: measured rows with provenance, checked on the way in and out. No torch."""

if __name__ != "archsearch.profiles":
    raise ImportError("import archsearch.profiles, not profiles: the folder is linked there")

from archsearch.profiles.merge import join
from archsearch.profiles.schema import KEY
from archsearch.profiles.schema import canonical_json
from archsearch.profiles.schema import empty_rows
from archsearch.profiles.schema import make_rows
from archsearch.profiles.sources import source_hashes
from archsearch.profiles.sources import source_name
from archsearch.profiles.store import Table
from archsearch.profiles.store import cache_root
from archsearch.profiles.store import list_tables
from archsearch.profiles.store import load_table
from archsearch.profiles.store import merge
from archsearch.profiles.store import save_table

__all__ = [
    "KEY",
    "Table",
    "cache_root",
    "canonical_json",
    "empty_rows",
    "join",
    "list_tables",
    "load_table",
    "make_rows",
    "merge",
    "save_table",
    "source_hashes",
    "source_name",
]
