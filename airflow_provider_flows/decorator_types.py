"""What type checkers and editors know of `@task.flow`: the arguments that it takes, and what it makes of a function.

Nothing here is there at run time but the names: Airflow's own stub of `task` is closed to the decorators of other providers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from datetime import datetime, timedelta
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypedDict, Unpack, overload

if TYPE_CHECKING:
    from airflow.sdk import DAG, ObjectStoragePath, TaskGroup, XComArg
    from airflow.sdk.definitions.decorators import TaskDecoratorCollection
    from airflow.sdk.definitions.xcom_arg import (
        PlainXComArg,
    )  # what Airflow makes, and what takes `["outputs"]`

P = ParamSpec("P")

Callbacks = Callable[..., None] | Sequence[Callable[..., None]] | None


class TaskArguments(TypedDict, total=False):
    """The arguments of every Airflow task (`BaseOperator`)."""

    task_id: str
    owner: str
    email: str | Sequence[str] | None
    email_on_retry: bool
    email_on_failure: bool
    retries: int | None
    retry_delay: timedelta | float
    retry_exponential_backoff: float
    max_retry_delay: timedelta | float | None
    retry_policy: Any
    start_date: datetime | None
    end_date: datetime | None
    depends_on_past: bool
    ignore_first_depends_on_past: bool
    wait_for_past_depends_before_skipping: bool
    wait_for_downstream: bool
    dag: DAG | None
    params: MutableMapping[str, Any] | None
    default_args: dict[str, Any] | None
    priority_weight: int
    weight_rule: Any
    queue: str
    pool: str | None
    pool_slots: int
    sla: timedelta | None
    execution_timeout: timedelta | None
    on_execute_callback: Callbacks
    on_failure_callback: Callbacks
    on_success_callback: Callbacks
    on_retry_callback: Callbacks
    on_skipped_callback: Callbacks
    pre_execute: Callable[..., None] | None
    post_execute: Callable[..., None] | None
    trigger_rule: str
    resources: dict[str, Any] | None
    run_as_user: str | None
    map_index_template: str | None
    max_active_tis_per_dag: int | None
    max_active_tis_per_dagrun: int | None
    executor: str | None
    executor_config: dict[str, Any] | None
    do_xcom_push: bool
    multiple_outputs: bool
    inlets: Any
    outlets: Any
    task_group: TaskGroup | None
    doc: str | None
    doc_md: str | None
    doc_json: str | None
    doc_yaml: str | None
    doc_rst: str | None
    task_display_name: str | None
    logger_name: str | None
    allow_nested_operators: bool
    render_template_as_native_obj: bool | None


class FlowTaskArguments(TaskArguments, total=False):
    """The arguments of `@task.flow`: those of `RunFlowOperator` but `inputs`, which the function returns."""

    flow: str
    parameters: Mapping[str, Any] | None
    additional: Any
    flows_conn_id: str
    input_conn_id: str | None
    wait_for_completion: bool
    deferrable: bool
    poll_interval: float | timedelta
    max_poll_interval: float | timedelta
    timeout: float | timedelta | None
    output_path: str | None
    output_conn_id: str | None
    max_xcom_bytes: int | None
    fetch_partial_outputs: bool
    delete_after_fetch: bool
    durable: bool
    abort_on_kill: bool
    validate: bool
    render_returned: bool


if TYPE_CHECKING:
    # what a function may return: one input, several, a mapping of variables, or a dict of arguments with the key `inputs`
    ReturnValue = str | PathLike[str] | ObjectStoragePath | Sequence[Any] | Mapping[str, Any]

    class FlowTask(Protocol[P]):
        """A function that was made a task."""

        @overload
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> PlainXComArg: ...
        # any argument may be what another task returns, which no type of the function's can say
        @overload
        def __call__(self, *args: Any, **kwargs: Any) -> PlainXComArg: ...

        def partial(self, **kwargs: Any) -> FlowTask[...]:
            """Give the function some of its arguments, and the others by `expand`."""

        def expand(self, **kwargs: XComArg | Collection[Any]) -> PlainXComArg:
            """Map the task over arguments of the function."""

        def expand_kwargs(
            self, kwargs: XComArg | Sequence[Mapping[str, Any] | XComArg], *, strict: bool = True
        ) -> PlainXComArg:
            """Map the task over whole sets of arguments of the function."""

        def override(self, **kwargs: Unpack[FlowTaskArguments]) -> FlowTask[P]:
            """Give the same task with other arguments."""

    class FlowDecorator(Protocol):
        """`@task.flow` itself, with and without arguments."""

        @overload
        def __call__(self, python_callable: Callable[P, ReturnValue], /) -> FlowTask[P]: ...
        @overload
        def __call__(
            self, **kwargs: Unpack[FlowTaskArguments]
        ) -> Callable[[Callable[P, ReturnValue]], FlowTask[P]]: ...

    class Tasks(TaskDecoratorCollection):
        """Airflow's `task` with `flow` among its decorators."""

        flow: FlowDecorator
