"""`@task.flow`: a function gives the inputs, and the task runs the flow with them and returns what `RunFlowOperator` returns.

It waits and fetches nothing (operators.py does), and which inputs a flow takes is for inputs.py and the services to say; what
type checkers know of it stands in task_types.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import iscoroutinefunction, unwrap
from typing import TYPE_CHECKING, Any, ClassVar, cast

from airflow.providers.common.compat.sdk import DecoratedOperator, determine_kwargs, task_decorator_factory
from airflow.sdk import task as airflow_task

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.operators import RunFlowOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_flows.decorator_types import FlowDecorator, Tasks

RETURNABLE = frozenset(RunFlowOperator.template_fields)  # the arguments that a function may return
ARGUMENTS_KEY = "flow_arguments"
_DEFERRED_ARGUMENTS = (
    "flow",
    "flows_conn_id",
    "output_path",
    "output_conn_id",
)  # those of them that are needed after a deferral


class FlowDecoratedOperator(DecoratedOperator, RunFlowOperator):
    """Run a flow with what a function returns.

    The function is called when the task runs, also at each retry, and not again after a deferral. It returns

    * the inputs, in any form that `RunFlowOperator` takes;
    * or a dict with the key `inputs`, whose other keys are arguments too: `flow`, `parameters`, `additional`, `flows_conn_id`,
      `input_conn_id`, `output_path`, `output_conn_id`. They take the place of those that the decorator was given.

    A retry goes on with the flow run of the try before it only if the function returns the same again; else it starts a new one.
    Where the function raises, and no other try follows, the run of the try before is stopped (`abort_on_kill`), over the
    connection that it was started by (Airflow 3.3 and later remember it).

    :param python_callable: the function.
    :param render_returned: whether Jinja templates in what the function returns are rendered, as `@task.bash` does. Leave it off
        where a text may come from a service or another stranger: a template can read connections and variables.
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *RunFlowOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **RunFlowOperator.template_fields_renderers,
    }
    custom_operator_name: str = "@task.flow"
    overwrite_rtif_after_execution: bool = True  # Airflow's name; so that it shows what the function returned

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        flow: str = "",
        render_returned: bool = False,
        **kwargs: Any,
    ) -> None:
        if "inputs" in kwargs:
            message = "inputs is no argument of @task.flow: the function returns them"
            raise FlowInputError(message)
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, flow=flow, **kwargs
        )
        self.render_returned = render_returned
        if iscoroutinefunction(unwrap(python_callable)):
            message = f"{python_callable.__name__} must be a plain function: @task.flow does not await what it returns"
            raise FlowInputError(message)

    def execute(self, context: Context) -> Any:
        """Call the function, then run the flow."""
        with self._abort_earlier_run_on_error(context):
            merged: Any = {**context, **self.op_kwargs}
            known = determine_kwargs(self.python_callable, self.op_args, merged)
            returned = to_arguments(self.python_callable(*self.op_args, **known))
            self._set_arguments(self.render_template(returned, merged) if self.render_returned else returned)
            if self.deferrable:
                self._push_arguments(context)
        return super().execute(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after the deferral with what the function returned before it."""
        ti: Any = context["ti"]
        self._set_arguments(
            ti.xcom_pull(key=ARGUMENTS_KEY, task_ids=ti.task_id, map_indexes=ti.map_index) or {}
        )
        return super().resume_execution(next_method, next_kwargs, context)

    @contextmanager
    def _abort_earlier_run_on_error(self, context: Context) -> Iterator[None]:
        """Let an error of the function, or a kill while it works, leave no run behind that an earlier try started."""
        if int(context["ti"].try_number) <= 1:
            yield
            return
        try:
            task_try = self._create_task_try(context, use_saved_connection=True)
        except Exception as error:  # noqa: BLE001  # where nothing is kept: the function may name a connection, and this is none
            self.log.info(
                "What an earlier try left cannot be found out before the function is called: %s", error
            )
            yield
            return
        with task_try.abort_on_error():
            yield

    def _set_arguments(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def _push_arguments(self, context: Context) -> None:
        """Keep what is needed after a deferral, for the function is not called again.

        In an XCom, because `dag.test()` forgets the arguments that a task defers with. Of the inputs the files' names are kept,
        which lineage and the user interface show; prompts may be large.
        """
        from airflow.providers.common.compat.sdk import redact

        from airflow_provider_flows.core.redaction import redact_parameters, redact_uris
        from airflow_provider_flows.storage.inputs import get_file_uris

        values = {
            name: getattr(self, name) for name in _DEFERRED_ARGUMENTS
        }  # where one is no text, the order refuses it, or takes it as one
        texts = {name: value if value is None else str(value) for name, value in values.items()}
        redacted = {
            "parameters": redact_parameters(self.parameters, redact),
            "inputs": redact_uris(get_file_uris(self.inputs)),
        }
        context["ti"].xcom_push(ARGUMENTS_KEY, {**texts, **redacted})


def to_arguments(returned: Any) -> dict[str, Any]:
    """Tell inputs from arguments: a dict with the key `inputs` holds arguments, anything else is the inputs.

    :raises FlowInputError: it is nothing, or a dict that could be either.
    """
    if returned is None:
        message = "The function of @task.flow returned nothing; it must return the inputs, or {'inputs': None} for a flow without"
        raise FlowInputError(message)
    if not isinstance(returned, Mapping) or not returned:
        return {"inputs": returned}
    names = set(map(str, returned))
    if "inputs" in names:
        _reject_unknown_arguments(names - RETURNABLE)
        return dict(returned)
    if names <= RETURNABLE:
        message = (
            f"The function of @task.flow returned a dict with {_quote_names(names)}, which are names of arguments, without 'inputs'. "
            "Put the inputs beside them; or, if they are variables of the flow, write {'inputs': {...}} around them"
        )
        raise FlowInputError(message)
    return {"inputs": returned}


def _reject_unknown_arguments(names: set[str]) -> None:
    if not names:
        return
    close_matches = {name: get_close_matches(name, RETURNABLE, 1) for name in sorted(names)}
    suggestions = "".join(
        f"; for {name!r}, do you mean {found[0]!r}?" for name, found in close_matches.items() if found
    )
    message = (
        f"The function of @task.flow returned a dict with 'inputs', so that it holds arguments, but {_quote_names(names)} is none of "
        f"them ({_quote_names(RETURNABLE)}){suggestions} If 'inputs' is a variable of the flow, write {{'inputs': {{...}}}} around them all"
    )
    raise FlowInputError(message)


def _quote_names(names: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _flow_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    """Make a task of a function that returns a flow's inputs; Airflow knows it as `@task.flow`.

    :param kwargs: the arguments of `RunFlowOperator` but `inputs`, and `render_returned`.
    """
    # Airflow would take it from the function's annotation, which tells of the inputs and not of what the task returns
    kwargs.setdefault("multiple_outputs", False)
    return task_decorator_factory(python_callable, decorated_operator_class=FlowDecoratedOperator, **kwargs)


flow_task: FlowDecorator = _flow_task
task = cast(
    "Tasks", airflow_task
)  # the same object, for type checkers with `flow`: Airflow's own stub names no other's decorators
