"""The `archsearch` command: parses, calls the library, prints."""
