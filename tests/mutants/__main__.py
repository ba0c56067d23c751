"""``make mutants``: run the catalogue, print the table, write JSON and the documentation page."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path

from kvparity.exporter.contract.bundle import Bundle
from tests.mutants.bench import CATALOGUE, run
from tests.mutants.report import failures, markdown, print_table
from tests.mutants.subject import make_subject


def main() -> int:
    """Run what the command line asks for; 0 where every check on the referee holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="bundle to mutate  [default: the toy model made for this]")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/mutants"), help="where the toy model is made")
    parser.add_argument("--only", default="*", help="glob of mutant names")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    parser.add_argument("--markdown", type=Path, help="file for the table as a page")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle) if arguments.bundle else make_subject(arguments.folder)
    chosen = [mutant for mutant in CATALOGUE if fnmatchcase(mutant.name, arguments.only)]
    outcomes = run(bundle, ["", *(mutant.name for mutant in chosen)], arguments.jobs)
    print_table(outcomes)
    if arguments.json:
        rows = [asdict(replace(item, largest=min(item.largest, 1e300))) for item in outcomes]
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(outcomes, CATALOGUE), encoding="utf-8")
    problems = failures(outcomes)
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
