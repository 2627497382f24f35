"""An auth manager whose users have rights to single DAGs, parts of DAGs and connections, as Airflow's own simple one cannot say.

It stands in for those that can: FAB's roles, Keycloak's policies, teams.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

HERS = "rights_hers"  # the only DAG that dora may see
HIS = "flows_default"  # the only connection that carl may read


class SingleRights(SimpleAuthManager):
    """Airflow's simple auth manager, but dora, carl and xena may not see everything that their role may."""

    def is_authorized_dag(
        self, *, user: Any, details: Any = None, access_entity: Any = None, **asked: Any
    ) -> bool:
        """Show dora one DAG, and xena no XComs."""
        refused = user.username == "dora" and getattr(details, "id", None) != HERS
        refused = refused or (user.username == "xena" and access_entity is DagAccessEntity.XCOM)
        return not refused and super().is_authorized_dag(
            user=user, details=details, access_entity=access_entity, **asked
        )

    def is_authorized_connection(self, *, user: Any, details: Any = None, **asked: Any) -> bool:
        """Show carl one connection."""
        refused = user.username == "carl" and getattr(details, "conn_id", None) != HIS
        return not refused and super().is_authorized_connection(user=user, details=details, **asked)
