"""How stores are reached. Secrets are no part of it: options stand in the records of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StoreOptions:
    """How shards in stores (s3, gs, az, http) are reached. Credentials come from the environment,
    as each cloud has it."""

    endpoint: str = ""
    """Where the store is, such as http://minio:9000, for stores that speak a cloud's protocol
    elsewhere; empty: the cloud's own, or what AWS_ENDPOINT_URL says."""

    region: str = ""
    """Region of the bucket; empty: what AWS_REGION says, else us-east-1."""

    anonymous: bool = False
    """Ask without credentials, for public buckets."""

    in_flight: int = 256
    """Requests of a rank that are under way at a time, at most."""

    patience: float = 600.0
    """Seconds that one read waits for a store that does not answer. It is asked again and again,
    and the run goes on when it is there."""

    def problem(self) -> str:
        """What is wrong with the endpoint; "" where nothing is."""
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            return f"endpoint must begin with http:// or https://; got {self.endpoint!r}"
        if "@" in self.endpoint:
            return (
                "endpoint holds an '@': a run's records keep options, and no secrets. Give "
                "credentials by the environment"
            )
        return ""
