"""One search from its config to its front: what `archsearch evolve` calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from optuna.exceptions import StorageInternalError

from archsearch.search.config import RunConfig
from archsearch.search.evaluate import Evaluator
from archsearch.search.executors import Executor
from archsearch.search.executors import in_process
from archsearch.search.files import exclusive
from archsearch.search.finish import finish
from archsearch.search.finish import save_untimed
from archsearch.search.loop import Search
from archsearch.search.loop import counted
from archsearch.search.loop import encode_seeds
from archsearch.search.observer import Observer
from archsearch.search.records import recorded_rows
from archsearch.search.run import CONFIG
from archsearch.search.run import Run
from archsearch.search.run import config_to_go_on
from archsearch.search.run import open_run
from archsearch.search.screen import Screen
from archsearch.search.screen import check_limits


def evolve(
    config: RunConfig,
    *,
    trials: int,
    evaluator: Evaluator,
    root: Path = Path("runs"),
    storage: str | None = None,
    observer: Observer | None = None,
    execute: Executor = in_process,
    attach: Callable[[Path], object] | None = None,
) -> Run:
    """Search until `trials` candidates (in all) were trained, then time the front.

    Called again with the same config it goes on where it was. `attach` writes what else belongs
    into a new run's folder. KeyboardInterrupt passes through after the front so far is written.
    Raises ValueError for a config that is not the folder's, for limits that no candidate keeps
    and for a run that another process works on, OSError where the folder cannot be written.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1; got {trials}")
    if (root / config.name).exists():
        # first: of another run's table nothing can be said about these settings
        config_to_go_on(root / config.name, config)
    space = config.make_space()
    screen = Screen(config, space, evaluator.costs)
    seeds = encode_seeds(config, space)
    check_limits(screen, config, space)
    run = open_run(config, root=root, storage=storage, attach=attach)
    search = Search(
        run,
        space,
        screen=screen,
        seeds=seeds,
        evaluator=evaluator,
        observer=observer or Observer(),
        execute=execute,
    )
    try:
        with exclusive(run.path / CONFIG, f"the run {run.path}"):
            return _search(search, trials)
    except StorageInternalError as error:
        cause = getattr(error.__cause__, "orig", None) or error
        raise OSError(f"cannot write the study of {run.path}: {cause}") from None


def _search(search: Search, trials: int) -> Run:
    run = search.run
    behind = counted(recorded_rows(run.study))
    run.log("start", trials=trials, counted=behind)
    search.observer.start(run.config, trials=trials, counted=behind)
    try:
        reason = search.fill(trials)
        if reason is not None:
            run.log("stopped", reason=reason)
            search.observer.stopped(reason)
        winner = finish(search)
    except KeyboardInterrupt:
        _keep(run)
        raise
    run.log("done", best=None if winner is None else winner["id"])
    search.observer.done(winner)
    return run


def _keep(run: Run) -> None:
    # the candidate in flight, which is proposed again
    run.log("interrupted", number=len(recorded_rows(run.study)))
    # a front that was timed already says more than one that was not
    if run.front["measured_us_p50"].isna().all():
        save_untimed(run)
