"""What is wrong with a request, collected from wherever it is read or checked, and told in one error.

It finds nothing itself: inputs.py, delivery.py, the services and checking.py do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_flows.core.exceptions import FlowInputError

NOTHING_STARTED = "No flow run was made."


class Problems:
    """Reasons to refuse a request, each once, in the order in which they were found; false while there are none."""

    def __init__(self) -> None:
        """Begin with none."""
        self.invalid: set[str] = (
            set()
        )  # arguments, or parts such as `inputs[1]`, of which nothing more can be known
        self._permanent: dict[str, bool] = {}
        self._head = self._accepts = self._hint = ""

    def __len__(self) -> int:
        """Tell how many there are."""
        return len(self._permanent)

    def add(self, *texts: str, invalidates: str | None = None, is_permanent: bool = True) -> None:
        """Note what was found.

        :param spoils: the argument that is not worth to be looked into any more.
        :param lasting: whether it holds for a retry as well.
        """
        for text in texts:
            self._permanent[text] = is_permanent or self._permanent.get(text, False)
        if texts and invalidates is not None:
            self.invalid.add(invalidates)

    @contextmanager
    def collect(self, invalidates: str | None = None) -> Iterator[None]:
        """Note a FlowInputError that ends the block, in place of raising it."""
        try:
            yield
        except FlowInputError as error:
            self.add(str(error), invalidates=invalidates, is_permanent=error.is_permanent)

    def extend(self, others: Problems) -> None:
        """Note all that was found elsewhere."""
        for text, is_permanent in others._permanent.items():
            self.add(text, is_permanent=is_permanent)
        self.invalid |= others.invalid
        self.context(others._head, others._accepts, others._hint)

    def context(self, head: str = "", accepts: str = "", hint: str = "") -> None:
        """Keep what is told around the findings: of what they are, what would do, and what to do if they are wrong."""
        self._head, self._accepts = head or self._head, accepts or self._accepts
        self._hint = hint or self._hint

    def error(self, consequence: str = "") -> FlowInputError:
        """Give the one error; a retry makes sense only if nothing in it lasts.

        :param fate: what became of the request.
        """
        summary = "; ".join(text.removesuffix(".") for text in self._permanent)
        parts = (f"{self._head}{summary}.", self._accepts, consequence, self._hint)
        return FlowInputError(
            " ".join(part for part in parts if part), is_permanent=any(self._permanent.values())
        )

    def raise_if_any(self, consequence: str = "") -> None:
        """Raise what was found, if anything was.

        :raises FlowInputError: naming all of it.
        """
        if self:
            raise self.error(consequence) from None  # what led to one of them may show what must not be told


@contextmanager
def collect_problems(problems: Problems | None) -> Iterator[Problems]:
    """Give the findings that are given, whose owner tells them; or new ones, which are told at the end of the block.

    :raises FlowInputError: there are any, and no owner.
    """
    target = Problems() if problems is None else problems
    yield target
    if problems is None:
        target.raise_if_any()
