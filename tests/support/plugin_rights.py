"""An auth manager with permissions for single DAGs, parts of DAGs and connections, as FAB has them.

Airflow's simple auth manager has roles only.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

DORAS_DAG = "rights_hers"  # the only DAG that dora may read
CARLS_CONNECTION = "flows_default"  # the only connection that carl may read


class SingleRights(SimpleAuthManager):
    """Airflow's simple auth manager, but dora, carl and xena lack some permissions of their role."""

    def is_authorized_dag(
        self, *, user: Any, details: Any = None, access_entity: Any = None, **kwargs: Any
    ) -> bool:
        """Deny dora all DAGs but one, and xena all XComs."""
        denied = user.username == "dora" and getattr(details, "id", None) != DORAS_DAG
        denied = denied or (user.username == "xena" and access_entity is DagAccessEntity.XCOM)
        return not denied and super().is_authorized_dag(
            user=user, details=details, access_entity=access_entity, **kwargs
        )

    def is_authorized_connection(self, *, user: Any, details: Any = None, **kwargs: Any) -> bool:
        """Deny carl all connections but one."""
        denied = user.username == "carl" and getattr(details, "conn_id", None) != CARLS_CONNECTION
        return not denied and super().is_authorized_connection(user=user, details=details, **kwargs)
