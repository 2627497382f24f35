"""`@task.flow`: a function returns the inputs of a flow, and its task runs the flow as `RunFlowOperator`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from inspect import iscoroutinefunction, unwrap
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Never, ParamSpec, Protocol, cast, overload

from airflow.providers.common.compat.sdk import DecoratedOperator, determine_kwargs, task_decorator_factory
from airflow.sdk import task as airflow_task

from airflow_provider_flows.core.exceptions import FlowInputError
from airflow_provider_flows.core.template_problems import (
    describe_misplaced_task,
    is_decorated_function,
    require_booleans,
)
from airflow_provider_flows.operators import RunFlowOperator
from airflow_provider_flows.worker.task_state import PROMPTS_KEY
from airflow_provider_flows.worker.template_check import FUNCTION_ARGUMENTS

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath, RetryPolicy, XComArg
    from airflow.sdk.definitions.decorators import TaskDecoratorCollection
    from airflow.sdk.definitions.xcom_arg import (
        PlainXComArg,
    )  # what Airflow returns, and what accepts `["outputs"]`

log = logging.getLogger(__name__)

RETURNABLE_ARGUMENTS = frozenset(RunFlowOperator.template_fields)
DEFERRED_ARGUMENTS_KEY = "flow_deferred_arguments"  # in the task state store
# the returned arguments that are needed after a deferral
_DEFERRED_ARGUMENTS = ("flow", "flows_conn_id", "output_path", "output_conn_id", "output_name", "reuse_path")
_REPORTED_ARGUMENTS = ("parameters", "inputs")  # those for OpenLineage and the UI

MAX_SAVED_PROMPTS, MAX_SAVED_PROMPT_LENGTH = 20, 200  # in the task state store

P = ParamSpec("P")


class FlowDecoratedOperator(DecoratedOperator, RunFlowOperator):
    """Run a flow with what a function returns.

    The function is called in each try of the task, and not again after a deferral, except for another flow
    run in place of one whose outputs are rejected. It returns

    * the inputs, in any form that `RunFlowOperator` accepts: a string is a prompt, and never names a file;
    * or a dict with the key `inputs`, whose other keys are arguments too: `flow`, `parameters`, `additional`,
      `flows_conn_id`, `input_conn_id`, `output_path`, `output_conn_id`, `output_name`, `reuse_path`. They
      replace those of the decorator.

    A retry resumes the flow run of the earlier try only if the function returns the same again. Otherwise it
    starts a new one. If the function raises, and no other try follows, the flow run of the earlier try is
    aborted (`abort_on_kill`), over the connection that it was started with (Airflow 3.3 and later).

    :param python_callable: the function.
    :param render_returned: whether Jinja templates in what the function returns are rendered, as in
        `@task.bash`. Do not set it if a text may come from a service or another untrusted source: a template
        can read connections and variables.
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *RunFlowOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **RunFlowOperator.template_fields_renderers,
    }
    custom_operator_name: str = "@task.flow"
    overwrite_rtif_after_execution: bool = True  # the UI then shows what the function returned

    _own_arguments: Mapping[str, Any] | None = None  # the decorator's, in a try that was deferred

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
            message = (
                "@task.flow has no argument inputs: the function returns the inputs. Remove the argument"
            )
            raise FlowInputError(message)
        require_booleans({"render_returned": render_returned})
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            flow=flow,
            inputs=None,  # those in `default_args` are for other tasks
            **kwargs,
        )
        self.render_returned = render_returned
        if iscoroutinefunction(unwrap(python_callable)):
            message = (
                f"{python_callable.__name__} must be a plain function: @task.flow does not await a coroutine"
            )
            raise FlowInputError(message)

    def execute(self, context: Context) -> Any:
        """Call the function, then run the flow."""
        with self._abort_earlier_run_on_error(context):
            self._call_function(context)
        return super().execute(context)

    def _call_function(self, context: Context) -> None:
        """Set the arguments that the function returns."""
        merged: Any = {**context, **self.op_kwargs}
        accepted = determine_kwargs(self.python_callable, self.op_args, merged)
        arguments = to_arguments(self.python_callable(*self.op_args, **accepted))
        arguments = self._render_returned(arguments, merged)
        if not arguments.get("flow", self.flow):
            message = (
                "No flow is set: write @task.flow(flow=...), or return {'flow': ..., 'inputs': ...} from "
                "the function"
            )
            raise FlowInputError(message)
        if self.deferrable:
            is_changed = any(
                getattr(self, name) != arguments.get(name, getattr(self, name))
                for name in _DEFERRED_ARGUMENTS
            )
        self._set_arguments(arguments)
        if self.deferrable:
            self._save_deferred_arguments(context, in_store=is_changed)

    def _restore_arguments(self, context: Context) -> None:
        """Call the function again for another run after a deferral: its inputs are saved nowhere."""
        if self._own_arguments is not None:
            self._set_arguments(self._own_arguments)
            self._call_function(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the deferral with the arguments that the function returned before it.

        If no flow run was started yet, the function is called again: its inputs are saved nowhere.
        """
        if next_method != self.start_after_wait.__name__:
            self._own_arguments = {name: getattr(self, name) for name in RETURNABLE_ARGUMENTS}
            self._set_arguments(self._load_deferred_arguments(next_kwargs or {}, context))
        return super().resume_execution(next_method, next_kwargs, context)

    @contextmanager
    def _abort_earlier_run_on_error(self, context: Context) -> Iterator[None]:
        """Abort an earlier try's flow run if the block raises or is killed, and no retry resumes the run."""
        if int(context["ti"].try_number) <= 1:
            yield
            return
        try:
            task_try = self._create_task_try(context, use_saved_connection=True)
        except Exception as error:  # noqa: BLE001  # without a saved one, the function may name the connection
            self.log.info(
                "The flow run of an earlier try cannot be reached before the function is called: %s", error
            )
            yield
            return
        with self._run_try(task_try):
            yield

    def _render_returned(self, arguments: dict[str, Any], context: Any) -> dict[str, Any]:
        """Return the arguments from the function, rendered if requested; they replace the decorator's."""
        returned_problems = {
            name: self._find_returned_problems(name, value) for name, value in arguments.items()
        }
        self._template_problems = {
            name: problems for name, problems in self._template_problems.items() if name not in arguments
        }
        if self.render_returned:
            arguments = {
                name: self.render_argument([name], value, context) for name, value in arguments.items()
            }
        for name, problems in returned_problems.items():
            self._template_problems = {
                **self._template_problems,
                name: {**self._template_problems.get(name, {}), **problems},
            }
        return arguments

    def _find_returned_problems(self, name: str, returned: Any) -> dict[str, str]:
        """Return the problems of templates in the function's own arguments whose text the function returned.

        :param returned: the operator's argument `name`.
        """
        from airflow_provider_flows.storage.inputs import iter_texts  # imports stay cheap

        return {
            place: f"{where} of the function: {problem}"
            for argument in FUNCTION_ARGUMENTS
            for where, rendered in iter_texts(argument, getattr(self, argument))
            if (problem := self._template_problems.get(argument, {}).get(where)) is not None
            for place, text in iter_texts(name, returned)
            if text == rendered or ("None" in rendered and rendered in text)
        }

    def _set_arguments(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def _save_deferred_arguments(self, context: Context, *, in_store: bool) -> None:
        """Save what is needed after the deferral, because the function is not called again.

        The trigger has it, and its event returns it. An XCom would not do, which other tasks and users may
        be able to write: they could have files stored elsewhere. Of the inputs only the files' URIs are
        saved there, for OpenLineage and the UI: prompts may be large, and Airflow logs the event. The UI has
        the beginnings of a few prompts from the task state store.

        :param in_store: whether to save it in the task state store as well (Airflow 3.3 and later), because
            the decorator's own arguments do not serve if no event comes.
        """
        from airflow.providers.common.compat.sdk import redact

        from airflow_provider_flows.core.redaction import redact_parameters, redact_uris
        from airflow_provider_flows.storage.inputs import get_file_uris

        values = {name: getattr(self, name) for name in _DEFERRED_ARGUMENTS}
        # a path may be a Path; any other value that is no text is rejected when the flow is started
        texts = {name: value if value is None else str(value) for name, value in values.items()}
        self._deferred_arguments = {
            **texts,
            "parameters": redact_parameters(self.parameters, redact),
            "inputs": [{"uri": uri} for uri in redact_uris(get_file_uris(self.inputs))],
        }
        store: Any = context.get("task_state_store")
        prompts = _shorten_prompts(redact_parameters({"inputs": self.inputs}, redact)["inputs"])
        if self.durable and prompts and store is not None:
            try:
                store.set(PROMPTS_KEY, {"prompts": prompts, "try_number": context["ti"].try_number})
            except Exception as error:  # noqa: BLE001  # the store may raise anything, and the run needs no prompts
                reason = type(error).__name__
                log.warning("Airflow's task state store failed (%s): the UI shows no prompts", reason)
        if in_store and store is not None:
            store.set(DEFERRED_ARGUMENTS_KEY, {**texts, "try_number": context["ti"].try_number})

    def _load_deferred_arguments(self, next_kwargs: Mapping[str, Any], context: Context) -> dict[str, Any]:
        """Return what was saved before the deferral: from the event, else from the task state store."""
        event, store = next_kwargs.get("event"), context.get("task_state_store")
        found = event.get("task_arguments") if isinstance(event, Mapping) else None
        self._deferred_arguments = found  # for the next trigger
        if found is None and store is not None:
            found = store.get(DEFERRED_ARGUMENTS_KEY)
            if isinstance(found, Mapping) and found.get("try_number") != context["ti"].try_number:
                return {}
        names = (*_DEFERRED_ARGUMENTS, *_REPORTED_ARGUMENTS)
        return {name: found[name] for name in names if name in found} if isinstance(found, Mapping) else {}


def to_arguments(returned: Any) -> dict[str, Any]:
    """Return the operator's arguments in what a function returned.

    A dict with the key `inputs` is taken as arguments, anything else as the inputs.

    :raises FlowInputError: the function returned None, or a dict that could be either.
    """
    if is_decorated_function(returned):
        problem = describe_misplaced_task("inputs", returned)
        message = (
            f"The function of @task.flow returned a value that {problem}. Pass what it returns to this "
            "function as an argument"
        )
        raise FlowInputError(message)
    if returned is None:
        message = (
            "The function of @task.flow returned None. "
            "Return the inputs, or {'inputs': None} for a flow without inputs"
        )
        raise FlowInputError(message)
    if not isinstance(returned, Mapping) or not returned:
        return {"inputs": returned}
    names = set(map(str, returned))
    if "inputs" in names:
        _reject_unknown_arguments(names - RETURNABLE_ARGUMENTS)
        return dict(returned)
    if names <= RETURNABLE_ARGUMENTS:
        message = (
            f"The function of @task.flow returned a dict with {_quote_names(names)}, which are names of "
            "arguments, but without 'inputs'. Add 'inputs'; or, if these are variables of the flow, return "
            "{'inputs': {...}}"
        )
        raise FlowInputError(message)
    return {"inputs": returned}


def _shorten_prompts(inputs: Any) -> list[str]:
    """Return the beginnings of the first prompts among inputs, and of variables, with their names.

    Content of files is left out.
    """
    if isinstance(inputs, Mapping) and not inputs.keys() & {"data", "uri", "outputs"}:
        texts: list[Any] = [f"{name}: {text}" for name, text in inputs.items() if isinstance(text, str)]
    else:
        items = inputs if isinstance(inputs, list | tuple) else [inputs]
        texts = [item.get("data") if isinstance(item, Mapping) else item for item in items]
    prompts = [text for text in texts if isinstance(text, str) and not text.startswith("data:")]
    return [text[:MAX_SAVED_PROMPT_LENGTH] for text in prompts[:MAX_SAVED_PROMPTS]]


def _reject_unknown_arguments(names: set[str]) -> None:
    if not names:
        return
    close_matches = {name: get_close_matches(name, RETURNABLE_ARGUMENTS, 1) for name in sorted(names)}
    suggestions = "".join(
        f" Instead of {name!r}, did you mean {matches[0]!r}?"
        for name, matches in close_matches.items()
        if matches
    )
    message = (
        f"The function of @task.flow returned a dict with 'inputs', and with {_quote_names(names)}, which "
        "cannot be returned as an argument. "
        f"Arguments are {_quote_names(RETURNABLE_ARGUMENTS)}.{suggestions} "
        "If 'inputs' is a variable of the flow, return {'inputs': {...}} with all variables"
    )
    raise FlowInputError(message)


def _quote_names(names: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _decorate(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    """Return the task of a function that returns a flow's inputs. Airflow registers this as `@task.flow`.

    :param kwargs: the arguments of `RunFlowOperator` except `inputs`, and `render_returned`.
    """
    # Airflow's default comes from the function's annotation, which describes the inputs, not the outputs
    kwargs.setdefault("multiple_outputs", False)
    return task_decorator_factory(python_callable, decorated_operator_class=FlowDecoratedOperator, **kwargs)


class FlowTask(Protocol[P]):
    """A function that `@task.flow` has decorated."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> PlainXComArg: ...
    # any argument may also be what another task returns, whatever the function's own types are
    @overload
    def __call__(self, *args: Any, **kwargs: Any) -> PlainXComArg: ...

    def partial(self, **kwargs: Any) -> FlowTask[...]:
        """Set some arguments of the function; `expand` maps the others."""

    def expand(self, **kwargs: XComArg | Collection[Any]) -> PlainXComArg:
        """Map the task over arguments of the function."""

    def expand_kwargs(
        self, kwargs: XComArg | Sequence[Mapping[str, Any] | XComArg], *, strict: bool = True
    ) -> PlainXComArg:
        """Map the task over complete sets of arguments of the function."""

    def override(self, **kwargs: Any) -> FlowTask[P]:
        """Return the task with other arguments of the decorator."""


class FlowDecorator(Protocol):
    """`@task.flow` itself, with and without arguments."""

    @overload
    def __call__(self, python_callable: Callable[P, ReturnValue], /) -> FlowTask[P]: ...
    @overload
    def __call__(
        self,
        *,
        flow: str = ...,
        inputs: Never = ...,
        parameters: Mapping[str, Any] | None = ...,
        additional: Any = ...,
        flows_conn_id: str = ...,
        input_conn_id: str | None = ...,
        wait_for_completion: bool = ...,
        deferrable: bool = ...,
        poll_interval: float | timedelta = ...,
        max_poll_interval: float | timedelta = ...,
        timeout: float | timedelta | None = ...,
        output_path: str | PathLike[str] | ObjectStoragePath | None = ...,
        output_conn_id: str | None = ...,
        output_name: str | None = ...,
        reuse: bool | timedelta = ...,
        reuse_path: str | PathLike[str] | ObjectStoragePath | None = ...,
        max_xcom_bytes: int | None = ...,
        fetch_partial_outputs: bool = ...,
        delete_after_fetch: bool = ...,
        check_outputs: Any = ...,
        on_rejected: Literal["fail", "again"] = ...,
        check_retries: int = ...,
        durable: bool = ...,
        abort_on_kill: bool = ...,
        validate: bool = ...,
        retry_policy: RetryPolicy | None = ...,
        render_returned: bool = ...,
        **kwargs: Any,  # the arguments of every Airflow task
    ) -> Callable[[Callable[P, ReturnValue]], FlowTask[P]]: ...


if TYPE_CHECKING:
    # one input, several, a mapping of variables, or a dict of arguments with the key `inputs`
    ReturnValue = str | PathLike[str] | ObjectStoragePath | Sequence[Any] | Mapping[str, Any]

    class TaskDecorators(TaskDecoratorCollection):
        """Airflow's `task`, with `flow` among its decorators."""

        flow: FlowDecorator


flow_task: FlowDecorator = _decorate
# the same object, typed with `flow`: Airflow's own stub has no decorators of other providers
task = cast("TaskDecorators", airflow_task)
