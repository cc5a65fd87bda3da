import sys

sys.path.insert(0, "/app")
from greet import greet  # the agent's code, as tests of this format load it

for name in ("Ada", " Ben ", "\tCem"):
    assert greet(name) == f"Hello, {name.strip()}!", greet(name)
