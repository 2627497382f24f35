"""What can be demanded of an output: of a 3D model, a picture or a text, or by a function.

Here are the arguments and the comparison. `checks.files` reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import IO, TYPE_CHECKING, Any

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.template_problems import is_decorated_function, is_task

if TYPE_CHECKING:
    from airflow_provider_flows.core.flow_run import FlowOutput
    from airflow_provider_flows.core.gltf import Model
    from airflow_provider_flows.core.payload.picture_size import PictureSize

MAX_CHECK_RETRIES = 10
DEFAULT_MAX_TEXTURE_SIZE = 16_384  # pixels, which graphics cards accept
FAIL, AGAIN = "fail", "again"  # the values of `on_rejected`
CHECKS_HINT = (
    "a GlbCheck, an ImageCheck, a TextCheck (of airflow_provider_flows.checks), a function, or a list of them"
)


@dataclass(frozen=True, slots=True)
class CheckedOutput:
    """An output that a function checks.

    :param output: its name, media type and size.
    :param text: the complete text, None if the output is no text.
    :param open_file: opens the stored file for reading.
    """

    output: FlowOutput
    text: str | None
    open_file: Callable[[], IO[bytes]]

    @property
    def name(self) -> str:
        """The output's name."""
        return self.output.name

    @property
    def media_type(self) -> str | None:
        """The media type, None if it is unknown."""
        return self.output.media_type

    @property
    def size(self) -> int | None:
        """The size of the stored file in bytes, None if the output is not stored as a file."""
        return self.output.size

    @property
    def uri(self) -> str | None:
        """The URI of the stored file, None if the output is not stored as a file."""
        return self.output.uri

    def open(self) -> IO[bytes]:
        """Open the stored file for reading, in binary mode.

        :raises FlowInputError: the output is not stored as a file.
        """
        return self.open_file()


CheckFunction = Callable[[CheckedOutput], Any]
"""Returns None or True to accept an output; else False, or the problem as a text, or a list of problems."""


@dataclass(frozen=True, kw_only=True)
class GlbCheck:
    """Demands of a 3D model: a complete, valid GLB file, within bounds.

    A model that is truncated, or whose header, buffer views, accessors or meshes are not valid, is always
    rejected. Only the header and the headers of its textures are read, except for `is_watertight`.

    :param max_triangles: the largest number of triangles of all meshes together; None for any number.
    :param max_bytes: the largest size of the file; None for any size.
    :param needs_texture: whether a part of the model must have a texture.
    :param max_texture_size: the largest width and height of a texture, in pixels; None for any size.
    :param is_watertight: whether every mesh must be closed, for example to be printed. It needs trimesh (the
        extra `checks`), which the worker loads the geometry with.
    :raises FlowInputError: a value is not valid.
    """

    max_triangles: int | None = None
    max_bytes: int | None = None
    needs_texture: bool = False
    max_texture_size: int | None = DEFAULT_MAX_TEXTURE_SIZE
    is_watertight: bool = False

    def __post_init__(self) -> None:
        """Validate the values."""
        _validate_numbers(self, "max_triangles", "max_bytes", "max_texture_size")
        _validate_booleans(self, "needs_texture", "is_watertight")

    def find_problems(self, model: Model) -> Iterator[str]:
        """Yield what is wrong with a model, each as the rest of "the file ...". The geometry is not read."""
        if model.problems:
            yield from model.problems
            return
        yield from _compare("has {:,} triangles", model.triangles, "max_triangles", self.max_triangles)
        yield from _compare("has {:,} bytes", model.size, "max_bytes", self.max_bytes)
        if self.needs_texture and not model.has_texture:
            yield "has no texture (needs_texture)"
        limit = self.max_texture_size
        sizes = [(size.width, size.height) for size in model.textures if size is not None]
        if sizes and limit is not None and (largest := max(sizes, key=max)) and max(largest) > limit:
            yield (
                f"has a texture of {largest[0]:,} x {largest[1]:,} pixels, more than max_texture_size "
                f"({limit:,})"
            )


@dataclass(frozen=True, kw_only=True)
class ImageCheck:
    """Demands of a picture: complete, and of a size. A picture that is truncated is always rejected.

    :param min_width: in pixels, None for any, and so for the other bounds.
    :param max_bytes: the largest size of the file; None for any size.
    :raises FlowInputError: a value is not valid.
    """

    min_width: int | None = None
    min_height: int | None = None
    max_width: int | None = None
    max_height: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        """Validate the values."""
        _validate_numbers(self, *(field.name for field in fields(self)))

    def find_problems(self, size: PictureSize, file_size: int) -> Iterator[str]:
        """Yield what is wrong with a picture, each as the rest of "the file ..."."""
        yield from _compare("is {:,} pixels wide", size.width, "max_width", self.max_width)
        yield from _compare("is {:,} pixels high", size.height, "max_height", self.max_height)
        yield from _compare("has {:,} bytes", file_size, "max_bytes", self.max_bytes)
        for what, value, name in (("wide", size.width, "min_width"), ("high", size.height, "min_height")):
            limit = getattr(self, name)
            if limit is not None and value < limit:
                yield f"is {value:,} pixels {what}, less than {name} ({limit:,})"


@dataclass(frozen=True, kw_only=True)
class TextCheck:
    """Demands of a text.

    :param json_schema: a JSON Schema that the text must match as JSON; None for any text. References to
        other documents are not fetched.
    :param max_characters: the largest number of characters; None for any number.
    :param matches: a regular expression that must match somewhere in the text (`re.search`); None for any
        text.
    :raises FlowInputError: a value is not valid.
    """

    json_schema: Mapping[str, Any] | None = None
    max_characters: int | None = None
    matches: str | None = None

    def __post_init__(self) -> None:
        """Validate the values."""
        _validate_numbers(self, "max_characters")
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise FlowInputError(f"TextCheck: json_schema must be a dict, not {self.json_schema!r}")
        if self.matches is None:
            return
        try:
            re.compile(self.matches)
        except (re.error, TypeError) as error:
            raise FlowInputError(
                f"TextCheck: matches must be a regular expression, not {self.matches!r}: {error}"
            ) from error

    def find_problems(self, text: str) -> Iterator[str]:
        """Yield what is wrong with a text, without the schema, each as the rest of "the text ..."."""
        yield from _compare("has {:,} characters", len(text), "max_characters", self.max_characters)
        if self.matches is not None and re.search(self.matches, text) is None:
            yield f"does not match the regular expression {self.matches!r} (matches)"


Check = GlbCheck | ImageCheck | TextCheck | CheckFunction


def to_checks(check_outputs: Any) -> tuple[Check, ...]:
    """Return the checks that the argument `check_outputs` of a task names; empty for None.

    :raises FlowInputError: it is not valid.
    """
    if check_outputs is None:
        return ()
    rows = check_outputs if isinstance(check_outputs, list | tuple) else [check_outputs]
    for row in rows:
        if is_task(row) or is_decorated_function(row):
            raise FlowInputError(f"check_outputs must be {CHECKS_HINT}, not a task; pass a plain function")
        if isinstance(row, type):
            raise FlowInputError(
                f"check_outputs must be {CHECKS_HINT}, not a class; write {row.__name__}(...)"
            )
        if not isinstance(row, GlbCheck | ImageCheck | TextCheck) and not callable(row):
            raise FlowInputError(f"check_outputs must be {CHECKS_HINT}, not {row!r}")
    if not rows:
        raise FlowInputError(f"check_outputs is empty; it must be {CHECKS_HINT}, or None for no checks")
    return tuple(rows)


def validate_rejection(check_outputs: Any, on_rejected: Any, check_retries: Any) -> None:
    """Validate the arguments about rejected outputs.

    :raises FlowInputError: one is not valid.
    """
    if on_rejected not in {FAIL, AGAIN}:
        raise FlowInputError(f"on_rejected must be {FAIL!r} or {AGAIN!r}, not {on_rejected!r}")
    if on_rejected == AGAIN and check_outputs is None:
        raise FlowInputError(f"on_rejected={AGAIN!r} needs check_outputs: without checks nothing is rejected")
    is_count = isinstance(check_retries, int) and not isinstance(check_retries, bool)
    if not is_count or not 1 <= check_retries <= MAX_CHECK_RETRIES:
        raise FlowInputError(
            f"check_retries must be an integer from 1 to {MAX_CHECK_RETRIES}, not {check_retries!r}: each "
            "is another flow run, which is billed"
        )


def needs_files(check: Check) -> str | None:
    """Return the name of a check that reads stored files, None for one that may do without."""
    return get_check_name(check) if isinstance(check, GlbCheck | ImageCheck) else None


def get_check_name(check: Check) -> str:
    """Return the name of a check for messages: that of its class or function."""
    if isinstance(check, GlbCheck | ImageCheck | TextCheck):
        return type(check).__name__
    return str(getattr(check, "__name__", None) or type(check).__name__)


def to_problems(returned: Any, name: str) -> list[str]:
    """Return the problems in what a function has returned; empty if it accepts the output.

    :param name: of the function.
    :raises FlowInputError: it returned something else.
    """
    if returned is None or returned is True:
        return []
    if returned is False:
        return [f"is rejected by {name}"]
    if isinstance(returned, str):
        return [returned] if returned else []
    if isinstance(returned, Iterable) and not isinstance(returned, Mapping | bytes):
        rows = list(returned)
        if all(isinstance(row, str) for row in rows):
            return rows
    raise FlowInputError(
        f"The check {name} must return None, True or False, a text or a list of texts, not {returned!r}"
    )


def _compare(text: str, value: int, name: str, limit: int | None) -> Iterator[str]:
    if limit is not None and value > limit:
        yield f"{text.format(value)}, more than {name} ({limit:,})"


def _validate_numbers(check: object, *names: str) -> None:
    for name in names:
        value = getattr(check, name)
        is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if value is not None and not is_number:
            raise FlowInputError(
                f"{type(check).__name__}: {name} must be a positive integer, or None for any value, "
                f"not {value!r}"
            )


def _validate_booleans(check: object, *names: str) -> None:
    for name in names:
        value = getattr(check, name)
        if not isinstance(value, bool):
            raise FlowInputError(f"{type(check).__name__}: {name} must be True or False, not {value!r}")
