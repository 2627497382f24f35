"""What is wrong with a request, collected from wherever it is read or checked, and told in one error.

It finds nothing itself: inputs.py, delivery.py, the services and checking.py do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow_provider_flows.core.exceptions import FlowInputError

NOTHING_MADE = "No flow run was made."


class Findings:
    """Reasons to refuse a request, each once, in the order in which they were found; false while there are none."""

    def __init__(self) -> None:
        """Begin with none."""
        self.spoilt: set[str] = (
            set()
        )  # arguments, or parts such as `inputs[1]`, of which nothing more can be known
        self._lasting: dict[str, bool] = {}
        self._head = self._takes = self._way_out = ""

    def __len__(self) -> int:
        """Tell how many there are."""
        return len(self._lasting)

    def add(self, *texts: str, spoils: str | None = None, lasting: bool = True) -> None:
        """Note what was found.

        :param spoils: the argument that is not worth to be looked into any more.
        :param lasting: whether it holds for a retry as well.
        """
        for text in texts:
            self._lasting[text] = lasting or self._lasting.get(text, False)
        if texts and spoils is not None:
            self.spoilt.add(spoils)

    @contextmanager
    def noted(self, spoils: str | None = None) -> Iterator[None]:
        """Note a FlowInputError that ends the block, in place of raising it."""
        try:
            yield
        except FlowInputError as error:
            self.add(str(error), spoils=spoils, lasting=error.lasting)

    def join(self, others: Findings) -> None:
        """Note all that was found elsewhere."""
        for text, lasting in others._lasting.items():
            self.add(text, lasting=lasting)
        self.spoilt |= others.spoilt
        self.frame(others._head, others._takes, others._way_out)

    def frame(self, head: str = "", takes: str = "", way_out: str = "") -> None:
        """Keep what is told around the findings: of what they are, what would do, and what to do if they are wrong."""
        self._head, self._takes = head or self._head, takes or self._takes
        self._way_out = way_out or self._way_out

    def error(self, fate: str = "") -> FlowInputError:
        """Give the one error; a retry makes sense only if nothing in it lasts.

        :param fate: what became of the request.
        """
        found = "; ".join(text.removesuffix(".") for text in self._lasting)
        parts = (f"{self._head}{found}.", self._takes, fate, self._way_out)
        return FlowInputError(" ".join(part for part in parts if part), lasting=any(self._lasting.values()))

    def tell(self, fate: str = "") -> None:
        """Raise what was found, if anything was.

        :raises FlowInputError: naming all of it.
        """
        if self:
            raise self.error(fate) from None  # what led to one of them may show what must not be told


@contextmanager
def collecting(findings: Findings | None) -> Iterator[Findings]:
    """Give the findings that are given, whose owner tells them; or new ones, which are told at the end of the block.

    :raises FlowInputError: there are any, and no owner.
    """
    found = Findings() if findings is None else findings
    yield found
    if findings is None:
        found.tell()
