"""`segserve check` (static) on public MLproject repositories of different shapes, each at one commit. Run by hand.

python benchmarks/public_executors.py [--base https://github.com/] [--all]

Prints the table of docs/check-public.md without the reader's column: errors, warnings and notes by rule. --all prints
every finding. `--base` may name a folder of bare copies: file:///copies/
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter

# repository, commit, subdirectory
REPOSITORIES = (
    ("hip-satomi/Cellpose-Executor", "c57f6e2c81a2b8892409ef8b97709f482d2ee48a", ""),
    ("hip-satomi/Yolov5-Executor", "42e1aae0e71de6ecacca9faf1c0da8473cfffc8e", ""),
    ("JojoDevel/ml-flow-with-submodule", "9647079d4af4f7fc26fbafe309e7f882ffa8c12c", ""),
    ("mlflow/mlflow-example", "0651d1c962aa35e4dd02608c51a7b0efc2412407", ""),
    ("mlflow/mlflow-apps", "3f3ba83ab2b1464d9a03dd1c73807941eb30fc52", ""),
    ("mlflow/mlflow-apps", "3f3ba83ab2b1464d9a03dd1c73807941eb30fc52", "apps/gbt-regression"),
    ("FrieseWoudloper/mlflow-example", "ada164f86dcdfb3ace5440539c855bc7b1f1800d", ""),
    ("IvanYingX/MLFlow_Exp", "665886ea38e3dbcd083d35f82c83539ad5f5492b", ""),
    ("JonasKlotz/Alpha_Zero_Racing_Kings", "16dc46a48d10cb2185eb82a4a0506e0df3b29a0d", ""),
    ("JedhaBootcamp/01-Package_your_algorithm_training", "be712ee4c30ee1a8942c24ad470d57f895c55947", ""),
    ("IgorCzudy/MLflow", "db65f48e68ff8d56aa67e4e631340a22f87dae90", ""),
    ("Morsinaldo/water_bottle_mlflow", "05e4c3b0bb01fca2dfc1a4232dc23082e4c87394", ""),
    ("MArpogaus/stplf-bnf", "7a534aad2c8d3ba8663b8b521951f035a7b33c54", ""),
)


def main() -> None:
    """One row per repository."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="https://github.com/")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    for name, sha, subdir in REPOSITORIES:
        ref = f"{options.base}{name}@{sha}" + (f"#{subdir}:" if subdir else "")
        words = [sys.executable, "-m", "segserve", "check", ref, "--json", "--fail-on", "never"]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"| {name} | `{sha[:7]}` | not checked: {done.stderr.strip().splitlines()[0]} |")
            continue
        found = json.loads(done.stdout)["findings"]
        counts = Counter((one["severity"], one["rule"]) for one in found)
        cells = [
            ", ".join(
                rule + (f" ×{count}" if count > 1 else "") for (s, rule), count in counts.items() if s == severity
            )
            for severity in ("error", "warning", "note")
        ]
        print(
            f"| {name}{f' ({subdir})' if subdir else ''} | `{sha[:7]}` | {' | '.join(cell or '–' for cell in cells)} |"
        )
        for one in found if options.all else ():
            place = one["place"]
            print(f"    {place['path']}:{place['line']} {one['rule']}: {one['message']}")


if __name__ == "__main__":
    main()
