"""The figures that a table of the documents shows, taken from a sweep's trials.

`python -m tests.support.compared SWEEP NAME --cpu CPU --command COMMAND` writes docs/explanation/figures/NAME.json.
"""

import argparse
import json
from datetime import date
from pathlib import Path
from statistics import mean

import yaml

from prunefuse_ray.method.steps import FINETUNE, Step
from prunefuse_ray.run.ledger import Ledger
from prunefuse_ray.storage import Place
from prunefuse_ray.sweep.config import sweep_from_tree, trials
from prunefuse_ray.tasks import TASKS
from tests.support.documents import FIGURES


def figures_of(sweep: Path, rare: list[int], titles: dict[str, str]) -> dict:
    """Every trial's metric, by arm, seed and number of labels: of the target, of the network that selects, and of the
    simplest model on the last labels; for rare classes the target's mean recall, too."""
    given = sweep_from_tree(yaml.safe_load((sweep / "sweep.yaml").read_text()))
    metric, rows = TASKS[given.base.task].metric, []
    for trial in trials(given):
        where = sweep / "trials" / trial.name
        result = json.loads((where / "result.json").read_text())
        simplest = result[f"baseline_{metric.name}"]
        for row in result["rounds"]:
            if row[f"fused_{metric.name}"] is None:
                continue
            last = row is result["rounds"][-1]
            found = {
                "arm": trial.arm,
                "seed": trial.config.run.seed,
                "labels": row["labels"],
                "fused": round(row[f"fused_{metric.name}"], 5),
                "proxy": round(row[f"proxy_{metric.name}"], 5),
                "baseline": round(simplest, 5) if last and simplest is not None else None,
                "selection_macs": row["selection_macs"],
            }
            if rare:
                recall = Ledger(Place.at(str(where))).require(Step(row["round"], FINETUNE)).metrics["test_recall"]
                found["rare"] = round(mean(recall[c] for c in rare), 5)
            rows.append(found)
    arms = {arm: titles.get(arm, f"`{arm}`") for arm in given.arms}
    return {"metric": metric.title, "share": metric.share, "reference": given.reference, "arms": arms, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name")
    parser.add_argument("--cpu", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--rare", type=int, nargs="*", default=[], help="numbers of rare classes")
    parser.add_argument("--title", nargs=2, action="append", default=[], help="an arm, and how the table calls it")
    parser.add_argument(
        "--also", nargs=2, action="append", default=[], help="another sweep, and an arm to take from it"
    )
    parser.add_argument("--reference", help="the arm that the others are compared with, if not the sweep's")
    given = parser.parse_args()
    found = figures_of(given.sweep, given.rare, dict(given.title))
    for sweep, arm in given.also:
        other = figures_of(Path(sweep), given.rare, dict(given.title))
        found["arms"][arm] = other["arms"][arm]
        found["rows"] = [row for row in found["rows"] if row["arm"] != arm]
        found["rows"] += [row for row in other["rows"] if row["arm"] == arm]
    found["reference"] = given.reference or found["reference"]
    head = {"command": given.command, "cpu": given.cpu, "date": date.today().isoformat()}
    (FIGURES / f"{given.name}.json").write_text(json.dumps({**head, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
