"""Policies without a catalog."""

from loramux_server.store.policies import Policies
from loramux_server.store.policy import Policy


class KeptPolicies(Policies):
    """Policies in memory."""

    def __init__(self, *policies: Policy) -> None:
        self.kept = list(policies)

    def revision(self) -> str:
        return repr(self.kept)

    def all(self) -> list[Policy]:
        return list(self.kept)
