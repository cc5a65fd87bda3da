"""`openenv:` - an OpenEnv server of anybody's as an environment of ours. The other way round is `envfarm serve`."""
