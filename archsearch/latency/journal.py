"""Rows are written down one by one while a table is measured, so that a process that dies loses
no more than the case it was on; and that case is known."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from dataclasses import fields
from dataclasses import replace
from pathlib import Path
from typing import Any

from archsearch.latency.cases import Case
from archsearch.profiles import Table
from archsearch.profiles import make_rows
from archsearch.profiles import merge
from archsearch.profiles import save_table
from archsearch.profiles.store import read_table

JOURNAL_FILE = "journal.jsonl"
SAVE_EVERY_S = 10.0
# what a case's row says after the process died on it; the second time it is left alone
DIED = "the sweep died on this case"
DIED_AGAIN = "the sweep died on this case twice"
CASE = [field.name for field in fields(Case)]


class Recorder:
    """The table as it grows: every row in the journal at once, all of them in the table now and
    then."""

    def __init__(self, table: Table, folder: Path, session: int) -> None:
        self.table, self._folder, self._session = table, folder, session
        self._began_at = time.monotonic()
        self._new: dict[Case, dict[str, Any]] = {}
        self._latest: dict[Case, dict[str, Any]] = {}
        # first of all: a folder that cannot be written is found before any work
        self.save()

    def row(self, case: Case) -> dict[str, Any]:
        """The row that was last added for a case."""
        return self._latest[case]

    def begin(self, case: Case) -> None:
        """Note the case that is measured next."""
        self._write({"begin": asdict(case)})

    def add(self, case: Case, row: dict[str, Any]) -> None:
        """Keep a row, in place of an earlier one of that case."""
        row = {**row, "session": self._session}
        self._new[case] = self._latest[case] = row
        self._write({"row": row})
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Bring the rows into the table; the journal begins anew."""
        rows = merge(self.table.rows, make_rows(list(self._new.values())))
        took = {"seconds": round(time.monotonic() - self._began_at, 1)}
        sessions = [
            entry | took if entry["id"] == self._session else entry
            for entry in self.table.meta.get("sessions", [])
        ]
        meta = {**self.table.meta, "sessions": sessions}
        self.table = save_table(replace(self.table, rows=rows, meta=meta), self._folder)
        (self._folder / JOURNAL_FILE).unlink(missing_ok=True)
        self._new.clear()
        self._saved_at = time.monotonic()

    def _write(self, entry: dict[str, Any]) -> None:
        with (self._folder / JOURNAL_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def blank_row(case: Case) -> dict[str, Any]:
    """The row of a case of which nothing is known yet."""
    return {
        **asdict(case),
        "backend": "",
        "repeats": 0,
        "stack": 0,
        "stack_bytes": 0,
        "used_cuda_graph": False,
        "error": "",
    }


def recover(folder: Path) -> None:
    """Bring what a process that died left in the journal of `folder` into its table."""
    journal = folder / JOURNAL_FILE
    if not journal.exists():
        return
    table, _ = read_table(folder)
    rows: dict[Case, dict[str, Any]] = {}
    begun: Case | None = None
    for entry in _entries(journal):
        if "begin" in entry:
            begun = Case(**entry["begin"])
        else:
            case = Case(*(entry["row"][name] for name in CASE))
            rows[case], begun = entry["row"], None
    if begun is not None and begun not in rows:
        number = max((entry["id"] for entry in table.meta.get("sessions", [])), default=0)
        rows[begun] = {**blank_row(begun), "error": died_on(table, begun), "session": number}
    merged = merge(table.rows, make_rows(list(rows.values())))
    save_table(replace(table, rows=merged), folder)
    journal.unlink()


def died_on(table: Table, case: Case) -> str:
    """What the row of a case says on which the process died, once or once more."""
    return DIED_AGAIN if _error_of(table, case).startswith(DIED) else DIED


def _entries(journal: Path) -> list[dict[str, Any]]:
    entries = []
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            # the process died while it wrote its last line
            break
    return entries


def _error_of(table: Table, case: Case) -> str:
    rows = table.rows
    for name, value in asdict(case).items():
        rows = rows[rows[name] == value]
    return str(rows["error"].iloc[0]) if len(rows) else ""
