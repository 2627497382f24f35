"""Checks of a run's outputs in the worker: which check concerns which output, what it finds, the verdict.

A file is read a part at a time. All bounds are in `core.limits`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_flows.checks.definitions import (
    Check,
    CheckedOutput,
    GlbCheck,
    ImageCheck,
    TextCheck,
    get_check_name,
    to_problems,
)
from airflow_provider_flows.checks.requirements import compare_with_schema
from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.flow_run import READY
from airflow_provider_flows.core.gltf import read_model
from airflow_provider_flows.core.limits import (
    MAX_CHECKED_PICTURE_BYTES,
    MAX_CHECKED_TEXT_BYTES,
    MAX_VERDICT_LENGTH,
    MAX_VERDICT_PROBLEMS,
    MIB,
)
from airflow_provider_flows.core.payload.data_uri import GLB, sniff
from airflow_provider_flows.core.payload.integrity import TruncationDetector
from airflow_provider_flows.core.payload.picture_size import read_picture_size
from airflow_provider_flows.core.safe_text import to_line, to_safe_text
from airflow_provider_flows.storage.atomic_file import open_stored_file
from airflow_provider_flows.storage.paths import get_file_path

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowOutput, FlowRun
    from airflow_provider_flows.storage.output_options import OutputOptions

MODEL, PICTURE, TEXT = "3D model", "picture", "text"
KINDS: dict[type, str] = {GlbCheck: MODEL, ImageCheck: PICTURE, TextCheck: TEXT}  # of the outputs of a check
SNIFF_BYTES = 64
MAX_SHORT_PROBLEM_LENGTH = 100  # of the further outputs of a run with many problems
TEXT_TYPES = ("text/", "application/json")


def check_outputs(run: FlowRun, options: OutputOptions) -> FlowRun:
    """Return a completed run with the verdict of its checks, and its outputs with theirs.

    An output's verdict is `{"accepted": bool, "problems": [str], "facts": {...}}`, and that of the run has
    `accepted` and all `problems`. An output that no check concerns has none.

    :param options: with the checks, and where the files are.
    :raises FlowInputError: an output is not stored, or not completely, so that it cannot be checked.
    :raises Exception: any error of the store, or of a function among the checks.
    """
    checks = options.checks
    matched = set[int]()
    outputs, problems = [], list[str]()
    for output in run.outputs:
        verdict = _check_output(output, checks, options, matched) if output.status == READY else None
        if verdict is not None:
            if len(problems) >= MAX_VERDICT_PROBLEMS:  # a run may have thousands of outputs
                short = [problem[:MAX_SHORT_PROBLEM_LENGTH] for problem in verdict["problems"][:1]]
                verdict = {**verdict, "problems": short}
            problems += [f"{output.name} {problem}" for problem in verdict["problems"]]
        outputs.append(replace(output, verdict=verdict))
    for index, check in enumerate(checks):
        kind = KINDS.get(type(check))
        if index not in matched and kind is not None:
            problems.append(f"no output is a {kind} ({get_check_name(check)})")
    problems = problems[:MAX_VERDICT_PROBLEMS]
    return replace(run, outputs=tuple(outputs), verdict={"accepted": not problems, "problems": problems})


def _open(output: FlowOutput, options: OutputOptions) -> IO[bytes]:
    """Open the stored file of an output.

    :raises FlowInputError: it is not stored as a file.
    :raises Exception: any error of the store.
    """
    folder = options.output_path or options.reuse_path
    if output.uri is None or folder is None:
        raise FlowInputError(
            f"Output {output.name} is not stored as a file, so it cannot be opened. Set output_path"
        )
    path = get_file_path(output.uri, folder, options.output_conn_id)
    file: IO[bytes] = open_stored_file(path, path.parent)
    return file


def _check_output(
    output: FlowOutput, checks: Sequence[Check], options: OutputOptions, matched: set[int]
) -> dict[str, Any] | None:
    """Return the verdict of one output, None if no check concerns it.

    :param matched: gets the indexes of the checks that do.
    """
    kind = _get_kind(output, options)
    facts, problems, is_checked = dict[str, Any](), list[str](), False
    for index, check in enumerate(checks):
        if KINDS.get(type(check), kind) != kind:
            continue
        matched.add(index)
        is_checked = True
        problems += _find_problems(check, output, options, facts)
    if not is_checked:
        return None
    unique = dict.fromkeys(to_line(to_safe_text(problem))[:MAX_VERDICT_LENGTH] for problem in problems)
    return {"accepted": not problems, "problems": list(unique)[:MAX_VERDICT_PROBLEMS], "facts": facts}


def _get_kind(output: FlowOutput, options: OutputOptions) -> str | None:
    """Return what an output is, by its media type, or else by the first bytes of its file."""
    media_type = output.media_type or ""
    if output.value is not None and not output.is_url and (output.uri is None or media_type != GLB):
        return TEXT
    if media_type.startswith(TEXT_TYPES):
        return TEXT
    if media_type.startswith("model/") or (output.uri or "").endswith(".glb"):
        return MODEL
    if media_type.startswith("image/"):
        return PICTURE
    if output.uri is None:
        return None
    with closing(_open(output, options)) as file:
        sniffed = sniff(file.read(SNIFF_BYTES)) or ""
    return MODEL if sniffed == GLB else PICTURE if sniffed.startswith("image/") else None


def _find_problems(
    check: Check, output: FlowOutput, options: OutputOptions, facts: dict[str, Any]
) -> Iterator[str]:
    if isinstance(check, GlbCheck):
        with closing(_open(output, options)) as file:
            yield from _check_model(check, file, facts)
    elif isinstance(check, ImageCheck):
        with closing(_open(output, options)) as file:
            yield from _check_picture(check, file, facts)
    elif isinstance(check, TextCheck):
        yield from _check_text(check, output, options, facts)
    else:
        text = None
        if _get_kind(output, options) == TEXT:
            text, problem = _read_text(output, options)
            if problem is not None:
                yield problem
                return
        checked = CheckedOutput(output, text, lambda: _open(output, options))
        yield from to_problems(check(checked), get_check_name(check))


def _check_model(check: GlbCheck, file: IO[bytes], facts: dict[str, Any]) -> Iterator[str]:
    from airflow_provider_flows.checks.mesh import find_open_meshes

    size = file.seek(0, 2)

    def read(offset: int, count: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    model = read_model(read, size)
    if model.gltf:
        facts |= {"triangles": model.triangles, "textures": len(model.textures)}
        sizes = [max(texture.width, texture.height) for texture in model.textures if texture is not None]
        if sizes:
            facts["texture_size"] = max(sizes)
    yield from check.find_problems(model)
    if check.is_watertight and not model.problems:
        open_meshes = list(find_open_meshes(model, read))
        facts["is_watertight"] = not open_meshes
        yield from open_meshes


def _check_picture(check: ImageCheck, file: IO[bytes], facts: dict[str, Any]) -> Iterator[str]:
    file_size = file.seek(0, 2)

    def read(offset: int, count: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    size = read_picture_size(read)
    if size is None:
        yield "is no picture whose size can be read"
        return
    facts |= {"width": size.width, "height": size.height}
    yield from check.find_problems(size, file_size)
    if file_size > MAX_CHECKED_PICTURE_BYTES:
        yield f"is too large to be checked: more than {MAX_CHECKED_PICTURE_BYTES:,} bytes"
        return
    detector = TruncationDetector(size.media_type)
    file.seek(0)
    while chunk := file.read(MIB):
        detector.feed(chunk)
    if detector.is_truncated:
        yield f"is truncated: its {file_size:,} bytes end before its picture does"


def _check_text(
    check: TextCheck, output: FlowOutput, options: OutputOptions, facts: dict[str, Any]
) -> Iterator[str]:
    text, problem = _read_text(output, options)
    if text is None:
        yield problem or "has no text"
        return
    facts["characters"] = len(text)
    yield from check.find_problems(text)
    if check.json_schema is not None:
        yield from compare_with_schema(text, check.json_schema)


def _read_text(output: FlowOutput, options: OutputOptions) -> tuple[str | None, str | None]:
    """Return the complete text of an output; or None, and why it is rejected.

    :raises FlowInputError: there is only its start: not the output is wrong, but the task.
    """
    if output.uri is not None:
        with closing(_open(output, options)) as file:
            data = file.read(MAX_CHECKED_TEXT_BYTES + 1)
        if len(data) > MAX_CHECKED_TEXT_BYTES:
            return None, f"is too large to be checked: more than {MAX_CHECKED_TEXT_BYTES:,} bytes"
        return data.decode("utf-8", "replace"), None
    if output.warning is not None:  # only its start is in the result
        raise FlowInputError(
            f"Output {output.name} is too large to be checked without a file (max_xcom_bytes). Set "
            "output_path"
        )
    return output.value, None
