"""Several runs side by side: scores, fields of the config that differ, curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from big_vision_lite.errors import UserError
from big_vision_lite.scaling.report import figures, html, runs, words
from big_vision_lite.scaling.report.run_report import draw_curves
from big_vision_lite.scaling.studies.results import write_file

HIDDEN = 30
"""Fields that differ, beyond which the page folds them."""


class Comparison:
    """Two runs or more.

    Raises:
      UserError: fewer than two, the same one twice, or a folder holds no run.
    """

    def __init__(self, folders: Sequence[Path], imports: Sequence[str] = ()):
        if len(folders) < 2:
            raise UserError("bvl compare needs two runs or more: bvl compare runs/a runs/b")
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise UserError("bvl compare: a run is named twice; name each once")
        self.runs = [runs.read_facts(folder, imports) for folder in folders]
        names = [facts.name for facts in self.runs]
        self.names = names if len(set(names)) == len(names) else [str(facts.folder) for facts in self.runs]

    @property
    def main(self) -> str | None:
        """The main metric that most runs have, by its name without the evaluation."""
        found = [facts.main.rpartition("/")[2] for facts in self.runs if facts.main is not None]
        return max(dict.fromkeys(found), key=found.count, default=None)

    def scores(self) -> dict[int, float]:
        """The final score by the main metric, for the runs that have it, by number."""
        return {number: facts.last(facts.main) for number, facts in enumerate(self.runs)
                if facts.main is not None and facts.main.rpartition("/")[2] == self.main}

    def conclusions(self) -> list[str]:
        """What the runs say, in words."""
        scores = self.scores()
        left_out = [self.names[number] for number in range(len(self.runs)) if number not in scores]
        lines = [f"without {words.metric(self.main or 'a score')}: {', '.join(left_out)}"] if left_out else []
        if len(scores) < 2:
            return ["no two runs have the same main metric, so their scores do not compare", *lines]
        order = sorted(scores, key=scores.get, reverse=self.runs[next(iter(scores))].higher_is_better)
        first, second = order[:2]
        evals = {self.runs[number].main.rpartition("/")[0] for number in order}
        gap = abs(scores[first] - scores[second])
        said = [f"best {words.metric(self.main)}: {self.names[first]} with {scores[first]:.4g}, {gap:.3g} ahead of "
                f"{self.names[second]}; differences between single runs include the scatter of seeds"]
        if len(evals) > 1:
            said.append(f"runs are scored on different data ({', '.join(sorted(evals))}): scores may not compare")
        seen = {self.runs[number].images_seen for number in order}
        if len(seen) > 1:
            said.append(f"runs have seen {min(seen):,} to {max(seen):,} images: the longer ones are favoured")
        return said + lines

    def table(self) -> list[list[str]]:
        """Cells: a row per fact, a column per run, header first. Facts that no run has are left out."""
        rows = [["", *self.names]]

        def add(label: str, cells: Sequence[str]) -> None:
            if any(cells):
                rows.append([label, *cells])

        names = dict.fromkeys(facts.main for facts in self.runs if facts.main is not None)
        for name in names:
            values = [facts.last(name) for facts in self.runs]
            add(words.metric(name), ["" if value is None else f"{value:.4g}" for value in values])
            add(f"best {words.metric(name)}", [f"{facts.best(name)[1]:.4g} at step {facts.best(name)[0]:,}"
                                               if name in facts.curves else "" for facts in self.runs])
        add("training loss", ["" if (loss := facts.last("loss")) is None else f"{loss:.4g}" for facts in self.runs])
        add("steps done", [f"{facts.step:,}" + ("" if "results" in facts.run else " (unfinished)")
                           for facts in self.runs])
        add("images seen", [f"{facts.images_seen:,}" for facts in self.runs])
        add("training images", [f"{facts.images:,}" for facts in self.runs])
        add("time in all", [words.duration(facts.run["wall_seconds"]) if "wall_seconds" in facts.run else ""
                            for facts in self.runs])
        add("machine", [facts.machine if facts.run else "" for facts in self.runs])
        add("commit", [(facts.run.get("git_commit") or "")[:10] for facts in self.runs])
        return rows

    def differences(self) -> list[list[str]]:
        """Cells of the fields of the configs that differ, header first; "-" where a run has no such field."""
        found = [runs.fields(facts.experiment) for facts in self.runs]
        rows = [["field", *self.names]]
        for name in dict.fromkeys(name for one in found for name in one):
            values = [one.get(name, "-") for one in found]
            if len(set(values)) > 1:
                rows.append([name, *values])
        return rows

    def csv(self) -> str:
        """One row per run: facts and the fields that differ."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        facts, fields = self.table(), self.differences()
        writer.writerow(["run", *(row[0] for row in (*facts[1:], *fields[1:]))])
        for column in range(1, len(self.runs) + 1):
            writer.writerow([row[column] for row in (facts[0], *facts[1:], *fields[1:])])
        return buffer.getvalue()

    def page(self) -> str:
        """The comparison as HTML."""
        title = " against ".join(self.names) if len(self.names) == 2 else f"{len(self.names)} runs"
        fields = self.differences()
        table = html.table(fields) if len(fields) > 1 else html.paragraph("The configs are the same.")
        parts = [html.heading(title, 1), html.points(list(map(words.title, self.conclusions())), "answer"),
                 html.table(self.table()), html.heading("Curves"), *self._curves(),
                 html.heading("Fields that differ"),
                 html.folded(f"{len(fields) - 1} fields", table) if len(fields) > HIDDEN else table]
        return html.page(title, parts)

    def _curves(self) -> list[str]:
        shown = self._labelled(lambda facts: facts.main if facts.main and facts.main.endswith(f"/{self.main}") else "")
        scored = words.metric(self.main or "score")
        pictures = []
        for title, y_label, curves in ((f"{words.title(scored)} against images seen", scored, shown),
                                       ("Training loss against images seen", "loss", self._labelled(lambda _: "loss"))):
            if curves:
                drawn = figures.to_bytes(draw_curves(title, "images seen", y_label, curves), "svg")
                pictures.append(html.picture(drawn, "svg+xml", title))
        return pictures

    def _labelled(self, name_of) -> dict[str, runs.Curve]:
        """Each run's curve of a metric over images seen, where it has two points or more."""
        found = {}
        for name, facts in zip(self.names, self.runs, strict=True):
            steps, values = facts.curves.get(name_of(facts), ((), ()))
            if len(steps) > 1:
                found[name] = steps * facts.experiment.train.batch_size, values
        return found


def write_comparison(comparison: Comparison, out: Path) -> list[str]:
    """Write compare.csv and compare.html to a folder. Returns lines that name them. Raises: UserError."""
    write_file(out / "compare.csv", comparison.csv())
    write_file(out / "compare.html", comparison.page())
    return [f"{out / 'compare.csv'}", f"{out / 'compare.html'}"]
