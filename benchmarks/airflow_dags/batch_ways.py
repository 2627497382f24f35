"""The DAGs of benchmark 6: the flow runs of one batch, in a worker and deferred.

Those of the mapped ways are in four_ways.py.
"""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_flows.operators import RunFlowBatchOperator

DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=5)}
MAX_ACTIVE_RUNS = int(os.environ.get("FLOWS_BENCH_MAX_ACTIVE", "50"))

for name, deferrable in {"batch": False, "batch_deferrable": True}.items():
    with DAG(name, schedule=None, default_args=DEFAULTS) as dag:
        RunFlowBatchOperator(
            task_id="run",
            flow="model_generate_fromprompt",
            items="{{ dag_run.conf['items'] }}",
            parameters={"quality": "low"},
            output_path="{{ dag_run.conf['output'] }}",
            max_active_runs=MAX_ACTIVE_RUNS,
            flows_conn_id="flows_bench",
            deferrable=deferrable,
        )
    globals()[name] = dag
