"""A farm as Kubernetes objects: pure functions from FARM.yaml to what `kubectl apply` takes.

    namespace: keeper (Deployment of one), workers (a Deployment per pool), their Services and rights
    namespace-boxes: boxes, made by the keeper; nothing reaches them but streams through the API server

One farm has a pair of namespaces to itself. What is rendered passes Pod Security "restricted" in both. The token that rollouts,
keeper and workers share is a Secret that `render` refers to and does not hold: rendered text may go into a repository.
"""

from envfarm.farm.manifests.render import render, to_yaml
from envfarm.farm.manifests.token import token_secret

__all__ = ["render", "to_yaml", "token_secret"]
