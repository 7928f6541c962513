"""Files that the pages hand out: made or copied into a folder that ends with this process, from where Gradio takes
them."""

import hashlib
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from studio.concepts import Concept, file_hash
from studio.errors import UsageError
from studio.home import write_atomic
from studio.jobs import Job

AS_IT_IS = "as it is"
KINDS = (AS_IT_IS, "kohya", "diffusers", "peft", "lycoris")
REPORT_FILES = {"report.html": "html", "pictures.csv": "csv"}


def exported(concept: Concept, kind: str) -> list[Path]:
    """The adapter of `concept` as a file of that kind, and its model card; for "peft" a zip of the folder.

    Raises UsageError for an unknown kind and for what it cannot hold, StudioError where the file has changed.
    """
    if kind not in KINDS:
        raise UsageError(f"There is no format {kind[:40]!r}.", f"Choose one of {', '.join(KINDS)}.")
    from studio.exporting import export_concept

    folder = _place(repr(concept), kind, file_hash(concept.adapter_file))
    if not folder.exists():
        try:
            export_concept(concept, folder, None if kind == AS_IT_IS else kind)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if kind == "peft":
            shutil.make_archive(str(folder / f"{concept.name}-peft"), "zip", folder, concept.name)
            shutil.rmtree(folder / concept.name)
    return sorted(
        (one for one in folder.iterdir() if not one.name.startswith(".")), key=lambda one: one.suffix == ".md"
    )


def report_file(job: Job, outputs: Path, name: str) -> Path | None:
    """A copy of one of REPORT_FILES of an evaluation, named by its job; None where it is not among the outputs."""
    report = job.result.get("report")
    if job.kind != "evaluate" or not isinstance(report, str) or name not in REPORT_FILES:
        return None
    file = (Path(report).parent / name).resolve()
    if not file.is_relative_to(outputs.resolve()) or not file.is_file():
        return None
    to = _place(str(job.id), str(file.stat().st_mtime_ns)) / f"evaluation-{job.id}.{REPORT_FILES[name]}"
    return to if to.is_file() else write_atomic(to, lambda copy: shutil.copyfile(file, copy))


def _place(*made_from: str) -> Path:
    """The folder for what is made from these."""
    return Path(_outbox().name) / hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]


@cache
def _outbox() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="concept-studio-")
