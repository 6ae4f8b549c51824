"""The table of a study: a row a cell, with means over seeds and their intervals."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.run.validation_names import results_by_set
from trainer.study.study import Cell, Study, StudyRun, cells_of, short_name, value_label
from trainer.study_report.statistics import COLLAPSE, Interval, trailing_means

REWARD = "reward/mean"
ENDS = ("final", "best")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """What a run came to; None for what was not measured.

    Example: {"final_reward": 0.8, "best_reward": 0.82, "final_validation": None, ...}, collapsed at step 14. Named
    validation sets have "final_validation_NAME" and "best_validation_NAME".
    """

    seed: int
    finished: bool
    values: Mapping[str, float | None]
    collapse: int | None

    @classmethod
    def of(cls, run: StudyRun, validations: Mapping[str, str]) -> "RunOutcome":
        """The outcome of a run with at least one record, as far as it has got.

        Args:
            run: which run.
            validations: the metric of each validation quantity, e.g. ``{"validation": "val/accuracy"}``.
        """
        rewards = run.values(REWARD)
        smooth = trailing_means(list(rewards.values()), COLLAPSE.window)
        values = {
            "final_reward": smooth[-1] if smooth else None,
            # The first means are of fewer steps: of one alone, luck would be the best reward.
            "best_reward": max(smooth[min(COLLAPSE.window, len(smooth)) - 1 :], default=None),
        }
        for name, metric in validations.items():
            measured = list(run.values(metric).values())
            values[f"final_{name}"] = measured[-1] if measured else None
            values[f"best_{name}"] = max(measured, default=None)
        return cls(seed=run.seed, finished=run.finished, values=values, collapse=COLLAPSE.step(rewards))


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One cell of the study.

    Args:
        cell: a value for each axis.
        planned: runs of the cell.
        outcomes: of those that have started.
        intervals: over the seeds, by quantity.
        difference: of the final reward to the first series' cell, paired by seed; None for that cell itself.
    """

    cell: Cell
    planned: int
    outcomes: Sequence[RunOutcome]
    intervals: Mapping[str, Interval | None]
    difference: Interval | None

    @property
    def collapses(self) -> list[int]:
        """The steps at which runs have collapsed."""
        return [outcome.collapse for outcome in self.outcomes if outcome.collapse is not None]

    @property
    def unfinished(self) -> int:
        """Runs that have started and not ended."""
        return sum(not outcome.finished for outcome in self.outcomes)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyTable:
    """All cells of a study, in the order of its axes.

    Args:
        rows: one a cell.
        quantities: names of what is in ``RunOutcome.values``, in the order of the columns.
        baseline: label of the series that differences are taken to; None without one.
    """

    rows: Sequence[TableRow]
    quantities: Sequence[str]
    baseline: str | None

    @classmethod
    def of(cls, study: Study, series: str | None) -> "StudyTable":
        """The table of the runs as far as they have got.

        Args:
            study: whose runs.
            series: the axis whose first value is the baseline; None when there is no axis.
        """
        first = {} if series is None else {series: study.axes[series][0]}
        measured = results_by_set(study.metrics) or {"": ""}
        validations = {f"validation_{name}" if name else "validation": metric for name, metric in measured.items()}
        quantities = [f"{end}_{name}" for name in ("reward", *validations) for end in ENDS]
        rows = []
        for cell in cells_of(study.axes):
            outcomes, reference_cell = _outcomes(study, cell, validations), cell | first
            reference = [] if cell == reference_cell else _outcomes(study, reference_cell, validations)
            rows.append(
                TableRow(
                    cell=cell,
                    planned=len(study.runs_of(cell)),
                    outcomes=outcomes,
                    intervals={name: _interval(outcomes, name) for name in quantities},
                    difference=_paired_difference(outcomes, reference),
                )
            )
        baseline = None if series is None else value_label(series, study.axes[series][0])
        return cls(rows=rows, quantities=quantities, baseline=baseline)

    @property
    def header(self) -> list[str]:
        """Of the columns for people."""
        axes = [short_name(key) for key in self.rows[0].cell]
        titles = [*axes, "runs", *(_title(name) for name in self.quantities), "collapsed"]
        return titles if self.baseline is None else [*titles, f"final reward less {self.baseline}'s"]

    def texts(self) -> list[list[str]]:
        """The cells for people, row by row."""
        return [self._texts_of(row) for row in self.rows]

    def to_csv(self) -> str:
        """The numbers: means and both ends of each interval, empty where unknown."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        bounds = [f"{name}_{part}" for name in (*self.quantities, "difference") for part in ("mean", "low", "high")]
        writer.writerow([*self.rows[0].cell, "runs", "unfinished", *bounds, "collapsed", "collapse_steps"])
        for row in self.rows:
            intervals = [*(row.intervals[name] for name in self.quantities), row.difference]
            numbers = [number for interval in intervals for number in _numbers(interval)]
            collapses = [len(row.collapses), " ".join(map(str, row.collapses))]
            writer.writerow([*row.cell.values(), len(row.outcomes), row.unfinished, *numbers, *collapses])
        return text.getvalue()

    def _texts_of(self, row: TableRow) -> list[str]:
        axes = [value_label(key, value).removeprefix(f"{short_name(key)} ") for key, value in row.cell.items()]
        unfinished = f", {row.unfinished} unfinished" if row.unfinished else ""
        runs = f"{len(row.outcomes)} of {row.planned}{unfinished}"
        steps = f" (step {', '.join(map(str, row.collapses))})" if row.collapses else ""
        collapsed = f"{len(row.collapses)} of {len(row.outcomes)}{steps}" if row.outcomes else "-"
        texts = [*axes, runs, *(_text(row.intervals[name]) for name in self.quantities), collapsed]
        return texts if self.baseline is None else [*texts, _text(row.difference, signed=True)]


def _title(quantity: str) -> str:
    """``final validation``, and of a set ``final validation math500``, whose name stays as it is."""
    return quantity.replace("_", " ", 2)


def _outcomes(study: Study, cell: Cell, validations: Mapping[str, str]) -> list[RunOutcome]:
    return [RunOutcome.of(run, validations) for run in study.runs_of(cell) if run.records]


def _interval(outcomes: Sequence[RunOutcome], quantity: str) -> Interval | None:
    values = [outcome.values[quantity] for outcome in outcomes]
    return Interval.of([value for value in values if value is not None])


def _paired_difference(outcomes: Sequence[RunOutcome], reference: Sequence[RunOutcome]) -> Interval | None:
    """Only seeds that both cells have a reward of."""
    of_seed = {outcome.seed: outcome.values["final_reward"] for outcome in reference}
    pairs = [(outcome.values["final_reward"], of_seed.get(outcome.seed)) for outcome in outcomes]
    return Interval.of([own - other for own, other in pairs if own is not None and other is not None])


def _text(interval: Interval | None, *, signed: bool = False) -> str:
    if interval is None:
        return "-"
    mean = f"{interval.mean:+.3f}" if signed else f"{interval.mean:.3f}"
    return mean if interval.half_width is None else f"{mean} ± {interval.half_width:.3f}"


def _numbers(interval: Interval | None) -> list[float | str]:
    if interval is None:
        return ["", "", ""]
    return [interval.mean, *(interval.bounds or ("", ""))]
