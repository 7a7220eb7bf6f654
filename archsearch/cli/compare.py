"""`archsearch measure --compare`: the Nemotron-Flash paper's Table 6, measured here."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

from archsearch.cli import terminal

if TYPE_CHECKING:
    from archsearch.latency.measured import Row
    from archsearch.latency.question import Part
    from archsearch.latency.question import Question
    from archsearch.latency.table6 import Line
    from archsearch.space import ArchSpec

FOLDER = Path("experiments/table6")
FIGURE_FILE = "comparison.png"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was typed."""

    models: str | None
    tokens: int
    input_tokens: int
    output_tokens: int
    max_batch: int | None
    dtype: str | None
    device: str | None


def run(request: Request, out: Path, *, as_json: bool) -> None:
    """Measure what is missing, write everything into a folder below `out`, print it."""
    from archsearch.cli.device import chosen
    from archsearch.latency.provenance import measured_hardware

    specs, device = _models(request.models), chosen(request.device)
    question = _question(request, device)
    folder = out / measured_hardware(device).slug
    try:
        _measure(specs, question, folder, device, quiet=as_json)
    except (OSError, KeyboardInterrupt):
        # what there is shall be in the files
        _write(specs, question, folder, device)
        raise
    found, report, where = _write(specs, question, folder, device)
    if as_json:
        terminal.print_json(report)
    else:
        _print(found, report)
        terminal.console().print(where, markup=False, soft_wrap=True)


def _write(
    specs: Sequence[ArchSpec], question: Question, folder: Path, device: str
) -> tuple[list[Line], dict[str, Any], str]:
    """Everything that was measured, and where it is now."""
    from archsearch.latency.compare import valid_rows
    from archsearch.latency.table6 import summarise
    from archsearch.latency.table6 import write_results

    found, report = summarise(specs, question, valid_rows(folder, question, device), device=device)
    write_results(found, report, folder)
    return found, report, _draw(found, report, folder)


def _models(text: str | None) -> list[ArchSpec]:
    from archsearch.latency.table6 import label
    from archsearch.latency.table6 import published
    from archsearch.space import load

    if text is None:
        return [load(name) for name in published()]
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise ValueError(f"--models must be presets, patterns or files with commas; got {text!r}")
    specs: dict[str, ArchSpec] = {}
    for spec in map(load, words):
        if spec.id in specs:
            raise ValueError(f"--models has {label(spec)!r} twice")
        specs[spec.id] = spec
    return list(specs.values())


def _question(request: Request, device: str) -> Question:
    from archsearch.cli.device import usual_dtype
    from archsearch.latency.largest_batch import CPU_ROWS
    from archsearch.latency.question import Question

    on_gpu = device.startswith("cuda")
    return Question(
        tokens=request.tokens,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        max_batch=CPU_ROWS if request.max_batch is None and not on_gpu else request.max_batch,
        dtype=request.dtype or usual_dtype(device),
    )


def _measure(
    specs: Sequence[ArchSpec], question: Question, folder: Path, device: str, *, quiet: bool
) -> None:
    from archsearch.latency.compare import measure_all
    from archsearch.latency.table6 import label
    from archsearch.latency.table6 import lines

    console = terminal.console()
    width = max(len(label(spec)) for spec in specs)

    def tell(spec: ArchSpec, rows: list[Row]) -> None:
        (line,) = lines([spec], {(spec.id, row["part"]): row for row in rows}, question)
        console.print(f"{label(spec):<{width}}  {_said(line)}", markup=False, soft_wrap=True)

    with _status(quiet) as show:
        measure_all(
            specs,
            question,
            folder,
            device=device,
            on_part=lambda spec, part: show(_doing(specs, spec, part)),
            on_spec=None if quiet else tell,
        )


def _doing(specs: Sequence[ArchSpec], spec: ArchSpec, part: Part) -> str:
    from archsearch.latency.table6 import label

    number = [one.id for one in specs].index(spec.id) + 1
    return f"{label(spec)} ({number} of {len(specs)}): {part}"


@contextmanager
def _status(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Shows what is being measured, on a terminal."""
    console = terminal.console()
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("measuring what the GPU reaches") as status:
        yield status.update


def _said(line: Line) -> str:
    """One model in one line, as far as it was measured now."""
    parts = []
    if line.latency_s is not None:
        parts.append(f"{_number(line.latency_s)} s at batch 1")
    if line.prefill_s is not None:
        parts.append(f"prefill {_number(line.prefill_s)} s")
    if line.tokens_per_s is not None:
        parts.append(f"{_number(line.tokens_per_s)} tokens/s at batch {line.batch}")
    return "; ".join([*parts, *line.errors])


def _print(found: Sequence[Line], report: dict[str, Any]) -> None:
    console, question, how = terminal.console(), report["question"], report["how"]
    console.print()
    console.print(f"on {report['hardware']['name']}, {question['dtype']}", soft_wrap=True)
    console.print()
    console.print(_latencies(found))
    console.print(how["latency"], style="dim")
    console.print()
    console.print(_throughputs(found))
    console.print(how["throughput"], style="dim")
    console.print()
    for name in ("floor", "NF"):
        console.print(f"{name}: {how[name]}", style="dim")
    paper = report["paper"]
    console.print(f"paper: {paper['source']}, on an {paper['hardware']}.", style="dim")
    for line in found:
        for sentence in line.errors:
            console.print(f"{line.name}: {sentence}", markup=False, soft_wrap=True)


def _latencies(found: Sequence[Line]) -> Any:
    table = terminal.plain_table("latency", "parameters", "seconds", "floor", "NF", "paper", "NF")
    for line in found:
        table.add_row(
            line.name,
            terminal.count(line.parameters),
            _number(line.latency_s),
            _percent(line.latency_floor_share),
            _times(line.latency_times),
            _number(line.paper_latency_s),
            _times(line.paper_latency_times),
        )
    return table


def _throughputs(found: Sequence[Line]) -> Any:
    names = ("batch", "tok/s", "floor", "NF", "+prefill", "NF", "paper", "NF")
    table = terminal.plain_table("throughput", *names)
    for line in found:
        table.add_row(
            line.name,
            "–" if line.batch is None else str(line.batch),
            _number(line.tokens_per_s),
            _percent(line.floor_share),
            _times(line.throughput_times),
            _number(line.total_tokens_per_s),
            _times(line.total_times),
            _number(line.paper_tokens_per_s),
            _times(line.paper_throughput_times),
        )
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:#.3g}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}×" if value >= 10 else f"{value:.2f}×"


def _draw(found: Sequence[Line], report: dict[str, Any], folder: Path) -> str:
    """Draw the figure; without matplotlib the results stand alone."""
    try:
        from archsearch.report.figures.base import png
        from archsearch.report.figures.table6 import plot_comparison
    except ImportError as error:
        return f"results in {folder}; no figure, since {error}: the same command draws it later"
    figure = plot_comparison(found, report["hardware"]["name"], report["paper"]["hardware"])
    (folder / FIGURE_FILE).write_bytes(png(figure))
    return f"results and figure in {folder}"
