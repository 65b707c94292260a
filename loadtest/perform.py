"""What a command does once its scenario is known: run under Ctrl-C and the live view, write files, say how it ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from loadtest.experiment import Observer, Where, run_experiment
from loadtest.options import RunOptions
from loadtest.records import Record, write_csv
from loadtest.report import render_html
from loadtest.results import RunResult
from loadtest.schedule import Schedule
from loadtest.scrape import Snapshot
from loadtest.show import show_result, step_line
from loadtest.spec import Scenario, Slo
from loadtest.sweep import SEARCHED, Bounds, Hopeless, SweepResult, Trial, sweep
from loadtest.watch import Watch
from loadtest.worker import Progress

EXIT_HELD, EXIT_BROKEN, EXIT_INVALID = 0, 1, 3  # 2 is click's: the command cannot be carried out


def exit_code(result: RunResult) -> int:
    """0 only for a valid, whole run whose SLO (if one was given) held."""
    if not result.validity.is_valid or result.validity.is_partial:
        return EXIT_INVALID
    return EXIT_HELD if result.goodput is None or result.goodput.is_held else EXIT_BROKEN


def perform_run(options: RunOptions, scenario: Scenario, console: Console) -> int:
    """One run; returns the exit code."""
    options.check_outputs()
    result, records = asyncio.run(_watched(options, scenario, options.where(scenario), console))
    write_outputs(options, result, records)
    show_result(result, console)
    return exit_code(result)


def write_outputs(options: RunOptions, result: RunResult, records: Sequence[Record]) -> None:
    """The files asked for."""
    if options.json_path is not None:
        options.json_path.write_text(result.model_dump_json(indent=1) + "\n")
    if options.csv_path is not None:
        write_csv(records, options.csv_path)
    if options.html_path is not None:
        options.html_path.write_text(render_html(result))


async def _watched(
    options: RunOptions, scenario: Scenario, where: Where, console: Console
) -> tuple[RunResult, list[Record]]:
    stop = asyncio.Event()
    with _stop_on_signal(stop), Watch(scenario, console) as watch:
        return await run_experiment(scenario, where, num_workers=options.workers, observer=watch, stop=stop)


@contextmanager
def _stop_on_signal(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the run and goes on to the report; a second one ends the program."""
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        stop.set()
        for number in caught:
            loop.remove_signal_handler(number)

    for number in caught:
        loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


class _Both(Observer):
    """Shows a trial of a sweep and ends it when it is hopeless."""

    def __init__(self, watch: Watch, hopeless: Hopeless, warmup_s: float) -> None:
        self._watch = watch
        self._hopeless = hopeless
        self._warmup_s = warmup_s

    def started(self, schedule: Schedule, start_at: float) -> None:
        warm = {
            request.conversation
            for request in schedule.requests
            if request.at_s is not None and request.at_s < self._warmup_s
        }
        num_warmup = sum(request.conversation in warm for request in schedule.requests)
        self._hopeless.plan(len(schedule.requests), num_warmup)
        self._watch.started(schedule, start_at)

    def progress(self, worker: int, progress: Progress) -> None:
        self._hopeless.progress(worker, progress)
        self._watch.progress(worker, progress)

    def scraped(self, snapshot: Snapshot) -> None:
        self._watch.scraped(snapshot)


def perform_sweep(options: RunOptions, scenario: Scenario, slo: Slo, bounds: Bounds, console: Console) -> int:
    """A sweep; exits 0 when some rate held and the search came to its end."""
    options.check_outputs()
    where = options.where(scenario)

    async def trial(at_rate: Scenario) -> Trial:
        stop = asyncio.Event()
        hopeless = Hopeless(slo, stop)
        with _stop_on_signal(stop), Watch(at_rate, console) as watch:
            result, records = await run_experiment(
                at_rate,
                where,
                num_workers=options.workers,
                observer=_Both(watch, hopeless, at_rate.warmup_s),
                stop=stop,
            )
        return Trial(result, records, hopeless.is_hopeless)

    found = asyncio.run(sweep(scenario, slo, bounds, trial, lambda step: console.print(step_line(step), markup=False)))
    _write_sweep(options, found)
    console.print(found.verdict, style="bold", markup=False)
    console.print(f"The search ended because of: {found.stopped_because}.", markup=False)
    if found.stopped_because not in SEARCHED:
        return EXIT_INVALID
    return EXIT_HELD if found.max_rate_rps is not None else EXIT_BROKEN


def _write_sweep(options: RunOptions, found: SweepResult) -> None:
    if options.json_path is not None:
        options.json_path.write_text(found.model_dump_json(indent=1) + "\n")
