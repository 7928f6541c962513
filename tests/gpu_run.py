"""Everything that needs a CUDA device, in one command within ten minutes: its tests, and the benchmarks of speed.

    python tests/gpu_run.py [--out out/gpu] [--device cpu --tiny]

It needs no installed studio, only the libraries of pyproject.toml, and says which of them are missing. `--device cpu
--tiny` is a dry run: the same steps at small sizes, without a device.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("pipelines", "trainers", "kernels", "ui", "assets")
MODULES = {"pillow": "PIL", "open-clip-torch": "open_clip", "huggingface-hub": "huggingface_hub", "tomli-w": "tomli_w"}
TESTING = ("pytest", "pytest-timeout", "hypothesis")
TIMES = {  # seconds at most, on a GPU; together they leave half a minute of the ten
    "doctor": 40, "tests": 130, "kernels": 70, "step-sdxl": 140, "step-sd15": 70, "compiled-sdxl": 120,
}  # fmt: skip
SLOWER = {"cuda": 1, "cpu": 4}


def main() -> int:
    """Run every step; the exit code is 0 where all went well, 2 where nothing could."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    if lacking := missing():
        print(f"These packages are missing: {', '.join(lacking)}. Install them, or put them on PYTHONPATH.")
        return 2
    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here. A dry run without one: --device cpu --tiny")
        return 2
    asked.out.mkdir(parents=True, exist_ok=True)
    env, results = environment(), []
    summary = {"commit": commit(), "device": asked.device, "tiny": asked.tiny, "steps": results}
    for name, order in steps(asked).items():
        results.append(ran(name, order, asked.out, env, asked.device))
        (asked.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for one in results:
        print(f"{one['name']:12} {'well' if one['code'] == 0 else 'FAILED'} in {one['seconds']:.0f} s")
    return int(any(one["code"] for one in results))


def environment() -> dict[str, str]:
    """In which `python -m` finds the studio in `linked()`, and not the folder of its name in the repository."""
    places = [str(linked()), *(place for place in sys.path if place != str(ROOT / "tests"))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}


def steps(asked: argparse.Namespace) -> dict[str, list[str]]:
    """The commands by name."""
    studio = [sys.executable, "-W", "ignore", "-m", "studio.ui.cli"]
    bench = [*studio, "bench"]
    where = ["--device", asked.device, "--out", str(asked.out)]
    few = ["--rounds", "2"] if asked.tiny else []
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--ignore", "tests/browser"]
    found = {
        "doctor": [*studio, "doctor", "--json"],
        "tests": [*pytest, f"--junit-xml={asked.out / 'tests.xml'}"],
        "kernels": [*bench, "kernels", *where, *few, *(["--tiny"] if asked.tiny else [])],
    }
    for shape in ("sdxl", "sd15"):
        name = f"{shape}-tenth" if asked.tiny else shape
        found[f"step-{shape}"] = [*bench, "step", "--shape", name, *where, *few]
    found["compiled-sdxl"] = [*found["step-sdxl"], "--compiled"]
    return found


def ran(name: str, order: list[str], out: Path, env: dict[str, str], device: str) -> dict[str, object]:
    """One command, what it said kept beside the reports; it ends after its time at the latest."""
    began = time.monotonic()
    print(f"{name} ...", flush=True)
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        try:
            limit = SLOWER[device] * TIMES[name]
            code = subprocess.run(
                order, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=env, check=False, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    if name == "tests" and code == 5 and device == "cpu":  # none was chosen
        code = 0
    if code:
        print((out / f"{name}.log").read_text(encoding="utf-8")[-2000:])
    return {"name": name, "code": code, "seconds": round(time.monotonic() - began, 1)}


def missing() -> list[str]:
    """What pyproject.toml requires and cannot be imported, and of what the tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [one.split(">")[0].split("=")[0].split("[")[0].strip() for one in project["dependencies"]]
    wanted = {name: MODULES.get(name, name.replace("-", "_")) for name in (*names, *TESTING)}
    return [name for name, module in wanted.items() if importlib.util.find_spec(module) is None]


def linked() -> Path:
    """A folder in which `studio` is a package, as an installation would make it."""
    tree = ROOT / "build" / "tree"
    package = tree / "studio"
    package.mkdir(parents=True, exist_ok=True)
    for file in [*(ROOT / "studio").iterdir(), *(ROOT / name for name in MAPPED)]:
        link = package / file.name
        if link.resolve() != file.resolve() and file.name != "__pycache__":
            link.unlink(missing_ok=True)  # in a copied tree it points into the original
            link.symlink_to(file)
    return tree


def commit() -> str:
    """The commit of the tree, where git is there to tell it."""
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
