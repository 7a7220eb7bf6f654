"""What a run says in words: what was searched, what was found, how it stands to the baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from archsearch.report import view

if TYPE_CHECKING:
    from archsearch.search import Run


def searched(run: Run) -> str:
    """One sentence: the space, the candidates, the target."""
    rows = view.trained(run)
    used = sorted({code for _, row in rows.iterrows() for code in view.codes(row)})
    config = run.config
    sentence = (
        f"The search over the space {config.space} ({config.sampler}) recorded "
        f"{len(run.candidates)} candidates and trained {rows['id'].nunique()} distinct "
        f"architectures"
    )
    if used:
        sentence += f" made of {len(used)} operators ({', '.join(used)})"
    sentence += f", each for {config.recipe.steps} steps on {config.data}"
    if config.target_latency_ms:
        sentence += (
            f", for at most {config.target_latency_ms:g} ms per token at batch {config.batch} "
            f"and context {config.context}"
        )
    return sentence + "."


def found(run: Run) -> str:
    """One sentence: the winner, its loss and its latency."""
    winner = view.best(run)
    if winner is None:
        return "There is no front yet: the run has not come to its end."
    sentence = (
        f"{len(view.members(run))} architectures are on the front; the best, "
        f"#{winner['number']:.0f}, reaches {winner['loss']:.3f} nats per token "
        f"({winner['bits_per_byte']:.3f} bits per byte) with "
        f"{winner['parameters'] / 1e6:.2f} M parameters at "
    )
    predicted = f"{winner['latency_us'] / 1e3:.3f} ms per token predicted"
    if not view.was_timed(winner):
        return sentence + predicted + " and not re-measured."
    return (
        sentence
        + f"{winner['measured_us_p50'] / 1e3:.3f} ms per token measured ({predicted}, "
        + f"{signed(gap(winner))} measured against predicted)."
    )


def verdict(run: Run) -> str:
    """One sentence: which baselines the winner beats and which it does not."""
    pairs = view.comparisons(run)
    if not pairs:
        return "No baseline was trained beside it, so nothing is said about what it beats."
    beaten = [_by(pair) for pair in pairs if pair.loss_difference < 0]
    unbeaten = [_by(pair) for pair in pairs if pair.loss_difference >= 0]
    said = []
    if beaten:
        said.append(f"has a lower held-out loss than {_and(beaten)}")
    if unbeaten:
        said.append(f"does not beat {_and(unbeaten)}")
    return f"Trained the same way, the best {', but '.join(said)}."


def comparison(pair: view.Comparison) -> str:
    """What one comparison shows, with what limits it."""
    relation = "lower" if pair.loss_difference < 0 else "higher"
    sentence = (
        f"{pair.label}: {relation} by {abs(pair.loss_difference):.3f} nats per token "
        f"({abs(pair.bits_difference):.3f} bits per byte), at "
        f"{pair.latency_ratio:.2f} times its {'measured' if pair.both_timed else 'predicted'} "
        f"latency"
    )
    if pair.same_latency:
        return sentence + "."
    return sentence + ": not the same latency, so this is not like for like."


def cautions(run: Run) -> list[str]:
    """What a reader must know before relying on the numbers."""
    said = []
    timed = [row for _, row in view.shown(run).iterrows() if view.was_timed(row)]
    if timed:
        gaps = sorted(gap(row) for row in timed)
        said.append(
            f"Measured medians lie between {signed(gaps[0])} and {signed(gaps[-1])} of what the "
            f"latency table predicted, over {len(timed)} re-measured models."
        )
    target = run.config.target_latency_ms
    late = [row for row in timed if target and row["measured_us_p50"] > 1e3 * target]
    if late:
        names = ", ".join(view.name(row) for row in late)
        said.append(f"Slower than the target of {target:g} ms when measured: {names}.")
    rows = view.trained(run)
    if len(rows) and rows["id"].is_unique:
        said.append(
            "Every loss comes from one short training with one seed: differences of the size "
            "that another seed would make are no finding."
        )
    return said


def gap(row: pd.Series) -> float:
    """Measured median against prediction, as a fraction (0.1: ten percent slower)."""
    return float(row["measured_us_p50"] / row["latency_us"] - 1)


def signed(value: float, form: str = "+.1%") -> str:
    """A number with its sign, and a minus as long as the plus."""
    return format(value, form).replace("-", "−")


def _by(pair: view.Comparison) -> str:
    note = "" if pair.same_latency else ", at another latency"
    return f"{pair.label} ({signed(pair.loss_difference, '+.3f')} nats per token{note})"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
