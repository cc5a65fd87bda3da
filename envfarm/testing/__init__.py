"""The public conformance suites and stock agents: `check_env`, `check_backend`, and what plays in them."""
