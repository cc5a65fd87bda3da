"""Episodes on disk: append-only, crash-safe, readable by anything that reads Parquet."""

from rollout.store.store import Store

__all__ = ["Store"]
